//! What a later boot must know of where the state machine was halted and which entries it skipped:
//! a small record in the data directory.
//!
//! A lost or damaged record costs time and no state. A halted state machine is halted in a whole
//! chunk once more, and the node applies the chunk's entries one by one only at the start after
//! that. A durable machine is refused if the node cannot determine whether it applied an entry that
//! was skipped.

use d_engine_storage::{MetaStore, StorageError};

use crate::event::SkippedEntry;
use crate::{Durability, LogId, StopReason};

/// The name of the record.
const NAME: &str = "apply";
/// Numbers before the skipped entries: first and last index of the suspected entries.
const HEAD: usize = 2;
/// Numbers of one skipped entry: its term, its index, and the index of the entry that contains the
/// decision.
const SKIPPED: usize = 3;
/// The number of skipped entries that are kept, the latest ones. Older ones lie far before every
/// snapshot.
const SKIPPED_MAX: usize = 1_024;

/// The record and its storage.
pub(crate) struct ApplyRecords {
    meta: Box<dyn MetaStore>,
    noted: Noted,
}

/// The content of the record.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Noted {
    /// Indexes of the first and the last entry of a chunk in which a state machine was halted.
    suspects: Option<(u64, u64)>,
    skipped: Vec<SkippedEntry>,
}

impl ApplyRecords {
    pub(crate) fn load(meta: Box<dyn MetaStore>) -> Self {
        let noted = match meta.load(NAME) {
            Ok(None) => Noted::default(),
            Ok(Some(record)) => decode(&record).unwrap_or_else(|| {
                tracing::warn!(
                    "the record of the halted state machine has a format that this program does \
                     not know; it is ignored and rewritten when needed"
                );
                Noted::default()
            }),
            Err(error) => {
                tracing::warn!(
                    %error,
                    "the record of the halted state machine cannot be read; it is ignored and \
                     rewritten when needed"
                );
                Noted::default()
            }
        };
        Self { meta, noted }
    }

    /// First and last index of the entries to apply one by one.
    pub(crate) fn singly(&self) -> Option<(u64, u64)> {
        self.noted.suspects
    }

    /// Entries that a durable state machine has skipped.
    pub(crate) fn skipped(&self) -> impl Iterator<Item = &SkippedEntry> {
        self.noted.skipped.iter()
    }

    /// Records that the state machine is halted somewhere in a chunk. After the next start it is
    /// given these entries one by one.
    pub(crate) fn stopped_between(&mut self, first: LogId, last: LogId) {
        self.noted.suspects = Some((first.index.get(), last.index.get()));
        if let Err(error) = self.store() {
            tracing::warn!(
                %error,
                "the entries at which the state machine is halted could not be recorded; after a \
                 restart the node does not apply them one by one"
            );
        }
    }

    /// Records that the entry is about to be skipped. A durable state machine needs this record,
    /// because it does not apply the log again from before the skipped entry.
    ///
    /// # Errors
    /// The record could not be stored: the node must stop, and may skip the entry after a restart.
    /// If only space was lacking, the entry may be skipped later.
    pub(crate) fn skips(
        &mut self,
        skip: SkippedEntry,
        durability: Durability,
    ) -> Result<(), StopReason> {
        if durability == Durability::Rebuilt || self.noted.skipped.contains(&skip) {
            return Ok(());
        }
        let before = self.noted.skipped.clone();
        self.noted.skipped.push(skip);
        let surplus = self.noted.skipped.len().saturating_sub(SKIPPED_MAX);
        self.noted.skipped.drain(..surplus);
        let Err(error) = self.store() else { return Ok(()) };
        self.noted.skipped = before;
        let reason = format_args!(
            "the decision to skip the entry at {} could not be recorded: {error}",
            skip.target
        );
        Err(match error {
            StorageError::NoRoom { .. } => StopReason::of_full_disk(reason),
            _ => StopReason::new(reason),
        })
    }

    fn store(&mut self) -> Result<(), StorageError> {
        let record = encode(&self.noted);
        self.meta.store(NAME, &record)
    }
}

fn encode(noted: &Noted) -> Vec<u8> {
    let (first, last) = noted.suspects.unwrap_or_default();
    let skipped = noted
        .skipped
        .iter()
        .flat_map(|skip| [skip.target.term.get(), skip.target.index.get(), skip.decided_at]);
    [first, last].into_iter().chain(skipped).flat_map(u64::to_le_bytes).collect()
}

/// Decodes a record; `None` if this program does not know its format.
fn decode(record: &[u8]) -> Option<Noted> {
    let (numbers, rest) = record.as_chunks::<8>();
    let numbers: Vec<u64> = numbers.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
    let (head, skipped) = numbers.split_at_checked(HEAD)?;
    let (skipped, surplus) = skipped.as_chunks::<SKIPPED>();
    if !rest.is_empty() || !surplus.is_empty() {
        return None;
    }
    let skipped = skipped.iter().map(|[term, index, decided_at]| SkippedEntry {
        target: LogId::of(*term, *index),
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
        let skip = SkippedEntry { target: LogId::of(3, 131), decided_at: 140 };
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
