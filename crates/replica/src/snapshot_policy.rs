//! When a snapshot is due.

use crate::LogId;

/// What a policy may base its answer on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotContext {
    /// The last entry applied.
    pub applied: LogId,
    /// The last entry of the newest snapshot; zero when there is none.
    pub last_snapshot: LogId,
}

/// Decides when a snapshot is due. Asked after every applied chunk, so it must be quick.
pub trait SnapshotPolicy: Send + Sync + 'static {
    /// Whether a snapshot is due now.
    fn should_snapshot(&self, context: &SnapshotContext) -> bool;
}

/// Never: the log keeps everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl SnapshotPolicy for Never {
    fn should_snapshot(&self, _context: &SnapshotContext) -> bool {
        false
    }
}
