//! Commands: what a client can ask the key-value machine to do.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;

use super::{KvOperation, UndecodableError, readable};
use crate::Message as _;
use crate::kv::{self as wire, FORMAT_VERSION, kv_command::Verb};

/// Operations that one batch may have. Every replica must judge a command alike, so this number is part of
/// the format: another one needs another verb.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;

/// What a client can ask the key-value machine to do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvCommand {
    /// One operation; answered with [`Done`](super::KvReply::Done) or
    /// [`CompareFailed`](super::KvReply::CompareFailed).
    Single(KvOperation),
    /// A put; answered with [`Replaced`](super::KvReply::Replaced), which has the value before.
    PutReturning {
        /// The key.
        key: Bytes,
        /// Its new value; may be empty.
        value: Bytes,
        /// As in [`KvOperation::Put`].
        ttl_ms: Option<NonZeroU64>,
    },
    /// Operations that take effect as one, in order, each seeing what the ones before it did; or none
    /// of them, if a compare fails. At most [`BATCH_OPERATIONS_MAX`]. Answered with
    /// [`BatchDone`](super::KvReply::BatchDone) or [`BatchFailed`](super::KvReply::BatchFailed).
    Batch(Vec<KvOperation>),
}

/// What a put may ask for beside the value. The default asks for nothing.
///
/// ```
/// use std::time::Duration;
/// use d_engine_proto::key_value::{KvCommand, PutOptions};
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
    /// The key vanishes after this time, counted from the command's own log time in whole milliseconds,
    /// at least one. Without it the key stays, also if it had an expiry before.
    ///
    /// Log time is the leader's wall clock, stamped on commands: the key vanishes on every node at the
    /// same place in the log, soon after the time has passed, never before it has by the leader's clock.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        let whole = ttl.as_nanos().div_ceil(1_000_000).max(1);
        self.ttl_ms = Some(u64::try_from(whole).ok().and_then(NonZeroU64::new).unwrap_or(NonZeroU64::MAX));
        self
    }

    /// The reply has the value before.
    #[must_use]
    pub fn previous(mut self) -> Self {
        self.previous = true;
        self
    }

    /// The time to live in milliseconds.
    #[must_use]
    pub fn ttl_ms(self) -> Option<NonZeroU64> {
        self.ttl_ms
    }

    /// Whether the reply has the value before.
    #[must_use]
    pub fn wants_previous(self) -> bool {
        self.previous
    }
}

impl KvCommand {
    /// Gives `key` a value.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Single(KvOperation::put(key, value))
    }

    /// Gives `key` a value, with a time to live, or for a reply with the value before, or both.
    #[must_use]
    pub fn put_with(key: impl Into<Bytes>, value: impl Into<Bytes>, options: PutOptions) -> Self {
        let (key, value, ttl_ms) = (key.into(), value.into(), options.ttl_ms);
        if options.previous {
            Self::PutReturning { key, value, ttl_ms }
        } else {
            Self::Single(KvOperation::Put { key, value, ttl_ms })
        }
    }

    /// Takes the value of `key` away.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Single(KvOperation::delete(key))
    }

    /// Gives `key` the value `value` (`None`: none) if it has `expected` (`None`: none) now.
    #[must_use]
    pub fn compare_and_swap(key: impl Into<Bytes>, expected: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self::Single(KvOperation::compare_and_swap(key, expected, value))
    }

    /// Operations that take effect as one.
    #[must_use]
    pub fn batch(operations: impl IntoIterator<Item = KvOperation>) -> Self {
        Self::Batch(operations.into_iter().collect())
    }

    /// The bytes to propose.
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

    /// Whether the bytes are a command that this program carries out.
    ///
    /// # Errors
    /// As [`KvCommand::decode`].
    pub fn check(command: &[u8]) -> Result<(), UndecodableError> {
        Self::decode(&Bytes::copy_from_slice(command)).map(drop)
    }

    /// Reads what [`KvCommand::encode`] wrote. Keys and values are slices of `data`.
    ///
    /// # Errors
    /// See [`UndecodableError`]; the machine answers such a command with
    /// [`Rejected`](super::KvReply::Rejected).
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let command = wire::KvCommand::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
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
                let operations: Result<_, _> = operations.into_iter().map(KvOperation::from_part).collect();
                Self::Batch(operations?)
            }
        })
    }
}
