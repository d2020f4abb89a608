//! Replies: what came of a command.

use bytes::Bytes;

use super::{UndecodableError, readable};
use crate::Message as _;
use crate::kv::{self as wire, FORMAT_VERSION, kv_reply::Outcome};

/// What the key-value machine answers. The same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvReply {
    /// The command took effect.
    Done {
        /// Whether the key had a value before.
        existed: bool,
    },
    /// A put that asked for the value before took effect.
    Replaced {
        /// The value before; `None`: there was none.
        previous: Option<Bytes>,
    },
    /// A compare-and-swap found another value. Nothing changed; decide anew with what was found.
    CompareFailed {
        /// The value found; `None`: the key is absent.
        current: Option<Bytes>,
    },
    /// A batch took effect.
    BatchDone {
        /// For each operation in turn, whether its key had a value before it.
        existed: Vec<bool>,
    },
    /// A compare in a batch failed. Nothing of the batch changed anything; decide anew.
    BatchFailed {
        /// The first operation whose compare failed, counted from 0.
        operation: u32,
        /// The value found there; `None`: the key is absent.
        current: Option<Bytes>,
    },
    /// This version of the machine cannot carry the command out. Nothing changed; do not retry.
    Rejected {
        /// Why.
        reason: String,
    },
}

impl KvReply {
    /// The bytes of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let outcome = match self.clone() {
            Self::Done { existed } => Outcome::Done(wire::Done { existed }),
            Self::Replaced { previous } => Outcome::Replaced(wire::Replaced { previous }),
            Self::CompareFailed { current } => Outcome::CompareFailed(wire::CompareFailed { current }),
            Self::BatchDone { existed } => Outcome::BatchDone(wire::BatchDone { existed }),
            Self::BatchFailed { operation, current } => {
                Outcome::BatchFailed(wire::BatchFailed { operation, current })
            }
            Self::Rejected { reason } => Outcome::Rejected(wire::Rejected { reason }),
        };
        wire::KvReply { format: FORMAT_VERSION, outcome: Some(outcome) }.encode_to_vec().into()
    }

    /// Reads the reply to a proposed command.
    ///
    /// # Errors
    /// See [`UndecodableError`]: the node is of another version, or runs another state machine.
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let reply = wire::KvReply::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(reply.format)?;
        Ok(match reply.outcome.ok_or(UndecodableError::Unknown)? {
            Outcome::Done(wire::Done { existed }) => Self::Done { existed },
            Outcome::Replaced(wire::Replaced { previous }) => Self::Replaced { previous },
            Outcome::CompareFailed(wire::CompareFailed { current }) => Self::CompareFailed { current },
            Outcome::BatchDone(wire::BatchDone { existed }) => Self::BatchDone { existed },
            Outcome::BatchFailed(wire::BatchFailed { operation, current }) => {
                Self::BatchFailed { operation, current }
            }
            Outcome::Rejected(wire::Rejected { reason }) => Self::Rejected { reason },
        })
    }
}
