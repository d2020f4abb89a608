//! Replies to commands.

use bytes::Bytes;
use prost::Message as _;

use crate::message::{self as wire, kv_reply::Outcome};
use crate::{FORMAT_VERSION, UndecodableError, readable};

/// The reply of the key-value machine to a command; the same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvReply {
    /// The command took effect.
    Done {
        /// Whether the key had a value before.
        existed: bool,
    },
    /// A put that requested the previous value took effect.
    Replaced {
        /// The previous value; `None` if there was none.
        previous: Option<Bytes>,
    },
    /// A compare-and-swap found a value other than the expected one. Nothing was changed; decide
    /// again, given the current value.
    CompareFailed {
        /// The current value; `None` if the key is absent.
        current: Option<Bytes>,
    },
    /// A batch took effect.
    BatchDone {
        /// For each operation in order, whether its key had a value before it.
        existed: Vec<bool>,
    },
    /// A compare in a batch failed. No operation took effect; decide again.
    BatchFailed {
        /// The first operation whose compare failed, counted from 0.
        operation: u32,
        /// The current value of its key; `None` if the key is absent.
        current: Option<Bytes>,
    },
    /// This version of the machine cannot execute the command. Nothing was changed; do not retry.
    Rejected {
        /// Why.
        reason: String,
    },
}

impl KvReply {
    /// Encodes the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let outcome = match self.clone() {
            Self::Done { existed } => Outcome::Done(wire::Done { existed }),
            Self::Replaced { previous } => Outcome::Replaced(wire::Replaced { previous }),
            Self::CompareFailed { current } => {
                Outcome::CompareFailed(wire::CompareFailed { current })
            }
            Self::BatchDone { existed } => Outcome::BatchDone(wire::BatchDone { existed }),
            Self::BatchFailed { operation, current } => {
                Outcome::BatchFailed(wire::BatchFailed { operation, current })
            }
            Self::Rejected { reason } => Outcome::Rejected(wire::Rejected { reason }),
        };
        wire::KvReply { format: FORMAT_VERSION, outcome: Some(outcome) }.encode_to_vec().into()
    }

    /// Decodes the reply to a proposed command.
    ///
    /// # Errors
    /// See [`UndecodableError`]: the node has another version or runs another state machine.
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let reply = wire::KvReply::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(reply.format)?;
        Ok(match reply.outcome.ok_or(UndecodableError::Unknown)? {
            Outcome::Done(wire::Done { existed }) => Self::Done { existed },
            Outcome::Replaced(wire::Replaced { previous }) => Self::Replaced { previous },
            Outcome::CompareFailed(wire::CompareFailed { current }) => {
                Self::CompareFailed { current }
            }
            Outcome::BatchDone(wire::BatchDone { existed }) => Self::BatchDone { existed },
            Outcome::BatchFailed(wire::BatchFailed { operation, current }) => {
                Self::BatchFailed { operation, current }
            }
            Outcome::Rejected(wire::Rejected { reason }) => Self::Rejected { reason },
        })
    }
}
