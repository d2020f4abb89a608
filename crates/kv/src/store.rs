//! The map that commands and queries work on: pure, without locks, files or positions. The rules of
//! commands and queries are in [`d_engine_kv_language::rules`].

use std::convert::Infallible;
use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;
use d_engine_kv_language::rules::{self, KvRead, KvTable, Pair, Replaced};
use d_engine_kv_language::{KvCommand, KvQuery, KvQueryReply, KvReply, QueryLimitError};
use imbl::{OrdMap, OrdSet};
use sha2::{Digest, Sha256};

use crate::blob::Blob;
use crate::snapshot_file::record_bytes;

/// A value and the log time at which it expires.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) value: Blob,
    /// UNIX milliseconds of log time; `None`: does not expire.
    pub(crate) expires_ms: Option<NonZeroU64>,
}

/// Ordered keys with their values, as of a log time. A clone is a frozen copy that costs nothing:
/// both share every leaf until one of them changes it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Store {
    map: OrdMap<Blob, Stored>,
    /// Every expiry in `map`, earliest first. The keys are shared with `map`.
    expiries: OrdSet<(NonZeroU64, Blob)>,
    /// The latest log time received.
    time_ms: u64,
    /// Total bytes of all records in a snapshot.
    content_bytes: u64,
}

/// The result of an operation that cannot fail.
fn always<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

impl Store {
    /// Advances log time at a tick: every key whose expiry is at or before it becomes absent.
    pub(crate) fn advance_to(&mut self, time_ms: u64) {
        always(rules::advance_to(self, time_ms));
    }

    /// The same for a command that cannot be decoded.
    pub(crate) fn pass_time(&mut self, time_ms: u64) {
        always(rules::pass_time(self, time_ms));
    }

    /// Executes one command at this log time.
    pub(crate) fn apply(&mut self, command: &KvCommand, time_ms: u64) -> KvReply {
        always(rules::apply(self, command, time_ms))
    }

    /// Executes a query. Values in the response are shared with the store, not copied.
    pub(crate) fn answer(&self, query: &KvQuery) -> Result<KvQueryReply, QueryLimitError> {
        always(rules::answer(self, query))
    }

    pub(crate) fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        always(rules::value(self, key)).map(Into::into)
    }

    /// Number of records, including expired ones that are not removed yet.
    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// The log time at which the next key expires.
    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.get_min().map(|(at, _)| at.get())
    }

    /// All records, in key order.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Blob, &Stored)> {
        self.map.iter()
    }

    /// A store with these records at this log time.
    pub(crate) fn from_records(records: Vec<(Blob, Stored)>, time_ms: u64) -> Self {
        let expiry = |(key, stored): &(Blob, Stored)| Some((stored.expires_ms?, key.clone()));
        let expiries = records.iter().filter_map(expiry).collect();
        let bytes = |(key, stored): &(Blob, Stored)| record_bytes(key, &stored.value);
        let content_bytes = records.iter().map(bytes).sum();
        Self { expiries, map: records.into_iter().collect(), time_ms, content_bytes }
    }

    /// SHA-256 over the log time and all records in key order, each with its lengths and expiry.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.time_ms.to_le_bytes());
        for (key, stored) in self.records() {
            for part in [key, &stored.value] {
                hash.update((part.as_ref().len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.update(stored.expires_ms.map_or(0, NonZeroU64::get).to_le_bytes());
        }
        hash.finalize().into()
    }
}

impl KvRead for Store {
    type Value = Blob;
    type Error = Infallible;

    fn stored(&self, key: &[u8]) -> Result<Option<rules::Stored<Blob>>, Infallible> {
        Ok(self.map.get(key).map(|stored| (stored.value.clone(), stored.expires_ms)))
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Blob, Infallible>>, Infallible> {
        let records = self.map.range::<_, [u8]>((from, to));
        Ok(records
            .map(|(key, stored)| Ok((key.clone(), (stored.value.clone(), stored.expires_ms)))))
    }
}

impl KvTable for Store {
    /// Keys and values are slices of the buffer that a whole batch of entries arrived in. If they
    /// were kept, one small value would keep the whole buffer in memory, so they are copied here
    /// once.
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_ms: Option<NonZeroU64>,
    ) -> Result<Replaced<Blob>, Infallible> {
        let stored = Stored { value: value.into(), expires_ms };
        self.content_bytes += record_bytes(key, value);
        if let Some(current) = self.map.get_mut(key) {
            let before = std::mem::replace(current, stored);
            self.content_bytes -= record_bytes(key, &before.value);
            return Ok(Some((before.value, before.expires_ms)));
        }
        self.map.insert(key.into(), stored);
        Ok(None)
    }

    fn remove(&mut self, key: &[u8]) -> Result<Replaced<Blob>, Infallible> {
        let before = self.map.remove(key);
        let bytes = before.as_ref().map_or(0, |before| record_bytes(key, &before.value));
        self.content_bytes -= bytes;
        Ok(before.map(|before| (before.value, before.expires_ms)))
    }

    /// Use the map's own copy of the key.
    fn note_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Infallible> {
        if let Some((held, _)) = self.map.get_key_value(key) {
            self.expiries.insert((at_ms, held.clone()));
        }
        Ok(())
    }

    fn forget_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Infallible> {
        self.expiries.remove(&(at_ms, Blob::from(key)));
        Ok(())
    }

    fn first_expiry(&self) -> Result<Option<(NonZeroU64, Blob)>, Infallible> {
        Ok(self.expiries.get_min().cloned())
    }

    fn set_time_ms(&mut self, time_ms: u64) -> Result<(), Infallible> {
        self.time_ms = time_ms;
        Ok(())
    }
}

#[cfg(test)]
mod query_tests;
#[cfg(test)]
mod tests;
