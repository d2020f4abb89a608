//! A survey reads what recovery reads, says what a start does, and changes nothing.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use common::{
    DIR, GROUP, Picture, engine, entries, entry_with, hard_state, log_id, open, request, roomy,
    segments, small, with_content,
};
use d_engine_core::{LogId, LogIndex};
use d_engine_storage::fs::sim::{Failure, SimFs};
use d_engine_storage::survey::{
    Damage, Found, LogSummary, Loss, Range, StartOutcome, StoredEntry, Survey,
};
use d_engine_storage::{FileStorageOptions, Fs, FsOp, LogEntry, StorageEngine};

/// What a survey finds.
struct Seen {
    survey: Survey,
    summary: LogSummary,
    entries: BTreeMap<u64, LogEntry>,
    damage: Vec<Damage>,
}

fn look(fs: &SimFs, covered: Option<LogId>) -> Seen {
    let before = fs.image();
    let survey = Survey::of(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR)).unwrap();
    let summary = survey.read_log(covered, &mut |_| ControlFlow::Continue(())).unwrap();
    let (entries, damage) = visited(&survey, &summary, Range::default());
    assert_eq!(fs.image(), before, "the disk was changed");
    Seen { survey, summary, entries, damage }
}

fn visited(
    survey: &Survey,
    summary: &LogSummary,
    range: Range,
) -> (BTreeMap<u64, LogEntry>, Vec<Damage>) {
    let (mut entries, mut damage) = (BTreeMap::new(), Vec::new());
    let flow = survey.entries(summary, range, &mut |found| {
        match found {
            Found::Entry(StoredEntry { entry, .. }) => {
                let index = entry.id.index.get();
                assert!(entries.insert(index, entry).is_none(), "entry {index} is shown twice");
            }
            Found::Damage(found) => damage.push(found),
        }
        ControlFlow::Continue(())
    });
    assert!(range != Range::default() || flow.unwrap().is_continue());
    (entries, damage)
}

/// Terms 1 to 3 with superseded suffixes, over several segments of small groups; each group
/// contains the hard state.
fn written(fs: &SimFs, options: &FileStorageOptions, rounds: u64) -> Picture {
    let mut opened = open(fs, options).unwrap();
    let mut expected = Picture::default();
    for round in 0..rounds {
        let term = 1 + round / 4;
        let back = if round > 0 && round % 4 == 0 { 2 } else { 0 };
        let first = expected.last() + 1 - back;
        let mut stored = entries(term, first..=first + 2);
        stored.push(entry_with(term, first + 3, vec![term as u8; 150]));
        let state = Some(hard_state(term, 1 + round % 3, first.saturating_sub(3)));
        opened.log.append(GROUP, state, &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(state, &stored);
    }
    opened.log.idle().unwrap();
    expected
}

#[test]
fn a_whole_log_is_read_as_recovery_reads_it() {
    for options in [small(), roomy()] {
        let fs = SimFs::new();
        let expected = written(&fs, &options, 16);
        let seen = look(&fs, None);
        assert!(seen.damage.is_empty() && seen.summary.damaged == 0, "{:?}", seen.damage);
        assert!(matches!(seen.summary.start, StartOutcome::Whole));
        assert_eq!(seen.entries, expected.entries);
        assert_eq!(seen.summary.hard_state, Some(expected.hard_state));
        assert_eq!(seen.summary.last, expected.entries.values().last().map(|last| last.id));
        let opened = open(&fs, &options).unwrap();
        assert_eq!(seen.survey.identity(), Some(&opened.identity));
        assert_eq!(seen.summary.segments.len(), opened.report.segments);
        assert_eq!(look(&fs, None).survey.holder(), Some("another simulated process"));
        drop(opened);
        assert_eq!(look(&fs, None).survey.holder(), None);
    }
}

/// A bit flips anywhere: the survey says what the real start then does, and every entry is either
/// shown as it was, or named as lost.
#[test]
fn whatever_bit_flips_the_survey_says_what_a_start_does_and_accounts_for_every_entry() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    let counts = flip_everywhere(&fs, &expected);
    assert!(counts.iter().all(|count| *count > 50), "{counts:?}");
}

/// The same for a log whose process died: few groups contain a hard state, and the newest segment
/// has only the group with which its open began it.
#[test]
fn whatever_bit_flips_in_a_log_after_a_crash_the_survey_says_what_a_start_does() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    for (states, first) in [(true, 1), (false, 10)] {
        let mut opened = open(&fs, &small()).unwrap();
        for first in (first..first + 9).step_by(3) {
            let stored = entries(1, first..=first + 2);
            let state = (states && first == 1).then(|| hard_state(1, 2, 0));
            opened.log.append(GROUP, state, &stored).unwrap();
            opened.log.sync().unwrap();
            expected.append(state, &stored);
        }
    }
    drop(open(&fs, &small()).unwrap());
    let counts = flip_everywhere(&fs, &expected);
    assert!(counts.iter().all(|count| *count > 10), "{counts:?}");
}

/// The only hard state is in the first group: without a later one no snapshot covers damage.
#[test]
fn whatever_bit_flips_before_no_later_hard_state_the_survey_says_what_a_start_does() {
    let fs = SimFs::new();
    let mut expected = Picture::default();
    let mut opened = open(&fs, &small()).unwrap();
    for (first, state) in [(1, Some(hard_state(1, 2, 0))), (4, None), (7, None)] {
        let stored = entries(1, first..=first + 2);
        opened.log.append(GROUP, state, &stored).unwrap();
        opened.log.sync().unwrap();
        expected.append(state, &stored);
    }
    opened.log.idle().unwrap();
    drop(opened);
    let [whole, after, refused] = flip_everywhere(&fs, &expected);
    assert!(whole > 10 && after == 0 && refused > 10, "{whole} {after} {refused}");
}

/// Returns how many starts read the whole log, begin after the snapshot, and are refused.
fn flip_everywhere(fs: &SimFs, expected: &Picture) -> [u64; 3] {
    let image = fs.image();
    let ids: Vec<LogId> = expected.entries.values().map(|entry| entry.id).collect();
    let mut counts = [0; 3];
    for covered in [None, Some(ids[4]), Some(ids[ids.len() / 2]), Some(ids[ids.len() - 1])] {
        for path in segments(fs) {
            for at in (0..image.files[&path].len()).step_by(41) {
                let context = format!("{} at {at}, snapshot to {covered:?}", path.display());
                let mut content = image.files[&path].clone();
                content[at] ^= 1 << (at % 8);
                let fs = with_content(fs, &path, content);
                let seen = look(&fs, covered);
                let opened = engine(&fs, &small()).open_behind(&request(), &mut |_| covered);
                match (&seen.summary.start, opened) {
                    (StartOutcome::Whole, Ok(opened)) => {
                        counts[0] += 1;
                        assert_eq!(opened.report.skipped_corruption, None, "{context}");
                        let torn = seen.summary.torn.as_ref();
                        let torn_at = torn.map(|torn| (name_of(&torn.path), torn.offset));
                        assert_eq!(opened.report.torn_at, torn_at, "{context}");
                        assert_eq!(seen.entries, Picture::of(&opened).entries, "{context}");
                    }
                    (StartOutcome::After(id), Ok(opened)) => {
                        counts[1] += 1;
                        assert!(opened.report.skipped_corruption.is_some(), "{context}");
                        assert_eq!(Some(*id), covered, "{context}");
                    }
                    (StartOutcome::Refused(_), Err(_)) => {
                        counts[2] += 1;
                        let last = ids[ids.len() - 1];
                        let helps = seen.summary.covered_by.map(|index| match index.get() {
                            0 => ids[0],
                            index => expected.entries[&index].id,
                        });
                        let tried = helps.unwrap_or(last);
                        let again =
                            engine(&fs, &small()).open_behind(&request(), &mut |_| Some(tried));
                        assert_eq!(again.is_ok(), helps.is_some(), "{context}: behind {tried}");
                    }
                    (said, opened) => {
                        panic!("{context}: {said:?}, but {:?}", opened.map(|it| it.report))
                    }
                }
                accounts_for_all(expected, &seen, &context);
            }
        }
    }
    counts
}

fn accounts_for_all(expected: &Picture, seen: &Seen, context: &str) {
    let is_lost = |index: u64| {
        seen.damage.iter().any(|damage| match damage.loss {
            Loss::Entries { first, last } => (first.get()..=last.get()).contains(&index),
            Loss::From(first) => index >= first.get(),
            _ => false,
        })
    };
    for (index, entry) in &expected.entries {
        match seen.entries.get(index) {
            // What a damaged group replaced is shown, because nothing readable replaces it.
            Some(found) if found != entry => {
                assert!(!seen.damage.is_empty(), "{context}: entry {index} was replaced");
            }
            Some(_) => assert!(!is_lost(*index), "{context}: entry {index} is there and lost"),
            None if seen.damage.is_empty() => assert!(
                seen.summary.torn.is_some(),
                "{context}: entry {index} is neither shown nor named"
            ),
            None => assert!(is_lost(*index), "{context}: entry {index} is not named as lost"),
        }
    }
    assert_eq!(seen.damage.is_empty(), seen.summary.damaged == 0, "{context}");
    let is_last = seen.summary.hard_state == Some(expected.hard_state);
    let may_be_older = seen.summary.hard_state_may_be_older || seen.summary.torn.is_some();
    assert!(is_last || may_be_older, "{context}: {:?}", seen.summary.hard_state);
}

/// Missing, shortened, exchanged and renamed files, and damaged records beside the log.
#[test]
fn whatever_file_is_lost_the_survey_refuses_what_a_start_refuses() {
    let fs = SimFs::new();
    written(&fs, &small(), 16);
    let image = fs.image();
    let mut refused = 0;
    for path in image.files.keys() {
        let mut without = image.clone();
        without.files.remove(path);
        let mut emptied = image.clone();
        emptied.files.insert(path.clone(), Vec::new());
        let mut shortened = image.clone();
        shortened.files.get_mut(path).unwrap().truncate(1_024);
        let mut garbled = image.clone();
        garbled.files.insert(path.clone(), vec![0xA5; 3_000]);
        let mut renamed = without.clone();
        let other = path.with_file_name("00000000000000000099.seg");
        renamed.files.insert(other, image.files[path].clone());
        for (how, image) in [
            ("missing", without),
            ("emptied", emptied),
            ("shortened", shortened),
            ("garbled", garbled),
            ("renamed", renamed),
        ] {
            let context = format!("{} {how}", path.display());
            let fs = SimFs::from_image(&image);
            let seen = look(&fs, None);
            let opened = open(&fs, &small());
            let is_refused = matches!(seen.summary.start, StartOutcome::Refused(_));
            assert_eq!(is_refused, opened.is_err(), "{context}: {:?}", opened.map(|it| it.report));
            refused += u64::from(is_refused);
            let damaged = seen.summary.damaged + seen.survey.damage().len() as u64;
            assert!(!is_refused || damaged > 0, "{context}: no damage is named");
        }
    }
    assert!(refused > 20, "{refused}");
}

/// The newest segment is filled ahead of its groups; where it may end is recorded beside the log.
#[test]
fn wherever_a_segment_is_cut_the_survey_refuses_what_a_start_refuses() {
    let fs = SimFs::new();
    written(&fs, &small(), 16);
    let image = fs.image();
    let (mut refused, mut accepted) = (0, 0);
    for path in segments(&fs) {
        for len in (0..image.files[&path].len()).step_by(512) {
            let mut cut = image.clone();
            cut.files.get_mut(&path).unwrap().truncate(len);
            let fs = SimFs::from_image(&cut);
            let seen = look(&fs, None);
            let opened = open(&fs, &small());
            let is_refused = matches!(seen.summary.start, StartOutcome::Refused(_));
            let context = format!("{} cut at {len}", path.display());
            assert_eq!(is_refused, opened.is_err(), "{context}: {:?}", opened.map(|it| it.report));
            *(if is_refused { &mut refused } else { &mut accepted }) += 1;
        }
    }
    assert!(refused > 10 && accepted > 2, "{refused} refused, {accepted} accepted");
}

#[test]
fn without_an_identity_the_segments_say_whose_the_log_is() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 8);
    let mut image = fs.image();
    image.files.retain(|path, _| !path.to_string_lossy().contains("identity"));
    let seen = look(&SimFs::from_image(&image), None);
    assert!(seen.survey.identity().is_none());
    let owner = seen.survey.owner().unwrap();
    assert_eq!((owner.node.get(), owner.incarnation), (1, request().fresh_incarnation));
    assert_eq!(seen.entries, expected.entries);
    assert!(matches!(seen.summary.start, StartOutcome::Refused(_)));
    assert_eq!(seen.survey.damage()[0].loss, Loss::Record);
}

#[test]
fn a_log_that_was_purged_or_replaced_by_a_snapshot_has_only_what_counts() {
    let fs = SimFs::new();
    let mut expected = written(&fs, &small(), 16);
    let through = expected.entries[&20].id;
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.purge(GROUP, through).unwrap();
    drop(opened);
    expected.purge(through);
    let seen = look(&fs, None);
    assert_eq!((seen.entries, seen.summary.base), (expected.entries, Some(through)));

    // A snapshot replaces entries with higher indexes too; nothing that was appended does.
    let base = log_id(9, 25);
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.install(GROUP, base, d_engine_storage::LogSuffix::Drop).unwrap();
    drop(opened);
    let seen = look(&fs, None);
    assert_eq!((seen.entries.len(), seen.summary.base), (0, Some(base)));

    let base = log_id(9, 100);
    let mut opened = open(&fs, &small()).unwrap();
    opened.log.install(GROUP, base, d_engine_storage::LogSuffix::Drop).unwrap();
    opened.log.append(GROUP, None, &entries(9, 101..=103)).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let seen = look(&fs, None);
    assert_eq!(seen.entries.keys().copied().collect::<Vec<_>>(), [101, 102, 103]);
    assert_eq!(seen.summary.base, Some(base));
    assert!(seen.damage.is_empty(), "{:?}", seen.damage);
}

#[test]
fn a_torn_tail_is_no_damage_and_named_with_its_bytes() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &entries(1, 1..=3)).unwrap();
    opened.log.sync().unwrap();
    opened.log.append(GROUP, None, &entries(1, 4..=30)).unwrap();
    opened.log.sync().unwrap();
    drop(opened);
    let path = segments(&fs)[0].clone();
    let mut content = fs.image().files[&path].clone();
    // The last group loses a sector in its middle.
    let last = content.iter().rposition(|byte| *byte != 0).unwrap() / 512 * 512;
    content[last..last + 512].fill(0);
    let torn = with_content(&fs, &path, content);
    let seen = look(&torn, None);
    assert!(seen.damage.is_empty(), "{:?}", seen.damage);
    let tail = seen.summary.torn.unwrap();
    let report = open(&torn, &roomy()).unwrap().report;
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!((report.torn_at, report.torn_bytes), (Some((name, tail.offset)), tail.bytes));
    assert_eq!(seen.entries.keys().copied().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn of_a_segment_whose_header_is_lost_every_group_is_still_read() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    for path in segments(&fs) {
        let mut content = fs.image().files[&path].clone();
        content[20] ^= 1;
        let seen = look(&with_content(&fs, &path, content), None);
        assert_eq!(seen.entries, expected.entries, "{}", path.display());
        let lost: Vec<Loss> = seen.damage.iter().map(|damage| damage.loss).collect();
        let is_prepared = seen.survey.unused().contains(&name_of(&path));
        assert_eq!(lost, if is_prepared { vec![] } else { vec![Loss::Header] });
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_str().unwrap().to_owned()
}

#[test]
fn a_range_shows_its_entries_and_the_damage_in_it() {
    let fs = SimFs::new();
    let expected = written(&fs, &roomy(), 16);
    let path = segments(&fs)[0].clone();
    let mut content = fs.image().files[&path].clone();
    content[3_000] ^= 1;
    let fs = with_content(&fs, &path, content);
    let seen = look(&fs, None);
    assert_eq!(seen.damage.len(), 1, "{:?}", seen.damage);
    assert!(!seen.summary.hard_state_may_be_older, "a hard state follows");
    let Loss::Entries { first, last } = seen.damage[0].loss else { panic!("{:?}", seen.damage) };
    let range = |first: u64, last: u64| {
        let range = Range { first: LogIndex::new(first), last: LogIndex::new(last) };
        visited(&seen.survey, &seen.summary, range)
    };
    let (lowest, highest) = (first.get(), last.get());
    let (entries, damage) = range(1, lowest - 1);
    assert_eq!((entries.len() as u64, damage.len()), (lowest - 1, 0));
    let (entries, damage) = range(lowest - 1, highest + 1);
    assert_eq!(
        (entries.len(), damage.len()),
        (2, 1),
        "{:?} {:?}",
        seen.damage,
        seen.entries.keys()
    );
    let (entries, damage) = range(highest + 1, u64::MAX);
    assert_eq!((entries.len() as u64, damage.len()), (expected.last() - highest, 0));
    let (entries, damage) = range(highest, highest);
    assert_eq!((entries.len(), damage.len()), (0, 1));
}

/// What a running node writes between the two passes is not shown: half of it would be.
#[test]
fn the_second_pass_shows_what_the_first_one_has_seen() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &roomy()).unwrap();
    opened.log.append(GROUP, Some(hard_state(1, 1, 0)), &entries(1, 1..=6)).unwrap();
    opened.log.sync().unwrap();
    let survey = Survey::of(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR)).unwrap();
    let summary = survey.read_log(None, &mut |_| ControlFlow::Continue(())).unwrap();
    opened.log.append(GROUP, Some(hard_state(2, 1, 0)), &entries(2, 4..=9)).unwrap();
    opened.log.sync().unwrap();
    let (seen, damage) = visited(&survey, &summary, Range::default());
    let expected: BTreeMap<u64, LogEntry> = (1..).zip(entries(1, 1..=6)).collect();
    assert_eq!((seen, damage.len()), (expected, 0));
}

/// A running node begins the next segment, whose file it had prepared, while the log is read.
#[test]
fn a_segment_that_a_running_node_begins_meanwhile_proves_no_damage() {
    let fs = SimFs::new();
    let mut opened = open(&fs, &small()).unwrap();
    let mut next = 1;
    let mut append = |opened: &mut d_engine_storage::OpenedStorage| {
        opened.log.append(GROUP, None, &entries(1, next..=next + 2)).unwrap();
        opened.log.sync().unwrap();
        next += 3;
    };
    append(&mut opened);
    while segments(&fs).len() < 2 {
        opened.log.idle().unwrap();
    }
    let survey = Survey::of(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR)).unwrap();
    assert_eq!(survey.unused().len(), 1, "it is prepared");
    while opened.log.stats().segments < 2 {
        append(&mut opened);
    }
    append(&mut opened);
    let summary = survey.read_log(None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!((summary.damaged, summary.torn), (0, None));
}

/// A segment that is purged between the two passes is no damage.
#[test]
fn what_a_running_node_purges_meanwhile_is_no_damage() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 16);
    let mut opened = open(&fs, &FileStorageOptions { spare_segments: 0, ..small() }).unwrap();
    let survey = Survey::of(Arc::new(fs.clone()) as Arc<dyn Fs>, Path::new(DIR)).unwrap();
    let before = segments(&fs).len();
    opened.log.purge(GROUP, expected.entries[&30].id).unwrap();
    assert!(segments(&fs).len() < before);
    let summary = survey.read_log(None, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(summary.damaged, 0, "{summary:?}");
    let (seen, damage) = visited(&survey, &summary, Range::default());
    assert!(seen.contains_key(&expected.last()) && damage.is_empty(), "{damage:?}");
}

/// A sector that the medium has lost is damage like one with other content, wherever it is.
#[test]
fn what_cannot_be_read_is_damage() {
    let fs = SimFs::new();
    let expected = written(&fs, &small(), 8);
    let image = fs.image();
    let mut damaged = 0;
    for nth in 0.. {
        let fs = SimFs::from_image(&image);
        fs.fail(FsOp::Read, nth, Failure::Io);
        let shared = Arc::new(fs.clone()) as Arc<dyn Fs>;
        let survey = Survey::of(shared, Path::new(DIR)).unwrap();
        let summary = survey.read_log(None, &mut |_| ControlFlow::Continue(())).unwrap();
        if summary.damaged + survey.damage().len() as u64 > 0 {
            damaged += 1;
        }
        if fs.counts().of(FsOp::Read) < nth {
            break;
        }
        // The sector can be read again.
        fs.fail_no_more();
        let seen = look(&fs, None);
        assert_eq!((seen.entries, seen.damage.len()), (expected.entries.clone(), 0), "{nth}");
    }
    assert!(damaged > 20, "{damaged}");
}
