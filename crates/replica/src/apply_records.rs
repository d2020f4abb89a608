//! What must outlive the process of where a state machine stood: a small record in the data directory.
//!
//! Losing it, or finding it damaged, costs time and no state: a state machine that stands is given entries one by one
//! again after another start, and one that keeps its own state is refused where it cannot be told whether it applied
//! an entry that was skipped.

use d_engine_storage::MetaStore;

use crate::event::SkippedEntry;
use crate::{Durability, LogId, StopReason};

/// The name of the record.
const NAME: &str = "apply";
/// Numbers before the skipped entries: first and last index of the suspects.
const HEAD: usize = 2;
/// Numbers of one skipped entry: its term, its index, and the index of the entry that says so.
const SKIPPED: usize = 3;
/// Skipped entries that are remembered; the last ones. Older ones lie before every snapshot by far.
const SKIPPED_MAX: usize = 1_024;

/// The record, and where it lies.
pub(crate) struct ApplyRecords {
    meta: Box<dyn MetaStore>,
    noted: Noted,
}

/// What the record says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Noted {
    /// Indexes of the first and the last entry of a chunk in which a state machine stood.
    suspects: Option<(u64, u64)>,
    skipped: Vec<SkippedEntry>,
}

impl ApplyRecords {
    pub(crate) fn load(meta: Box<dyn MetaStore>) -> Self {
        let noted = match meta.load(NAME) {
            Ok(None) => Noted::default(),
            Ok(Some(record)) => decode(&record).unwrap_or_else(|| {
                tracing::warn!("the record of where the state machine stood is of another program; it is written anew when needed");
                Noted::default()
            }),
            Err(error) => {
                tracing::warn!(%error, "the record of where the state machine stood cannot be read; it is written anew when needed");
                Noted::default()
            }
        };
        Self { meta, noted }
    }

    /// Entries that are to be given to the state machine one by one.
    pub(crate) fn singly(&self) -> Option<(u64, u64)> {
        self.noted.suspects
    }

    /// Entries that a state machine which keeps its own state has skipped.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = &SkippedEntry> {
        self.noted.skipped.iter()
    }

    /// The state machine stands somewhere in a chunk. After the next start it is given the entries one by one.
    pub(crate) fn stopped_between(&mut self, first: LogId, last: LogId) {
        self.noted.suspects = Some((first.index, last.index));
        if let Err(error) = self.store() {
            tracing::warn!(%error, "where the state machine stands was not noted: after a start it may not be found either");
        }
    }

    /// The entry is about to be left out. What a state machine that keeps its own state has skipped is in no log entry that
    /// it applies again.
    ///
    /// # Errors
    /// It could not be stored: the node must stop, and may skip it after a start.
    pub(crate) fn skips(&mut self, skip: SkippedEntry, durability: Durability) -> Result<(), StopReason> {
        if durability == Durability::Rebuilt || self.noted.skipped.contains(&skip) {
            return Ok(());
        }
        self.noted.skipped.push(skip);
        let surplus = self.noted.skipped.len().saturating_sub(SKIPPED_MAX);
        self.noted.skipped.drain(..surplus);
        if cfg!(mutant = "skip-unnoted") {
            return Ok(());
        }
        self.store().map_err(|error| {
            StopReason::new(format_args!(
                "that the entry at {} is skipped could not be noted: {error}",
                skip.target
            ))
        })
    }

    fn store(&mut self) -> Result<(), d_engine_storage::StorageError> {
        let record = encode(&self.noted);
        self.meta.store(NAME, &record)
    }
}

fn encode(noted: &Noted) -> Vec<u8> {
    let (first, last) = noted.suspects.unwrap_or_default();
    let skipped =
        noted.skipped.iter().flat_map(|skip| [skip.target.term, skip.target.index, skip.decided_at]);
    [first, last].into_iter().chain(skipped).flat_map(u64::to_le_bytes).collect()
}

/// The content of a record; `None` for one that this program does not know.
fn decode(record: &[u8]) -> Option<Noted> {
    let (numbers, rest) = record.as_chunks::<8>();
    let numbers: Vec<u64> = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let (head, skipped) = numbers.split_at_checked(HEAD)?;
    let (skipped, surplus) = skipped.as_chunks::<SKIPPED>();
    if !rest.is_empty() || !surplus.is_empty() {
        return None;
    }
    let skipped = skipped.iter().map(|[term, index, decided_at]| SkippedEntry {
        target: LogId { term: *term, index: *index },
        decided_at: *decided_at,
    });
    let suspects = match head {
        [first, last] if *first > 0 => Some((*first, *last)),
        _ => None,
    };
    Some(Noted { suspects, skipped: skipped.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_what_was_put_in() {
        let skip = SkippedEntry { target: LogId { term: 3, index: 131 }, decided_at: 140 };
        for suspects in [None, Some((7, 9))] {
            for skipped in [vec![], vec![skip], vec![skip, skip]] {
                let noted = Noted { suspects, skipped };
                assert_eq!(decode(&encode(&noted)), Some(noted));
            }
        }
        for foreign in [&[][..], &[0; 15], &[0; 17], &[0; 24]] {
            assert_eq!(decode(foreign), None, "{foreign:?}");
        }
    }
}
