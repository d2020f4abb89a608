//! The tables that commands and queries work on. They only move data; the rules of commands are in
//! [`d_engine_kv_language::rules`].

use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;
use d_engine_kv::snapshot_file::record_bytes;
use d_engine_kv_language::rules::{KvRead, KvTable, Pair, Replaced, Stored};
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition,
    WriteTransaction,
};

use crate::error::Failure;
use crate::state::State;

/// For each key: its expiry (UNIX milliseconds of log time; 0: does not expire), the CRC-32C over
/// key, expiry and value, and the value. The database also has checksums over whole pages, which it
/// verifies on request and not when it reads.
type Value = (u64, u32, &'static [u8]);
type Records = TableDefinition<'static, &'static [u8], Value>;
const RECORDS: Records = TableDefinition::new("records");
/// (Expiry, key) in expiry order → CRC-32C over both.
const EXPIRIES: TableDefinition<'static, (u64, &'static [u8]), u32> =
    TableDefinition::new("expiries");

/// The checksum of a record, or of an expiry if the value is empty.
fn checksum(key: &[u8], expires_ms: u64, value: &[u8]) -> u32 {
    let mut sum = crc32c::crc32c(&(key.len() as u64).to_le_bytes());
    for part in [key, &expires_ms.to_le_bytes(), value] {
        sum = crc32c::crc32c_append(sum, part);
    }
    sum
}

/// The contents of a record whose checksum matches.
fn checked<'a>(
    key: &[u8],
    stored: (u64, u32, &'a [u8]),
) -> Result<(&'a [u8], Option<NonZeroU64>), Failure> {
    let (expires_ms, expected, value) = stored;
    let found = checksum(key, expires_ms, value);
    if found == expected {
        return Ok((value, NonZeroU64::new(expires_ms)));
    }
    let key = key.escape_ascii();
    Err(Failure::Damaged(format!(
        "the record of \"{key}\" has checksum {found:08x}, not {expected:08x}"
    )))
}

/// The key of an expiry whose checksum matches.
fn checked_expiry(
    (at_ms, key): (u64, &[u8]),
    expected: u32,
) -> Result<(NonZeroU64, &[u8]), Failure> {
    let found = checksum(key, at_ms, &[]);
    match NonZeroU64::new(at_ms).filter(|_| found == expected) {
        Some(at_ms) => Ok((at_ms, key)),
        None => {
            let key = key.escape_ascii();
            Err(Failure::Damaged(format!(
                "the expiry of \"{key}\" has checksum {found:08x}, not {expected:08x}"
            )))
        }
    }
}

/// The previous contents of a record that is replaced or removed, copied out of the page before it
/// changes.
fn replaced(key: &[u8], stored: (u64, u32, &[u8])) -> Result<Stored<Bytes>, Failure> {
    let (value, expires_ms) = checked(key, stored)?;
    Ok((Bytes::copy_from_slice(value), expires_ms))
}

/// The tables in a write transaction.
pub(crate) struct Tables<'txn> {
    records: Table<'txn, &'static [u8], Value>,
    expiries: Table<'txn, (u64, &'static [u8]), u32>,
    /// The log time; the code that ends the transaction stores it.
    time_ms: u64,
    /// Bytes of all records in a snapshot; stored likewise.
    content_bytes: u64,
}

impl<'txn> Tables<'txn> {
    /// The tables, made if they are missing, at this log time.
    pub(crate) fn open(
        transaction: &'txn WriteTransaction,
        state: &State,
    ) -> Result<Self, Failure> {
        let records = transaction.open_table(RECORDS)?;
        let expiries = transaction.open_table(EXPIRIES)?;
        Ok(Self { records, expiries, time_ms: state.time_ms, content_bytes: state.content_bytes })
    }

    /// Bytes of all records in a snapshot.
    pub(crate) fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Accounts for a record that was replaced or removed.
    fn lose(&mut self, key: &[u8], before: Option<&Stored<Bytes>>) {
        let bytes = before.map_or(0, |(value, _)| record_bytes(key, value));
        self.content_bytes = self.content_bytes.saturating_sub(bytes);
    }
}

/// Whether the database has just verified its page checksums. Otherwise a damaged separator above
/// the records may hide some records from a lookup by key but not from a full scan, so the scan
/// also looks up each key.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    Checked,
    Unchecked,
}

fn not_found(what: &str, key: &[u8]) -> Failure {
    Failure::Damaged(format!("the {what} of \"{}\" is not found by its key", key.escape_ascii()))
}

/// The records at one moment.
pub(crate) struct FrozenRecords {
    records: ReadOnlyTable<&'static [u8], Value>,
    expiries: ReadOnlyTable<(u64, &'static [u8]), u32>,
    time_ms: u64,
}

impl FrozenRecords {
    /// The records of a transaction, as of this log time.
    pub(crate) fn open(transaction: &ReadTransaction, time_ms: u64) -> Result<Self, Failure> {
        let records = transaction.open_table(RECORDS)?;
        Ok(Self { records, expiries: transaction.open_table(EXPIRIES)?, time_ms })
    }

    pub(crate) fn len(&self) -> Result<u64, Failure> {
        Ok(self.records.len()?)
    }

    /// Passes every record with its expiry to `each`, in key order, until `each` fails. Also
    /// verifies the order and the number of records, because a damaged page above the records loses
    /// records without changing any.
    pub(crate) fn try_for_each<E: From<Failure>>(
        &self,
        mut each: impl FnMut(&[u8], &[u8], Option<NonZeroU64>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = self.len()?;
        let mut before: Option<Vec<u8>> = None;
        for record in self.records.iter().map_err(Failure::from)? {
            let (key, stored) = record.map_err(Failure::from)?;
            let key = key.value();
            let (value, expires_ms) = checked(key, stored.value())?;
            let is_next = before.as_deref().is_none_or(|before| before < key);
            left = left.checked_sub(1).filter(|_| is_next).ok_or_else(|| {
                Failure::Damaged(format!(
                    "the record of \"{}\" is out of order or surplus",
                    key.escape_ascii()
                ))
            })?;
            let copy = before.get_or_insert_default();
            copy.clear();
            copy.extend_from_slice(key);
            each(key, value, expires_ms)?;
        }
        match left {
            0 => Ok(()),
            left => Err(Failure::Damaged(format!("{left} records are missing")).into()),
        }
    }

    /// Reads all records and expiries and compares the totals with the stored ones, until `goes_on`
    /// returns a reason to stop.
    pub(crate) fn verify<E: From<Failure>>(
        &self,
        content_bytes: u64,
        pages: Pages,
        goes_on: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut bytes, mut expiring) = (0_u64, 0_u64);
        self.try_for_each(|key, value, expires_ms| {
            bytes = bytes.saturating_add(record_bytes(key, value));
            expiring += u64::from(expires_ms.is_some());
            if pages == Pages::Unchecked && self.records.get(key).map_err(Failure::from)?.is_none()
            {
                return Err(not_found("record", key).into());
            }
            goes_on()
        })?;
        let noted = self.verify_expiries(pages, goes_on)?;
        if (bytes, expiring) != (content_bytes, noted) {
            return Err(Failure::Damaged(format!(
                "{bytes} bytes of records with {expiring} expiries were found, but {content_bytes} \
                 and {noted} are noted"
            ))
            .into());
        }
        Ok(())
    }

    /// Reads all expiries in order; returns their number.
    fn verify_expiries<E: From<Failure>>(
        &self,
        pages: Pages,
        goes_on: impl Fn() -> Result<(), E>,
    ) -> Result<u64, E> {
        let (mut noted, mut before) = (0_u64, None);
        for entry in self.expiries.iter().map_err(Failure::from)? {
            let (key, expected) = entry.map_err(Failure::from)?;
            let (at_ms, key) = checked_expiry(key.value(), expected.value())?;
            let this = Some((at_ms, key.to_vec()));
            if before >= this {
                let key = key.escape_ascii();
                return Err(Failure::Damaged(format!("the expiry of \"{key}\" is surplus")).into());
            }
            if pages == Pages::Unchecked
                && self.expiries.get((at_ms.get(), key)).map_err(Failure::from)?.is_none()
            {
                return Err(not_found("expiry", key).into());
            }
            (before, noted) = (this, noted + 1);
            goes_on()?;
        }
        match self.expiries.len().map_err(Failure::from)? {
            len if len == noted => Ok(noted),
            len => Err(Failure::Damaged(format!("{noted} of {len} expiries were found")).into()),
        }
    }
}

/// When the first record expires, in UNIX milliseconds of log time.
pub(crate) fn first_expiry_ms(transaction: &ReadTransaction) -> Result<Option<u64>, Failure> {
    first_in(&transaction.open_table(EXPIRIES)?).map(|first| first.map(|(at, _)| at.get()))
}

fn first_in(
    expiries: &impl ReadableTable<(u64, &'static [u8]), u32>,
) -> Result<Option<(NonZeroU64, Bytes)>, Failure> {
    let Some((noted, expected)) = expiries.first()? else { return Ok(None) };
    let (at, key) = checked_expiry(noted.value(), expected.value())?;
    Ok(Some((at, Bytes::copy_from_slice(key))))
}

fn stored_in(
    records: &impl ReadableTable<&'static [u8], Value>,
    key: &[u8],
) -> Result<Option<Stored<Bytes>>, Failure> {
    records.get(key)?.map(|stored| replaced(key, stored.value())).transpose()
}

fn between_in(
    records: &impl ReadableTable<&'static [u8], Value>,
    from: Bound<&[u8]>,
    to: Bound<&[u8]>,
) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
    let range = records.range::<&[u8]>((from, to))?;
    Ok(range.map(|record| {
        let (key, stored) = record?;
        Ok((Bytes::copy_from_slice(key.value()), replaced(key.value(), stored.value())?))
    }))
}

impl KvRead for FrozenRecords {
    type Value = Bytes;
    type Error = Failure;

    fn stored(&self, key: &[u8]) -> Result<Option<Stored<Bytes>>, Failure> {
        stored_in(&self.records, key)
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
        between_in(&self.records, from, to)
    }
}

impl KvRead for Tables<'_> {
    type Value = Bytes;
    type Error = Failure;

    fn stored(&self, key: &[u8]) -> Result<Option<Stored<Bytes>>, Failure> {
        stored_in(&self.records, key)
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Bytes, Failure>>, Failure> {
        between_in(&self.records, from, to)
    }
}

impl KvTable for Tables<'_> {
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_ms: Option<NonZeroU64>,
    ) -> Result<Replaced<Bytes>, Failure> {
        let expires_ms = expires_ms.map_or(0, NonZeroU64::get);
        let stored = (expires_ms, checksum(key, expires_ms, value), value);
        let before = self
            .records
            .insert(key, stored)?
            .map(|before| replaced(key, before.value()))
            .transpose()?;
        self.content_bytes = self.content_bytes.saturating_add(record_bytes(key, value));
        self.lose(key, before.as_ref());
        Ok(before)
    }

    fn remove(&mut self, key: &[u8]) -> Result<Replaced<Bytes>, Failure> {
        let before =
            self.records.remove(key)?.map(|before| replaced(key, before.value())).transpose()?;
        self.lose(key, before.as_ref());
        Ok(before)
    }

    fn note_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Failure> {
        self.expiries.insert((at_ms.get(), key), checksum(key, at_ms.get(), &[]))?;
        Ok(())
    }

    fn forget_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Failure> {
        self.expiries.remove((at_ms.get(), key))?;
        Ok(())
    }

    fn first_expiry(&self) -> Result<Option<(NonZeroU64, Bytes)>, Failure> {
        first_in(&self.expiries)
    }

    fn set_time_ms(&mut self, time_ms: u64) -> Result<(), Failure> {
        self.time_ms = time_ms;
        Ok(())
    }
}
