//! The tables that commands and questions work on. They only move data; what a command means is in
//! `d_engine_proto::key_value::rules`.

use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;
use d_engine_proto::key_value::rules::{KvRead, KvTable, Pair, Replaced};
use d_engine_proto::key_value::snapshot_file::record_bytes;
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    WriteTransaction,
};

use crate::error::Failure;
use crate::state::State;

/// Key → when it vanishes (UNIX milliseconds of log time; 0: never) and its value.
type Records = TableDefinition<'static, &'static [u8], (u64, &'static [u8])>;
const RECORDS: Records = TableDefinition::new("records");
/// When it vanishes and key, in the order in which they vanish.
const EXPIRIES: TableDefinition<'static, (u64, &'static [u8]), ()> = TableDefinition::new("expiries");

/// The tables in a transaction that changes them.
pub(crate) struct Tables<'txn> {
    records: Table<'txn, &'static [u8], (u64, &'static [u8])>,
    expiries: Table<'txn, (u64, &'static [u8]), ()>,
    /// The log time; whoever ends the transaction stores it.
    time_ms: u64,
    /// Bytes of all records in a snapshot; stored likewise.
    content_bytes: u64,
}

impl<'txn> Tables<'txn> {
    /// The tables, made if they are missing, at this log time.
    pub(crate) fn open(transaction: &'txn WriteTransaction, state: &State) -> Result<Self, Failure> {
        let records = transaction.open_table(RECORDS)?;
        let expiries = transaction.open_table(EXPIRIES)?;
        Ok(Self { records, expiries, time_ms: state.time_ms, content_bytes: state.content_bytes })
    }

    /// Bytes of all records in a snapshot.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// A record was replaced or removed.
    fn lose(&mut self, key: &[u8], before: &Replaced<Bytes>) {
        let bytes = before.as_ref().map_or(0, |(value, _)| record_bytes(key, value));
        self.content_bytes = self.content_bytes.saturating_sub(bytes);
    }
}

/// The records of one moment.
pub(crate) struct FrozenRecords(ReadOnlyTable<&'static [u8], (u64, &'static [u8])>);

impl FrozenRecords {
    pub(crate) fn open(transaction: &ReadTransaction) -> Result<Self, Failure> {
        Ok(Self(transaction.open_table(RECORDS)?))
    }

    pub(crate) fn len(&self) -> Result<u64, Failure> {
        Ok(self.0.len()?)
    }

    /// Gives every record in the order of the keys, with when it vanishes, until `each` fails.
    pub(crate) fn try_for_each<E: From<Failure>>(
        &self,
        mut each: impl FnMut(&[u8], &[u8], Option<NonZeroU64>) -> Result<(), E>,
    ) -> Result<(), E> {
        for record in self.0.iter().map_err(Failure::from)? {
            let (key, stored) = record.map_err(Failure::from)?;
            let (expires_ms, value) = stored.value();
            each(key.value(), value, NonZeroU64::new(expires_ms))?;
        }
        Ok(())
    }
}

/// When the first record vanishes, in UNIX milliseconds of log time.
pub(crate) fn first_expiry_ms(transaction: &ReadTransaction) -> Result<Option<u64>, Failure> {
    Ok(transaction.open_table(EXPIRIES)?.first()?.map(|(noted, _)| noted.value().0))
}

fn value_in(
    records: &impl ReadableTable<&'static [u8], (u64, &'static [u8])>,
    key: &[u8],
) -> Result<Option<Bytes>, Failure> {
    Ok(records.get(key)?.map(|stored| Bytes::copy_from_slice(stored.value().1)))
}

fn between_in(
    records: &impl ReadableTable<&'static [u8], (u64, &'static [u8])>,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
    let range = records.range::<&[u8]>((from, to))?;
    Ok(range.map(|record| {
        let (key, stored) = record?;
        Ok((Bytes::copy_from_slice(key.value()), Bytes::copy_from_slice(stored.value().1)))
    }))
}

impl KvRead for FrozenRecords {
    type Value = Bytes;
    type Error = Failure;

    fn value(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        value_in(&self.0, key)
    }

    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
        between_in(&self.0, from, to)
    }
}

impl KvRead for Tables<'_> {
    type Value = Bytes;
    type Error = Failure;

    fn value(&self, key: &[u8]) -> Result<Option<Bytes>, Failure> {
        value_in(&self.records, key)
    }

    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
        between_in(&self.records, from, to)
    }
}

/// What a table held, copied out of the page that is about to change.
fn replaced(stored: (u64, &[u8])) -> (Bytes, Option<NonZeroU64>) {
    (Bytes::copy_from_slice(stored.1), NonZeroU64::new(stored.0))
}

impl KvTable for Tables<'_> {
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_ms: Option<NonZeroU64>,
    ) -> Result<Replaced<Bytes>, Failure> {
        let stored = (expires_ms.map_or(0, NonZeroU64::get), value);
        let before = self.records.insert(key, stored)?.map(|before| replaced(before.value()));
        self.content_bytes = self.content_bytes.saturating_add(record_bytes(key, value));
        self.lose(key, &before);
        Ok(before)
    }

    fn remove(&mut self, key: &[u8]) -> Result<Replaced<Bytes>, Failure> {
        let before = self.records.remove(key)?.map(|before| replaced(before.value()));
        self.lose(key, &before);
        Ok(before)
    }

    fn note_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Failure> {
        self.expiries.insert((at_ms.get(), key), ())?;
        Ok(())
    }

    fn forget_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Failure> {
        self.expiries.remove((at_ms.get(), key))?;
        Ok(())
    }

    fn first_expiry(&self) -> Result<Option<(NonZeroU64, Bytes)>, Failure> {
        let first = self.expiries.first()?;
        Ok(first.and_then(|(noted, _)| {
            let (at, key) = noted.value();
            Some((NonZeroU64::new(at)?, Bytes::copy_from_slice(key)))
        }))
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn set_time_ms(&mut self, time_ms: u64) -> Result<(), Failure> {
        self.time_ms = time_ms;
        Ok(())
    }
}
