//! `d-engine recover --inspect`: the survivors side by side.

use std::path::PathBuf;
use std::sync::Arc;

use d_engine_offline::inspect::{InspectError, Progress, Snapshots};
use d_engine_offline::recover::{Findings, Membership, Survivor, VoterSet, inspect};
use d_engine_offline::{Fs, RealFs};

use crate::blocking::{Reading, Stop};
use crate::exit::{Exit, Failure, say};
use crate::inspect::failure;

const HEADS: [&str; 7] =
    ["DIR", "NODE", "TERM", "LAST ENTRY", "KNOWN COMMITTED", "SNAPSHOT", "VOTERS"];

pub(super) fn run(dirs: &[PathBuf], stop: &Stop) -> Result<(), Failure> {
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let mut reading = Reading::begin("reading");
    let found = inspect(&fs, dirs, Snapshots::Verify, &mut |progress| {
        let (Progress::Log(bytes) | Progress::Snapshot(bytes)) = progress;
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    let found = found.map_err(|error| match error {
        InspectError::Stopped => Failure::new(Exit::Interrupted, ""),
        error => failure(error),
    })?;
    table(&found).into_iter().for_each(say);
    for survivor in &found.survivors {
        if let Some(unfit) = &survivor.unfit {
            say(format_args!("{} is not taken: {unfit}", survivor.dir.display()));
        }
    }
    found.survivors.iter().filter_map(lacking).for_each(say);
    let Some(best) = found.best() else {
        return Err(Failure::failed(
            "none of the directories can be taken; restore a snapshot file (docs/recovery.md)",
        ));
    };
    say(outlook(&found, best));
    Ok(())
}

/// One row for each directory.
fn table(found: &Findings) -> Vec<String> {
    let configuration = found.members.as_ref().map(|it| it.id().to_string());
    let configuration = configuration.unwrap_or_else(|| "none".to_owned());
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(found.survivors.iter().map(row));
    let width = |at: usize| {
        let cells = rows.iter().filter_map(|row| row.get(at));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..HEADS.len()).map(width).collect();
    let mut lines: Vec<String> = rows
        .iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect();
    if let Some(head) = lines.first_mut() {
        head.push_str(&format!(" (the newest configuration is {configuration})"));
    }
    if let Some(best) = found.best.and_then(|best| lines.get_mut(best + 1)) {
        best.push_str("  <- take this one");
    }
    lines
}

fn row(survivor: &Survivor) -> [String; 7] {
    let dir = survivor.dir.display().to_string();
    let node = survivor.owner.map_or_else(|| "-".to_owned(), |owner| owner.node.to_string());
    let Some(it) = &survivor.holdings else {
        let none = || "-".to_owned();
        return [dir, node, none(), none(), none(), none(), none()];
    };
    [
        dir,
        node,
        it.hard_state.term.to_string(),
        format!("{} @ {}", it.last.term, it.last.index),
        it.committed.to_string(),
        it.snapshot.map_or_else(|| "none".to_owned(), |id| id.index.to_string()),
        format!("{} (configuration {})", voters(&it.members), it.members.id()),
    ]
}

fn voters(members: &Membership) -> String {
    let of = |nodes: &[d_engine_offline::recover::NodeId]| {
        nodes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let configuration = members.configuration();
    match configuration.outgoing() {
        [] => of(configuration.voters()),
        outgoing => format!("{} -> {}", of(outgoing), of(configuration.voters())),
    }
}

/// What a survivor has lost itself.
fn lacking(survivor: &Survivor) -> Option<String> {
    let holdings = survivor.holdings.as_ref()?;
    let promised = holdings.promised?;
    Some(format!(
        "{} was repaired after damage: it had entries up to {} @ {}, and has only those up to {} \
         @ {}",
        survivor.dir.display(),
        promised.term,
        promised.index,
        holdings.last.term,
        holdings.last.index
    ))
}

/// What may be lost, in one sentence or two.
fn outlook(found: &Findings, best: &Survivor) -> String {
    let dir = best.dir.display();
    let sets: Vec<String> = found.voters.iter().map(set).collect();
    let sets = sets.join("; ");
    if found.voters.iter().all(|set| set.survive >= set.needed) {
        return format!(
            "{sets}: that is a majority, so start these nodes as they are; nothing has to be \
             recovered"
        );
    }
    if found.nothing_is_lost() {
        return format!(
            "{sets}: every acknowledged write is on one of the survivors. Nothing acknowledged is \
             lost if {dir} is taken"
        );
    }
    let committed = best.holdings.as_ref().map(|it| it.committed).unwrap_or_default();
    format!(
        "{sets}: writes that were acknowledged after entry {committed}, the last one that {dir} \
         knows to be committed, may be on none of the survivors, and are lost then. Look for the \
         directory of another voter before you take {dir}"
    )
}

fn set(set: &VoterSet) -> String {
    let VoterSet { of, needed, survive } = set;
    let survives = if *survive == 1 { "survives" } else { "survive" };
    format!("{survive} of {of} voters {survives}, and {needed} had to store a write")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_that_survives_is_told_to_start() {
        let set = |of, survive| VoterSet { of, needed: of / 2 + 1, survive };
        for (voters, said) in [
            (vec![set(3, 2)], "start these nodes as they are"),
            (vec![set(4, 2)], "Nothing acknowledged is lost if a is taken"),
            (vec![set(3, 1)], "may be on none of the survivors"),
            (vec![set(4, 2), set(3, 1)], "may be on none of the survivors"),
        ] {
            let best = Survivor { dir: "a".into(), owner: None, holdings: None, unfit: None };
            let survivors = vec![best.clone()];
            let found = Findings { survivors, members: None, best: Some(0), voters };
            let text = outlook(&found, &best);
            assert!(text.contains(said), "{text}");
        }
    }
}
