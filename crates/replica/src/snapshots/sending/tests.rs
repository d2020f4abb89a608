#![allow(clippy::unwrap_used)]

use d_engine_core::{LogIndex, Term};

use super::*;

const LEN: u64 = 1_000;

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn at(millis: u64) -> Instant {
    Instant::ZERO.plus(Duration::from_millis(millis))
}

fn id(index: u64) -> LogId {
    LogId::new(Term::new(1), LogIndex::new(index))
}

fn order(to: u64) -> SnapshotSendRequest {
    SnapshotSendRequest { to: node(to), term: Term::new(1), at_least: LogIndex::ZERO }
}

/// Begins an attempt to send the archive up to `index` to node 2.
fn begin(sends: &mut SnapshotSends, millis: u64, index: u64) -> SendAttempt {
    let (attempt, _) = sends.begin(at(millis), order(2));
    assert_eq!(told(sends.chosen(at(millis), attempt, id(index), LEN)), Some((index, 0)));
    attempt
}

/// The last included index and the confirmed bytes of a progress report.
fn told(event: Option<Event>) -> Option<(u64, u64)> {
    match event? {
        Event::SnapshotProgress(progress) => {
            assert_eq!((progress.to, progress.len), (node(2), LEN));
            Some((progress.last_included.get(), progress.confirmed))
        }
        _ => panic!("not a progress report"),
    }
}

fn confirmed(confirmed: u64) -> SendProgress {
    SendProgress { confirmed, ..SendProgress::default() }
}

/// Whether the attempt has failed, and whether for lack of any archive.
fn failed(event: Option<Event>) -> Option<bool> {
    match event? {
        Event::SnapshotFailed { to, none_usable } => {
            assert_eq!(to, node(2));
            Some(none_usable)
        }
        _ => panic!("not a failure"),
    }
}

fn broke() -> SendOutcome {
    SendOutcome::NoConnection("it broke".to_owned())
}

fn refused(refusal: Refusal) -> SendOutcome {
    SendOutcome::Failed(SendFailure::Refused { refusal, text: "no".to_owned() })
}

#[test]
fn each_failure_is_followed_by_a_longer_wait_and_a_success_starts_anew() {
    let mut sends = SnapshotSends::default();
    let mut waits = Vec::new();
    for number in 1..=9 {
        let attempt = begin(&mut sends, number, 40);
        let after = sends.on(attempt, broke()).unwrap();
        assert_eq!((after.verify, after.failure.as_deref()), (None, Some("it broke")));
        waits.push(after.wait.as_millis());
        assert_eq!(failed(sends.report(at(number), attempt)), Some(false));
        assert_eq!(sends.status(at(number))[0].failures, number);
    }
    assert_eq!(waits, [200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 30_000, 30_000]);
    let attempt = begin(&mut sends, 10, 40);
    let after = sends.on(attempt, SendOutcome::Applied).unwrap();
    let nothing = AfterAttempt { verify: None, wait: Duration::ZERO, failure: None };
    assert_eq!(after, nothing);
    assert!(
        matches!(sends.report(at(10), attempt), Some(Event::SnapshotSent(to)) if to == node(2))
    );
    assert!(sends.status(at(10)).is_empty() && sends.archives_in_use(at(10)).is_empty());
    let attempt = begin(&mut sends, 11, 60);
    assert_eq!(sends.on(attempt, broke()).unwrap().wait.as_millis(), 200);
}

#[test]
fn the_next_attempt_prefers_the_archive_that_the_follower_has_a_part_of() {
    let mut sends = SnapshotSends::default();
    let (attempt, _) = sends.begin(at(0), order(2));
    assert_eq!(sends.resumable(attempt), None);
    sends.chosen(at(0), attempt, id(40), LEN);
    sends.on(attempt, broke());
    sends.report(at(1), attempt);
    let (attempt, _) = sends.begin(at(300), order(2));
    assert_eq!(sends.resumable(attempt), Some(id(40)));
    assert_eq!(sends.status(at(300))[0].last_failure.as_deref(), Some("it broke"));
}

/// Damage on this node's disk must not be sent again and again, to this or another follower.
#[test]
fn an_archive_that_a_follower_cannot_use_is_verified_again_and_no_longer_preferred() {
    let mut sends = SnapshotSends::default();
    let unreadable = SendOutcome::Failed(SendFailure::Archive("rotten".to_owned()));
    for (outcome, is_in_doubt) in [
        (refused(Refusal::Unusable), true),
        (unreadable, true),
        (refused(Refusal::Busy), false),
        (refused(Refusal::Protocol), false),
        (SendOutcome::Failed(SendFailure::Protocol("early")), false),
        (SendOutcome::TooLong(7), false),
    ] {
        let attempt = begin(&mut sends, 0, 40);
        let after = sends.on(attempt, outcome.clone()).unwrap();
        assert_eq!(after.verify, is_in_doubt.then_some(id(40)), "{outcome:?}");
        assert_eq!(failed(sends.report(at(0), attempt)), Some(false));
        let (next, _) = sends.begin(at(1), order(2));
        assert_eq!(sends.resumable(next).is_none(), is_in_doubt, "{outcome:?}");
    }
}

#[test]
fn if_no_archive_can_be_sent_a_new_snapshot_is_requested_after_a_second() {
    let mut sends = SnapshotSends::default();
    let (attempt, _) = sends.begin(at(0), order(2));
    let after = sends.on(attempt, SendOutcome::NoneUsable).unwrap();
    assert_eq!((after.verify, after.wait.as_millis()), (None, 1_000));
    assert!(after.failure.unwrap().contains("requesting a new one"));
    assert_eq!(failed(sends.report(at(1_000), attempt)), Some(true));
}

/// The follower may have obtained the entries otherwise. That is no failure.
#[test]
fn a_follower_that_needs_no_snapshot_is_not_counted_as_a_failure() {
    let mut sends = SnapshotSends::default();
    let attempt = begin(&mut sends, 0, 40);
    let after = sends.on(attempt, refused(Refusal::NotNeeded)).unwrap();
    assert_eq!((after.wait.as_millis(), after.failure), (200, None));
    assert_eq!(sends.status(at(0))[0].failures, 0);
    assert_eq!(failed(sends.report(at(200), attempt)), Some(false));
    assert!(sends.status(at(200)).is_empty(), "nothing is kept for it");
}

/// The order of a later leadership. The old attempt's thread may still run.
#[test]
fn a_newer_order_replaces_the_attempt_and_what_is_said_of_the_old_one_has_no_effect() {
    let mut sends = SnapshotSends::default();
    let old = begin(&mut sends, 0, 40);
    let (new, replaced) = sends.begin(at(1), order(2));
    assert_eq!(replaced, Some(old));
    assert_eq!(sends.begin(at(1), order(3)).1, None, "another follower");
    assert!(!sends.is_current(old) && sends.is_current(new));
    assert_eq!(told(sends.chosen(at(1), new, id(60), LEN)), Some((60, 0)));
    assert!(sends.chosen(at(2), old, id(50), LEN).is_none());
    assert!(sends.moved(at(2_000), old, confirmed(LEN)).is_none());
    assert_eq!(sends.on(old, broke()), None);
    assert!(sends.report(at(2_000), old).is_none());
    let status = &sends.status(at(2_000))[0];
    assert_eq!((status.last_included, status.confirmed, status.failures), (60, 0, 0));
}

#[test]
fn progress_is_reported_once_a_second_and_at_the_end() {
    let mut sends = SnapshotSends::default();
    let attempt = begin(&mut sends, 0, 40);
    let mut report = |millis, bytes| told(sends.moved(at(millis), attempt, confirmed(bytes)));
    assert_eq!(report(999, 100), None);
    assert_eq!(report(1_000, 200), Some((40, 200)));
    assert_eq!(report(1_500, 300), None);
    assert_eq!(report(3_000, 200), None, "nothing new");
    assert_eq!(report(3_000, 300), Some((40, 300)));
    assert_eq!(report(3_001, LEN), Some((40, LEN)));
    assert_eq!(report(9_000, LEN), None);
    let status = &sends.status(at(9_000))[0];
    assert_eq!((status.confirmed, status.len), (LEN, LEN));
}

/// The replica requests the next attempt within seconds, or never: then the archive may be pruned.
#[test]
fn the_archive_is_kept_between_attempts_and_for_ten_seconds_after_the_last() {
    let mut sends = SnapshotSends::default();
    let attempt = begin(&mut sends, 0, 40);
    assert_eq!(sends.archives_in_use(at(90_000)), [id(40)], "while it is being sent");
    sends.on(attempt, broke());
    assert_eq!(sends.archives_in_use(at(90_000)), [id(40)], "while the driver waits");
    assert_eq!(failed(sends.report(at(90_000), attempt)), Some(false));
    assert!(sends.report(at(90_001), attempt).is_none(), "reported once");
    assert_eq!(sends.archives_in_use(at(100_000)), [id(40)]);
    assert_eq!(sends.archives_in_use(at(100_001)), []);
    assert!(sends.status(at(100_001)).is_empty());
    sends.begin(at(100_001), order(3));
    let (attempt, replaced) = sends.begin(at(100_001), order(2));
    assert_eq!((replaced, sends.resumable(attempt)), (None, None), "it starts anew");
}
