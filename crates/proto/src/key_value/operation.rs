//! What is done to one key: a command by itself, or a part of a batch.

use std::num::NonZeroU64;

use bytes::Bytes;

use super::{PutOptions, UndecodableError};
use crate::kv::{self as wire, kv_command::Verb, operation::Verb as PartVerb};

/// What is done to one key: a command by itself, or a part of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvOperation {
    /// Gives `key` a value, whatever it had before.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value; may be empty.
        value: Bytes,
        /// Milliseconds of log time after which the key vanishes; `None`: never, also if it would
        /// have before.
        ttl_ms: Option<NonZeroU64>,
    },
    /// Takes the value of `key` away. No error when there is none.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Changes `key` only if it has the expected value. The new value has no expiry.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// The value that must be there; `None`: the key must be absent.
        expected: Option<Bytes>,
        /// The new value; `None`: the key is deleted.
        value: Option<Bytes>,
    },
}

impl KvOperation {
    /// Gives `key` a value.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into(), ttl_ms: None }
    }

    /// Gives `key` a value that vanishes after `ttl` of log time; see [`PutOptions::ttl`].
    #[must_use]
    pub fn put_with_ttl(key: impl Into<Bytes>, value: impl Into<Bytes>, ttl: std::time::Duration) -> Self {
        let ttl_ms = PutOptions::default().ttl(ttl).ttl_ms();
        Self::Put { key: key.into(), value: value.into(), ttl_ms }
    }

    /// Takes the value of `key` away.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Gives `key` the value `value` (`None`: none) if it has `expected` (`None`: none) now.
    #[must_use]
    pub fn compare_and_swap(key: impl Into<Bytes>, expected: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self::CompareAndSwap { key: key.into(), expected, value }
    }

    /// The key that it is about.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::CompareAndSwap { key, .. } => key,
        }
    }

    /// As a command by itself.
    pub(super) fn into_verb(self) -> Verb {
        match self {
            // The oldest form that says it, so that older machines carry it out.
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

    /// As a part of a batch.
    pub(super) fn into_part(self) -> wire::Operation {
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

    /// Reads a part of a batch.
    pub(super) fn from_part(part: wire::Operation) -> Result<Self, UndecodableError> {
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
