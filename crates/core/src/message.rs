//! What nodes say to each other, without payloads.

use crate::{LogId, LogIndex};

/// What became of an append at a follower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AppendOutcome {
    /// Everything up to and including this index is stored and matches the leader's log.
    Stored(LogIndex),
    /// The entry before the first one is not there. `hint` is the sender's last entry that could
    /// still match: its index is below the refused one and its term is at most the refused term.
    Conflict {
        /// The index that did not match.
        refused: LogIndex,
        /// Where to look next.
        hint: LogId,
    },
}
