//! Sending a snapshot to a follower, and receiving it there: the protocol of both sides, without
//! the connection.
//!
//! ```text
//! leader                                   follower
//! Offer (term, last included,
//!        length, SHA-256)              ->
//!                                          <- Accept (offset: what it has already), or Refused
//! Piece, Piece, ... within a window    ->
//!                                          <- Received (offset), after each piece
//!                                          <- Accept (offset) again, if a piece was out of place
//!                                          <- Installing: complete, verified, durable
//!                                          <- Applied: the state machine has installed it
//! ```
//! The follower may send `Working` at any time, because its work takes long. If the connection
//! breaks, both sides end. The follower keeps what it has received, and the next offer of the same
//! archive, from any leader, resumes there. The snapshot counts as sent once the follower has
//! *applied* it.

mod receiver;
mod sender;

use bytes::Bytes;
use d_engine_core::{LogId, Term};
use d_engine_storage::snapshot::Offer;

pub use receiver::{ReceiverStep, SnapshotReceiver};
pub use sender::{SendFailure, SendLimits, SendProgress, SnapshotSender};

/// The longest piece that is sent or accepted, in bytes.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The longest header that is sent with an offer, in bytes. A longer one is checked once the whole
/// archive is there.
pub const OFFERED_HEADER_BYTES_MAX: usize = 1 << 20;

/// A message between sender and receiver of a snapshot, on a connection of its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotMessage {
    /// The leader offers an archive.
    Offer {
        /// The term in which the sender leads.
        term: Term,
        /// The archive.
        archive: Offer,
        /// Its header, so that an unusable archive is refused before it is sent; empty if it is too
        /// long.
        header: Bytes,
    },
    /// The follower wants the archive from this offset on.
    Accept {
        /// The bytes that the follower has already.
        offset: u64,
    },
    /// Bytes of the archive.
    Piece {
        /// Their offset in the archive.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
        /// CRC32C of the bytes.
        crc: u32,
    },
    /// The follower has everything before this offset.
    Received {
        /// The offset.
        offset: u64,
    },
    /// The follower is still working: it is alive although it has nothing to report.
    Working,
    /// The archive is complete, verified and durable, and is being installed into the state
    /// machine.
    Installing,
    /// The follower's state machine has installed it.
    Applied,
    /// The follower refuses the archive.
    Refused {
        /// The kind of refusal, which determines what the leader does.
        refusal: Refusal,
        /// Why, in words.
        text: String,
    },
}

impl SnapshotMessage {
    pub(crate) fn refused(refusal: Refusal, why: impl std::fmt::Display) -> Self {
        Self::Refused { refusal, text: why.to_string() }
    }

    /// The sender's term and the last included entry, for an offer.
    #[must_use]
    pub fn offered(&self) -> Option<(Term, LogId)> {
        match self {
            Self::Offer { term, archive, .. } => Some((*term, archive.last_included)),
            _ => None,
        }
    }
}

/// What a refusal means for the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The receiver is busy with another snapshot, or lacks space or file handles. Retry later.
    Busy,
    /// The receiver's commit index reaches as far, or the sender no longer leads: entries suffice.
    NotNeeded,
    /// The receiver cannot use it: it is damaged, of another cluster, too new or too large. An
    /// operator must act.
    Unusable,
    /// The sender violated the protocol.
    Protocol,
}

#[cfg(test)]
mod tests;
