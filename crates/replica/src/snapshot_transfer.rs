//! Sending a snapshot to a follower, and receiving it there: what both sides say, without the connection.
//!
//! ```text
//! leader                                   follower
//! Offer (term, label, length, SHA-256) ->
//!                                          <- Accept (offset: so much is there already), or Refused
//! Piece, Piece, ... within a window    ->
//!                                          <- Received (offset), after each piece
//!                                          <- Accept (offset) again, when a piece did not fit
//!                                          <- Installing: whole, verified, durable
//!                                          <- Applied: the state machine holds it
//! ```
//! `Working` may come from the follower at any time: what it does takes long. A connection that breaks ends both
//! sides; what the follower has received stays, and the next offer of the same archive, whoever makes it, goes on
//! there. Success is what the follower has *applied*.

mod receiver;
mod sender;

use bytes::Bytes;
use d_engine_core::{LogId, Term};
use d_engine_storage::snapshot::Offer;

pub use receiver::{ReceiverStep, SnapshotReceiver};
pub use sender::{SendFailure, SendLimits, SnapshotSender};

/// The longest piece that is sent or accepted, in bytes.
pub const PIECE_BYTES_MAX: usize = 1 << 20;
/// The longest header that goes with an offer; one that is longer is checked when everything is there.
pub const OFFERED_HEADER_BYTES_MAX: usize = 1 << 20;

/// What the two sides of a transfer say to each other, on a connection of their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotMessage {
    /// The leader has this archive.
    Offer {
        /// The term that the sender leads.
        term: Term,
        /// Which archive.
        archive: Offer,
        /// Its header, so that what cannot be used is refused before it is sent; empty when it is too long.
        header: Bytes,
    },
    /// Send from this offset on.
    Accept {
        /// So many bytes are there.
        offset: u64,
    },
    /// Bytes of the archive.
    Piece {
        /// Where they begin.
        offset: u64,
        /// The bytes.
        bytes: Bytes,
        /// CRC32C of the bytes.
        crc: u32,
    },
    /// Everything before this offset is there.
    Received {
        /// The offset.
        offset: u64,
    },
    /// The follower is at work: do not give it up.
    Working,
    /// The archive is whole, verified and durable; the state machine gets it now.
    Installing,
    /// The state machine holds it.
    Applied,
    /// It is not wanted.
    Refused {
        /// What the leader should do.
        refusal: Refusal,
        /// Why, in words.
        text: String,
    },
}

impl SnapshotMessage {
    pub(crate) fn refused(refusal: Refusal, why: impl std::fmt::Display) -> Self {
        Self::Refused { refusal, text: why.to_string() }
    }

    /// The label, for an offer.
    #[must_use]
    pub fn offered(&self) -> Option<(Term, LogId)> {
        match self {
            Self::Offer { term, archive, .. } => Some((*term, archive.label)),
            _ => None,
        }
    }
}

/// What a refusal means for the sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// Another transfer or install is under way here. Try again later.
    Busy,
    /// What is committed here reaches as far, or the sender no longer leads: entries will do.
    NotNeeded,
    /// It cannot be used here: damaged, of another cluster, too new, too large. An operator must look.
    Unusable,
    /// The sender broke the rules of the transfer.
    Protocol,
}

#[cfg(test)]
mod tests;
