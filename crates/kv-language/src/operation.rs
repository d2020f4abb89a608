//! Operations on one key: a command of its own, or a part of a batch.

use std::num::NonZeroU64;

use bytes::Bytes;

use crate::message::{self as wire, kv_command::Verb, operation::Verb as PartVerb};
use crate::{PutOptions, UndecodableError};

/// An operation on one key: a command of its own, or a part of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvOperation {
    /// Sets the value of `key`, whatever it was before.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value; may be empty.
        value: Bytes,
        /// Milliseconds of log time after which the key expires. With `None` it never expires, even
        /// if it had an expiry before.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Deletes `key`. No error if it has no value.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Changes `key` only if it has the expected value. The new value does not expire.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// The value that the key must have; `None`: the key must be absent.
        expected: Option<Bytes>,
        /// The new value; `None`: the key is deleted.
        value: Option<Bytes>,
    },
}

impl KvOperation {
    /// Creates an operation that sets the value of `key`.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), ttl_ms: None }
    }

    /// Creates an operation that sets the value of `key`, which expires after `ttl` of log time;
    /// see [`PutOptions::ttl`].
    #[must_use]
    pub fn put_with_ttl(
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: std::time::Duration,
    ) -> Self {
        let ttl_ms = PutOptions::default().ttl(ttl).ttl_ms();
        Self::Put { key: key.into(), value: value.into(), ttl_ms }
    }

    /// Creates an operation that deletes `key`.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Creates an operation that sets `key` to `value` (`None` deletes it) if its current value is
    /// `expected` (`None`: it has none).
    #[must_use]
    pub fn compare_and_swap(
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Self {
        Self::CompareAndSwap { key: key.into(), expected, value }
    }

    /// Returns the key.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::CompareAndSwap { key, .. } => key,
        }
    }

    /// Converts the operation to a command of its own.
    pub(crate) fn into_verb(self) -> Verb {
        match self {
            // The oldest form that has this meaning, so that older machines can execute it.
            Self::Put { key, value, ttl_ms: None } => Verb::Put(wire::Put { key, value }),
            Self::Put { key, value, ttl_ms: Some(ttl_ms) } => {
                Verb::PutWith(wire::PutWith { key, value, ttl_ms: ttl_ms.get(), previous: false })
            }
            Self::Delete { key } => Verb::Delete(wire::Delete { key }),
            Self::CompareAndSwap { key, expected, value } => {
                Verb::CompareAndSwap(wire::CompareAndSwap { key, expected, value })
            }
        }
    }

    /// Converts the operation to a part of a batch.
    pub(crate) fn into_part(self) -> wire::Operation {
        let verb = match self {
            Self::Put { key, value, ttl_ms: None } => PartVerb::Put(wire::Put { key, value }),
            Self::Put { key, value, ttl_ms: Some(ttl_ms) } => {
                PartVerb::PutWithTtl(wire::PutWithTtl { key, value, ttl_ms: ttl_ms.get() })
            }
            Self::Delete { key } => PartVerb::Delete(wire::Delete { key }),
            Self::CompareAndSwap { key, expected, value } => {
                PartVerb::CompareAndSwap(wire::CompareAndSwap { key, expected, value })
            }
        };
        wire::Operation { verb: Some(verb) }
    }

    /// Decodes a part of a batch.
    pub(crate) fn from_part(part: wire::Operation) -> Result<Self, UndecodableError> {
        Ok(match part.verb.ok_or(UndecodableError::Unknown)? {
            PartVerb::Put(put) => put.into(),
            PartVerb::Delete(delete) => delete.into(),
            PartVerb::CompareAndSwap(swap) => swap.into(),
            PartVerb::PutWithTtl(wire::PutWithTtl { key, value, ttl_ms }) => {
                Self::Put { key, value, ttl_ms: NonZeroU64::new(ttl_ms) }
            }
        })
    }
}

impl From<wire::Put> for KvOperation {
    fn from(wire::Put { key, value }: wire::Put) -> Self {
        Self::Put { key, value, ttl_ms: None }
    }
}

impl From<wire::Delete> for KvOperation {
    fn from(wire::Delete { key }: wire::Delete) -> Self {
        Self::Delete { key }
    }
}

impl From<wire::CompareAndSwap> for KvOperation {
    fn from(wire::CompareAndSwap { key, expected, value }: wire::CompareAndSwap) -> Self {
        Self::CompareAndSwap { key, expected, value }
    }
}
