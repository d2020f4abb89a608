//! The commands of the key-value machine.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use crate::message::{self as wire, kv_command::Verb};
use crate::{FORMAT_VERSION, KvOperation, UndecodableError, readable};

/// The maximum number of operations in a batch. Every replica must decide alike about a command, so
/// this number is part of the format: a different one needs a new verb.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;

/// A command of the key-value machine.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvCommand {
    /// One operation. The reply is [`Done`](crate::KvReply::Done) or
    /// [`CompareFailed`](crate::KvReply::CompareFailed).
    Single(KvOperation),
    /// A put whose reply is [`Replaced`](crate::KvReply::Replaced), with the previous value.
    PutReturning {
        /// The key.
        key: Bytes,
        /// Its new value; may be empty.
        value: Bytes,
        /// As in [`KvOperation::Put`].
        ttl_ms: Option<NonZeroU64>,
    },
    /// Operations that are executed atomically and in order, each seeing the effects of those
    /// before it; if a compare fails, none takes effect. At most [`BATCH_OPERATIONS_MAX`]. The
    /// reply is [`BatchDone`](crate::KvReply::BatchDone) or
    /// [`BatchFailed`](crate::KvReply::BatchFailed).
    Batch(Vec<KvOperation>),
}

/// Options of a put. The default has no time to live and does not return the previous value.
///
/// ```
/// use std::time::Duration;
/// use d_engine_kv_language::{KvCommand, PutOptions};
/// let options = PutOptions::default().ttl(Duration::from_secs(30)).previous();
/// let command = KvCommand::put_with("service/a", "10.0.0.1:80", options).encode();
/// # let _ = command;
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PutOptions {
    ttl_ms: Option<NonZeroU64>,
    previous: bool,
}

impl PutOptions {
    /// Sets the time to live, counted from the command's own log time in whole milliseconds, at
    /// least one. Without it the key does not expire, even if it had an expiry before.
    ///
    /// Log time is the leader's wall clock, stamped on commands. The key expires on every node at
    /// the same place in the log: soon after the time has passed, and never earlier by the leader's
    /// clock.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let whole = ttl.as_nanos().div_ceil(1_000_000).max(1);
        self.ttl_ms =
            Some(u64::try_from(whole).ok().and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MAX));
        self
    }

    /// Makes the reply contain the previous value.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.previous = true;
        self
    }

    /// Returns the time to live in milliseconds.
    #[must_use]
    pub fn ttl_ms(self) -> Option<NonZeroU64> {
        self.ttl_ms
    }

    /// Whether the reply contains the previous value.
    #[must_use]
    pub fn wants_previous(self) -> bool {
        self.previous
    }
}

impl KvCommand {
    /// Creates a command that sets the value of `key`.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Single(KvOperation::put(key, value))
    }

    /// Creates a command that sets the value of `key`, with a time to live, or returning the
    /// previous value, or both.
    #[must_use]
    pub fn put_with(key: impl Into<Bytes>, value: impl Into<Bytes>, options: PutOptions) -> Self {
        let (key, value, ttl_ms) = (key.into(), value.into(), options.ttl_ms);
        if options.previous {
            Self::PutReturning { key, value, ttl_ms }
        } else {
            Self::Single(KvOperation::Put { key, value, ttl_ms })
        }
    }

    /// Creates a command that deletes `key`.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Single(KvOperation::delete(key))
    }

    /// Creates a command that sets `key` to `value` (`None` deletes it) if its current value is
    /// `expected` (`None`: it has none).
    #[must_use]
    pub fn compare_and_swap(
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Self {
        Self::Single(KvOperation::compare_and_swap(key, expected, value))
    }

    /// Creates a batch of operations.
    #[must_use]
    pub fn batch(operations: impl IntoIterator<Item = KvOperation>) -> Self {
        Self::Batch(operations.into_iter().collect())
    }

    /// Encodes the command as the bytes to propose.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let verb = match self.clone() {
            Self::Single(operation) => operation.into_verb(),
            Self::PutReturning { key, value, ttl_ms } => {
                let ttl_ms = ttl_ms.map_or(0, NonZeroU64::get);
                Verb::PutWith(wire::PutWith { key, value, ttl_ms, previous: true })
            }
            Self::Batch(operations) => {
                let operations = operations.into_iter().map(KvOperation::into_part).collect();
                Verb::Batch(wire::Batch { operations })
            }
        };
        wire::KvCommand { format: FORMAT_VERSION, verb: Some(verb) }.encode_to_vec().into()
    }

    /// Checks that the bytes are a command that this program can execute.
    ///
    /// # Errors
    /// As [`KvCommand::decode`].
    pub fn check(command: &[u8]) -> Result<(), UndecodableError> {
        Self::decode(&Bytes::copy_from_slice(command)).map(drop)
    }

    /// Decodes what [`KvCommand::encode`] wrote. Keys and values are slices of `data`.
    ///
    /// # Errors
    /// See [`UndecodableError`]. The machine answers such a command with
    /// [`Rejected`](crate::KvReply::Rejected).
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let command =
            wire::KvCommand::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(command.format)?;
        Ok(match command.verb.ok_or(UndecodableError::Unknown)? {
            Verb::Put(put) => Self::Single(put.into()),
            Verb::Delete(delete) => Self::Single(delete.into()),
            Verb::CompareAndSwap(swap) => Self::Single(swap.into()),
            Verb::PutWith(wire::PutWith { key, value, ttl_ms, previous }) => {
                let ttl_ms = NonZeroU64::new(ttl_ms);
                if previous {
                    Self::PutReturning { key, value, ttl_ms }
                } else {
                    Self::Single(KvOperation::Put { key, value, ttl_ms })
                }
            }
            Verb::Batch(wire::Batch { operations }) => {
                let found = operations.len();
                if found > BATCH_OPERATIONS_MAX {
                    return Err(UndecodableError::TooManyOperations { found });
                }
                let operations: Result<_, _> =
                    operations.into_iter().map(KvOperation::from_part).collect();
                Self::Batch(operations?)
            }
        })
    }
}
