//! Questions and their answers: several keys of one state, and scans in pages.

use bytes::Bytes;

use super::{UndecodableError, readable};
use crate::Message as _;
use crate::kv::{self as wire, FORMAT_VERSION, kv_answer::Answer, kv_query::Question};

/// Keys that one question may ask for.
pub const GET_MANY_KEYS_MAX: usize = 10_000;
/// Bytes of values in the answer to one such question: 16 MiB.
pub const GET_MANY_BYTES_MAX: usize = 16 << 20;
/// Records in a page of a scan that does not say how many.
pub const SCAN_LIMIT_DEFAULT: u32 = 1_000;
/// Records that a page may have.
pub const SCAN_LIMIT_MAX: u32 = 10_000;
/// Bytes of keys and values after which a page ends: 1 MiB. A single record may have more.
pub const SCAN_PAGE_BYTES: usize = 1 << 20;

/// What can be asked of the key-value machine beside the value of one key.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvQuery {
    /// The values under several keys, all of one applied state. At most [`GET_MANY_KEYS_MAX`].
    GetMany {
        /// The keys, in any order.
        keys: Vec<Bytes>,
    },
    /// One page of the records in the order of their keys.
    Scan(Scan),
}

/// Which keys a scan is about.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Keys {
    /// Every key.
    #[default]
    All,
    /// Those that begin so.
    Prefix(Bytes),
    /// Those from `start` on, and below `end`; nothing if `end` is not above `start`.
    Range {
        /// The first key that may be in it.
        start: Bytes,
        /// The first key behind it; `None`: there is none.
        end: Option<Bytes>,
    },
}

/// A scan, in the order of the keys. Each page is of one applied state; two pages may be of different ones.
///
/// ```
/// use d_engine_proto::key_value::Scan;
/// let scan = Scan::prefix("service/").limit(100).keys_only();
/// # let _ = scan;
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Scan {
    /// Which keys.
    pub keys: Keys,
    /// Only keys behind this one: [`Page::next`] of the page before.
    pub after: Option<Bytes>,
    /// Records in the page; 0: [`SCAN_LIMIT_DEFAULT`]. At most [`SCAN_LIMIT_MAX`].
    pub limit: u32,
    /// Whether values are left out.
    pub keys_only: bool,
}

/// An answer to a [`KvQuery`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvAnswer {
    /// To [`KvQuery::GetMany`]: the values in the order of the keys; `None`: the key has none.
    Values(Vec<Option<Bytes>>),
    /// To [`KvQuery::Scan`].
    Page(Page),
}

/// One page of a scan.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The records, in the order of their keys.
    pub records: Vec<Record>,
    /// Where to go on ([`Scan::after`]); `None`: this is the last page. A page ends at its limit, or when
    /// it has about [`SCAN_PAGE_BYTES`]; it has at least one record if there is one.
    pub next: Option<Bytes>,
}

/// A key with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// Its value; `None` when the scan left values out.
    pub value: Option<Bytes>,
}

/// A question that would cost too much. Ask for less at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryLimitError {
    /// Too many keys.
    #[error("the question has {keys} keys; at most {GET_MANY_KEYS_MAX} are answered at once")]
    Keys {
        /// Keys in the question.
        keys: usize,
    },
    /// The values together are too long.
    #[error("the values have more than {GET_MANY_BYTES_MAX} bytes together; ask for fewer keys at once")]
    Bytes,
    /// The limit of a scan is too high.
    #[error("the scan asks for {limit} records in a page; at most {SCAN_LIMIT_MAX} are given")]
    Records {
        /// The limit in the question.
        limit: u32,
    },
}

impl Scan {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// The keys that begin with `prefix`.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        Self { keys: Keys::Prefix(prefix.into()), ..Self::default() }
    }

    /// The keys from `start` on, below `end` if there is one.
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

    /// Leaves values out.
    #[must_use]
    pub fn keys_only(mut self) -> Self {
        self.keys_only = true;
        self
    }
}

impl KvQuery {
    /// The values under several keys.
    #[must_use]
    pub fn get_many(keys: impl IntoIterator<Item = impl Into<Bytes>>) -> Self {
        Self::GetMany { keys: keys.into_iter().map(Into::into).collect() }
    }

    /// The bytes to ask with.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let question = match self.clone() {
            Self::GetMany { keys } => Question::GetMany(wire::GetMany { keys }),
            Self::Scan(Scan { keys, after, limit, keys_only }) => {
                let keys = match keys {
                    Keys::All => None,
                    Keys::Prefix(prefix) => Some(wire::scan::Keys::Prefix(prefix)),
                    Keys::Range { start, end } => Some(wire::scan::Keys::Range(wire::Range { start, end })),
                };
                Question::Scan(wire::Scan { keys, after, limit, keys_only })
            }
        };
        wire::KvQuery { format: FORMAT_VERSION, question: Some(question) }.encode_to_vec().into()
    }

    /// Reads what [`KvQuery::encode`] wrote.
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
                    Some(wire::scan::Keys::Range(wire::Range { start, end })) => Keys::Range { start, end },
                };
                Self::Scan(Scan { keys, after, limit, keys_only })
            }
        })
    }

    /// Whether the question keeps within the limits on keys and records.
    ///
    /// # Errors
    /// [`QueryLimitError`] names what was asked for and what is allowed.
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

impl KvAnswer {
    /// The bytes of the answer.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let answer = match self.clone() {
            Self::Values(values) => {
                let values = values.into_iter().map(|value| wire::Value { value }).collect();
                Answer::Values(wire::Values { values })
            }
            Self::Page(Page { records, next }) => {
                let record = |Record { key, value }| wire::Record { key, value };
                Answer::Page(wire::Page { records: records.into_iter().map(record).collect(), next })
            }
        };
        wire::KvAnswer { format: FORMAT_VERSION, answer: Some(answer) }.encode_to_vec().into()
    }

    /// Reads the answer to a question. Keys and values are slices of `data`.
    ///
    /// # Errors
    /// See [`UndecodableError`]: the node is of another version, or runs another state machine.
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let answer = wire::KvAnswer::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
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
