//! Search for damage while the node runs: the log and the snapshots are read from end to end,
//! slowly, and damage is reported to the replica. The replica still has the state and can repair
//! the damage with a new snapshot.

use std::sync::Arc;

use d_engine_core::GroupId;
use d_engine_storage::snapshot::{Health, Pace, SnapshotError, SnapshotStore};
use d_engine_storage::{LogReader, ScrubPlace};

use crate::{Event, StopReason};

/// Reads everything that the node has stored. Runs on a thread of its own.
#[derive(Debug)]
pub struct Scrubber {
    reader: Arc<dyn LogReader>,
    group: GroupId,
    snapshots: SnapshotStore,
}

impl Scrubber {
    /// Creates a scrubber for a log and a snapshot store.
    #[must_use]
    pub fn new(reader: Arc<dyn LogReader>, group: GroupId, snapshots: SnapshotStore) -> Self {
        Self { reader, group, snapshots }
    }

    /// Reads the log and then the snapshots once, at the speed of `pace`, and reports damage
    /// through `tell` as it is found. Returns whether it finished; `pace` may stop it earlier.
    pub fn round(&self, pace: &mut dyn Pace, tell: &mut dyn FnMut(Event)) -> bool {
        self.log(pace, tell) && self.archives(pace, tell)
    }

    fn log(&self, pace: &mut dyn Pace, tell: &mut dyn FnMut(Event)) -> bool {
        let mut place = Some(ScrubPlace::default());
        while let Some(from) = place {
            let looked = match self.reader.scrub(self.group, from) {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::warn!(%error, "the log could not be checked for damage");
                    return true;
                }
            };
            if let Some(damage) = looked.damage {
                tell(Event::LogDamaged {
                    through: damage.through,
                    reason: StopReason::new(damage.error),
                });
            }
            if pace.step(looked.bytes).is_break() {
                return false;
            }
            place = looked.next;
        }
        true
    }

    fn archives(&self, pace: &mut dyn Pace, tell: &mut dyn FnMut(Event)) -> bool {
        for info in self.snapshots.list() {
            if info.health == Health::Damaged {
                continue;
            }
            match self.snapshots.verify(info.last_included(), pace) {
                // Intact, or removed meanwhile.
                Ok(_) | Err(SnapshotError::Missing { .. }) => {}
                Err(SnapshotError::Aborted) => return false,
                Err(error @ SnapshotError::Damaged { .. }) => {
                    tell(Event::SnapshotDamaged { reason: StopReason::new(error) });
                }
                Err(error) => {
                    tracing::warn!(%error, "a snapshot could not be checked for damage")
                }
            }
        }
        true
    }
}
