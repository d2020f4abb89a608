//! Queries and their results: several keys of one state, and scans in pages.

use bytes::Bytes;
use prost::Message as _;

use crate::message::{self as wire, kv_query::Question, kv_query_reply::Answer};
use crate::{FORMAT_VERSION, UndecodableError, readable};

/// The maximum number of keys in one query.
pub const GET_MANY_KEYS_MAX: usize = 10_000;
/// The maximum number of bytes of values that such a query returns: 16 MiB.
pub const GET_MANY_BYTES_MAX: usize = 16 << 20;
/// Records per page of a scan without a limit.
pub const SCAN_LIMIT_DEFAULT: u32 = 1_000;
/// The maximum number of records in a page.
pub const SCAN_LIMIT_MAX: u32 = 10_000;
/// Bytes of keys and values after which a page ends: 1 MiB. A single record may have more.
pub const SCAN_PAGE_BYTES: usize = 1 << 20;

/// A query of the key-value machine, besides the value of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvQuery {
    /// The values of several keys, all from one applied state. At most [`GET_MANY_KEYS_MAX`] keys.
    GetMany {
        /// The keys, in any order.
        keys: Vec<Bytes>,
    },
    /// One page of records, in the order of their keys.
    Scan(Scan),
}

/// The keys of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Keys {
    /// Every key.
    #[default]
    All,
    /// The keys that begin with this prefix.
    Prefix(Bytes),
    /// The keys from `start` up to, but without, `end`; none if `end` is not above `start`.
    Range {
        /// The first key of the range.
        start: Bytes,
        /// The first key after the range; `None`: the range has no end.
        end: Option<Bytes>,
    },
}

/// A scan in the order of keys. Each page is from one applied state; two pages may be from
/// different states.
///
/// ```
/// use d_engine_kv_language::Scan;
/// let scan = Scan::prefix("service/").limit(100).keys_only();
/// # let _ = scan;
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// The keys to scan.
    pub keys: Keys,
    /// Only keys after this one; [`Page::next`] of the previous page.
    pub after: Option<Bytes>,
    /// Maximum number of records in the page; 0 means [`SCAN_LIMIT_DEFAULT`]. At most
    /// [`SCAN_LIMIT_MAX`].
    pub limit: u32,
    /// Whether to return only the keys.
    pub keys_only: bool,
}

/// The result of a [`KvQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvQueryReply {
    /// Of [`KvQuery::GetMany`]: the values in the order of the keys; `None` for a key without a
    /// value.
    Values(Vec<Option<Bytes>>),
    /// Of [`KvQuery::Scan`].
    Page(Page),
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The records, in the order of their keys.
    pub records: Vec<Record>,
    /// Where to continue ([`Scan::after`]); `None` on the last page. A page ends at its limit, or
    /// when it has about [`SCAN_PAGE_BYTES`]; it has at least one record if there is one.
    pub next: Option<Bytes>,
}

/// A key with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// Its value; `None` if the scan returns only keys.
    pub value: Option<Bytes>,
}

/// A query that would cost too much. Request less in one query.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryLimitError {
    /// Too many keys.
    #[error("the query has {keys} keys; at most {GET_MANY_KEYS_MAX} are allowed")]
    Keys {
        /// Number of keys in the query.
        keys: usize,
    },
    /// The values are too long in total.
    #[error(
        "the values have more than {GET_MANY_BYTES_MAX} bytes in total; query fewer keys at once"
    )]
    Bytes,
    /// The limit of a scan is too high.
    #[error("the scan requests {limit} records in a page; at most {SCAN_LIMIT_MAX} are allowed")]
    Records {
        /// The requested limit.
        limit: u32,
    },
}

impl Scan {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Scans the keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { keys: Keys::Prefix(prefix.into()), ..Self::default() }
    }

    /// Scans the keys from `start` up to, but without, `end`, or to the last key.
    #[must_use]
    pub fn range(start: impl Into<Bytes>, end: Option<Bytes>) -> Self {
        Self { keys: Keys::Range { start: start.into(), end }, ..Self::default() }
    }

    /// Sets [`Scan::limit`].
    #[must_use]
    pub fn limit(mut self, records: u32) -> Self {
        self.limit = records;
        self
    }

    /// Sets [`Scan::after`].
    #[must_use]
    pub fn after(mut self, key: impl Into<Bytes>) -> Self {
        self.after = Some(key.into());
        self
    }

    /// Returns only the keys.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

impl KvQuery {
    /// Creates a query of the values of several keys.
    #[must_use]
    pub fn get_many(keys: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        Self::GetMany { keys: keys.into_iter().map(Into::into).collect() }
    }

    /// Encodes the query.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let question = match self.clone() {
            Self::GetMany { keys } => Question::GetMany(wire::GetMany { keys }),
            Self::Scan(Scan { keys, after, limit, keys_only }) => {
                let keys = match keys {
                    Keys::All => None,
                    Keys::Prefix(prefix) => Some(wire::scan::Keys::Prefix(prefix)),
                    Keys::Range { start, end } => {
                        Some(wire::scan::Keys::Range(wire::Range { start, end }))
                    }
                };
                Question::Scan(wire::Scan { keys, after, limit, keys_only })
            }
        };
        wire::KvQuery { format: FORMAT_VERSION, question: Some(question) }.encode_to_vec().into()
    }

    /// Decodes what [`KvQuery::encode`] wrote.
    ///
    /// # Errors
    /// See [`UndecodableError`].
    pub fn decode(data: &[u8]) -> Result<Self, UndecodableError> {
        let query = wire::KvQuery::decode(data).map_err(|_| UndecodableError::Malformed)?;
        readable(query.format)?;
        Ok(match query.question.ok_or(UndecodableError::Unknown)? {
            Question::GetMany(wire::GetMany { keys }) => Self::GetMany { keys },
            Question::Scan(wire::Scan { keys, after, limit, keys_only }) => {
                let keys = match keys {
                    None => Keys::All,
                    Some(wire::scan::Keys::Prefix(prefix)) => Keys::Prefix(prefix),
                    Some(wire::scan::Keys::Range(wire::Range { start, end })) => {
                        Keys::Range { start, end }
                    }
                };
                Self::Scan(Scan { keys, after, limit, keys_only })
            }
        })
    }

    /// Checks the limits on keys and records.
    ///
    /// # Errors
    /// [`QueryLimitError`] names the requested and the allowed number.
    pub fn check(&self) -> Result<(), QueryLimitError> {
        match self {
            Self::GetMany { keys } if keys.len() > GET_MANY_KEYS_MAX => {
                Err(QueryLimitError::Keys { keys: keys.len() })
            }
            Self::Scan(Scan { limit, .. }) if *limit > SCAN_LIMIT_MAX => {
                Err(QueryLimitError::Records { limit: *limit })
            }
            _ => Ok(()),
        }
    }
}

impl KvQueryReply {
    /// Encodes the result.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let answer = match self.clone() {
            Self::Values(values) => {
                let values = values.into_iter().map(|value| wire::Value { value }).collect();
                Answer::Values(wire::Values { values })
            }
            Self::Page(Page { records, next }) => {
                let record = |Record { key, value }| wire::Record { key, value };
                Answer::Page(wire::Page {
                    records: records.into_iter().map(record).collect(),
                    next,
                })
            }
        };
        wire::KvQueryReply { format: FORMAT_VERSION, answer: Some(answer) }.encode_to_vec().into()
    }

    /// Decodes the result of a query. Keys and values are slices of `data`.
    ///
    /// # Errors
    /// See [`UndecodableError`]: the node has another version or runs another state machine.
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let answer =
            wire::KvQueryReply::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(answer.format)?;
        Ok(match answer.answer.ok_or(UndecodableError::Unknown)? {
            Answer::Values(wire::Values { values }) => {
                Self::Values(values.into_iter().map(|value| value.value).collect())
            }
            Answer::Page(wire::Page { records, next }) => {
                let record = |wire::Record { key, value }| Record { key, value };
                Self::Page(Page { records: records.into_iter().map(record).collect(), next })
            }
        })
    }
}
