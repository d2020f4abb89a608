//! The effects of commands and log time on an ordered table, and the results of queries. The
//! functions are pure and shared by all machines, so that a machine in memory and one on disk
//! cannot diverge.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;

use crate::{
    GET_MANY_BYTES_MAX, Keys, KvCommand, KvOperation, KvQuery, KvQueryReply, KvReply, Page,
    QueryLimitError, Record, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};

/// A value and its expiry, in UNIX milliseconds of log time.
pub type Stored<V> = (V, Option<NonZeroU64>);

/// A key and its stored value, or why they could not be read.
pub type Pair<V, E> = Result<(V, Stored<V>), E>;

/// The maximum number of expired records that one command removes before it executes. Further
/// expired records stay stored but are absent for all queries and commands. Every replica must
/// remove alike, so both numbers are part of the format.
pub const EXPIRIES_PER_COMMAND_MAX: usize = 32;
/// The same for a tick.
pub const EXPIRIES_PER_TICK_MAX: usize = 1_000;

/// A table for queries: one state, which does not change while it is read. It returns expired
/// records too; this module decides that they are absent.
pub trait KvRead {
    /// A key or a value, owned.
    type Value: AsRef<[u8]> + Into<Bytes>;
    /// Why the table could not be read. A table in memory has none ([`std::convert::Infallible`]).
    type Error;

    /// Returns the stored value of a key.
    ///
    /// # Errors
    /// The table could not be read.
    fn stored(&self, key: &[u8]) -> Result<Option<Stored<Self::Value>>, Self::Error>;

    /// Returns the stored log time, in UNIX milliseconds.
    fn time_ms(&self) -> u64;

    /// Returns keys and stored values between two bounds, in order. The bounds are not empty or
    /// inverted.
    ///
    /// # Errors
    /// The table could not be read.
    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Self::Value, Self::Error>>, Self::Error>;
}

/// A value that was replaced, and its expiry.
pub type Replaced<V> = Option<Stored<V>>;

/// A table for commands: records, their order of expiry, and the log time. It only moves data; this
/// module alone decides what a command means.
pub trait KvTable: KvRead {
    /// Sets a value and its expiry, in UNIX milliseconds of log time; returns the previous value
    /// and expiry.
    ///
    /// # Errors
    /// The table could not be read or written. Here and below, the effects of the command so far
    /// must then not become visible.
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_ms: Option<NonZeroU64>,
    ) -> Result<Replaced<Self::Value>, Self::Error>;

    /// Removes a record; returns its value and expiry.
    ///
    /// # Errors
    /// The table could not be read or written.
    fn remove(&mut self, key: &[u8]) -> Result<Replaced<Self::Value>, Self::Error>;

    /// Adds the expiry of a key of the table to the order of expiry.
    ///
    /// # Errors
    /// The table could not be written.
    fn note_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Self::Error>;

    /// Removes an expiry from the order of expiry. The key need not be in the table any more.
    ///
    /// # Errors
    /// The table could not be written.
    fn forget_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Self::Error>;

    /// Returns the first expiry and its key; among equal expiries, the smallest key.
    ///
    /// # Errors
    /// The table could not be read.
    fn first_expiry(&self) -> Result<Option<(NonZeroU64, Self::Value)>, Self::Error>;

    /// Stores the log time.
    ///
    /// # Errors
    /// The table could not be written.
    fn set_time_ms(&mut self, time_ms: u64) -> Result<(), Self::Error>;
}

/// Advances log time at a tick: every key with an expiry up to it is absent from then on. Log time
/// never goes back, so an earlier time changes nothing.
///
/// # Errors
/// The table failed.
pub fn advance_to<T: KvTable>(table: &mut T, time_ms: u64) -> Result<(), T::Error> {
    advance(table, time_ms, EXPIRIES_PER_TICK_MAX)
}

/// Advances log time at a command, including one that cannot be decoded.
///
/// # Errors
/// The table failed.
pub fn pass_time<T: KvTable>(table: &mut T, time_ms: u64) -> Result<(), T::Error> {
    advance(table, time_ms, EXPIRIES_PER_COMMAND_MAX)
}

fn advance<T: KvTable>(table: &mut T, time_ms: u64, removals_max: usize) -> Result<(), T::Error> {
    if time_ms > table.time_ms() {
        table.set_time_ms(time_ms)?;
    }
    for _ in 0..removals_max {
        let Some((at, key)) = table.first_expiry()? else { break };
        if at.get() > table.time_ms() {
            break;
        }
        table.forget_expiry(at, key.as_ref())?;
        table.remove(key.as_ref())?;
    }
    Ok(())
}

/// Returns the value of a record at this log time: `None` once it has expired, whether it was
/// removed or not.
fn present<V>(stored: Option<Stored<V>>, time_ms: u64) -> Option<V> {
    let (value, expires_ms) = stored?;
    expires_ms.is_none_or(|at| at.get() > time_ms).then_some(value)
}

/// Returns the value of a key.
///
/// # Errors
/// The table failed.
pub fn value<T: KvRead>(table: &T, key: &[u8]) -> Result<Option<T::Value>, T::Error> {
    Ok(present(table.stored(key)?, table.time_ms()))
}

/// Executes one command at this log time, after everything that expires by then.
///
/// # Errors
/// The table failed; a part of the command may have been executed.
pub fn apply<T: KvTable>(
    table: &mut T,
    command: &KvCommand,
    time_ms: u64,
) -> Result<KvReply, T::Error> {
    pass_time(table, time_ms)?;
    Ok(match command {
        KvCommand::Single(operation) => match compare(table, operation, None)? {
            Err(current) => KvReply::CompareFailed { current },
            Ok(()) => KvReply::Done { existed: carry_out(table, operation)?.is_some() },
        },
        KvCommand::PutReturning { key, value, ttl_ms } => {
            KvReply::Replaced { previous: put(table, key, value, *ttl_ms)?.map(Into::into) }
        }
        KvCommand::Batch(operations) => apply_batch(table, operations)?,
    })
}

/// All or nothing: first every compare, against the effects of the operations before it; then the
/// changes.
fn apply_batch<T: KvTable>(table: &mut T, operations: &[KvOperation]) -> Result<KvReply, T::Error> {
    let mut so_far: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
    for (operation, number) in operations.iter().zip(0..) {
        if let Err(current) = compare(table, operation, Some(&so_far))? {
            return Ok(KvReply::BatchFailed { operation: number, current });
        }
        let (key, value) = outcome(operation);
        so_far.insert(key, value);
    }
    let mut existed = Vec::with_capacity(operations.len());
    for operation in operations {
        existed.push(carry_out(table, operation)?.is_some());
    }
    Ok(KvReply::BatchDone { existed })
}

/// Compares the expected value of an operation, if it has one; returns the current value if they
/// differ. `so_far` has the effects of the operations before it in a batch.
fn compare<T: KvRead>(
    table: &T,
    operation: &KvOperation,
    so_far: Option<&BTreeMap<&Bytes, Option<&Bytes>>>,
) -> Result<Result<(), Option<Bytes>>, T::Error> {
    let KvOperation::CompareAndSwap { key, expected, .. } = operation else { return Ok(Ok(())) };
    if let Some(current) = so_far.and_then(|so_far| so_far.get(key)) {
        return Ok(if *current == expected.as_ref() { Ok(()) } else { Err(current.cloned()) });
    }
    let current = value(table, key)?;
    let is_expected = current.as_ref().map(AsRef::as_ref) == expected.as_deref();
    Ok(if is_expected { Ok(()) } else { Err(current.map(Into::into)) })
}

/// Changes one key after its compare succeeded; returns the previous value.
fn carry_out<T: KvTable>(
    table: &mut T,
    operation: &KvOperation,
) -> Result<Option<T::Value>, T::Error> {
    match operation {
        KvOperation::Put { key, value, ttl_ms } => put(table, key, value, *ttl_ms),
        KvOperation::CompareAndSwap { key, value: Some(value), .. } => put(table, key, value, None),
        KvOperation::Delete { key } | KvOperation::CompareAndSwap { key, .. } => delete(table, key),
    }
}

fn put<T: KvTable>(
    table: &mut T,
    key: &Bytes,
    value: &Bytes,
    ttl_ms: Option<NonZeroU64>,
) -> Result<Option<T::Value>, T::Error> {
    let expires_ms = ttl_ms.map(|ttl| ttl.saturating_add(table.time_ms()));
    let before = table.insert(key, value, expires_ms)?;
    let noted_ms = before.as_ref().and_then(|(_, at)| *at);
    if noted_ms != expires_ms {
        // A refreshed key must not expire by its previous expiry.
        if let Some(at) = noted_ms {
            table.forget_expiry(at, key)?;
        }
        if let Some(at) = expires_ms {
            table.note_expiry(at, key)?;
        }
    }
    Ok(present(before, table.time_ms()))
}

fn delete<T: KvTable>(table: &mut T, key: &Bytes) -> Result<Option<T::Value>, T::Error> {
    let before = table.remove(key)?;
    if let Some(at) = before.as_ref().and_then(|(_, at)| *at) {
        table.forget_expiry(at, key)?;
    }
    Ok(present(before, table.time_ms()))
}

/// Returns the key that an operation changes, and its value afterwards.
fn outcome(operation: &KvOperation) -> (&Bytes, Option<&Bytes>) {
    match operation {
        KvOperation::Put { key, value, .. } => (key, Some(value)),
        KvOperation::CompareAndSwap { key, value, .. } => (key, value.as_ref()),
        KvOperation::Delete { key } => (key, None),
    }
}

/// Executes a query on one state, or returns the limit that it exceeds.
///
/// # Errors
/// The table failed.
pub fn answer<T: KvRead>(
    table: &T,
    query: &KvQuery,
) -> Result<Result<KvQueryReply, QueryLimitError>, T::Error> {
    if let Err(limit) = query.check() {
        return Ok(Err(limit));
    }
    match query {
        KvQuery::Scan(scan) => Ok(Ok(KvQueryReply::Page(page(table, scan)?))),
        KvQuery::GetMany { keys } => Ok(get_many(table, keys)?.map(KvQueryReply::Values)),
    }
}

type Values = Vec<Option<Bytes>>;

fn get_many<T: KvRead>(
    table: &T,
    keys: &[Bytes],
) -> Result<Result<Values, QueryLimitError>, T::Error> {
    let mut bytes = 0;
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let value = value(table, key)?;
        bytes += value.as_ref().map_or(0, |value| value.as_ref().len());
        if bytes > GET_MANY_BYTES_MAX {
            return Ok(Err(QueryLimitError::Bytes));
        }
        values.push(value.map(Into::into));
    }
    Ok(Ok(values))
}

/// Returns one page of a scan. [`answer`] has checked the limits.
///
/// # Errors
/// The table failed.
pub fn page<T: KvRead>(table: &T, scan: &Scan) -> Result<Page, T::Error> {
    let limit =
        if scan.limit == 0 { SCAN_LIMIT_DEFAULT } else { scan.limit.min(SCAN_LIMIT_MAX) } as usize;
    let behind_prefix;
    let (start, end): (&[u8], Option<&[u8]>) = match &scan.keys {
        Keys::Prefix(prefix) => {
            behind_prefix = first_behind(prefix);
            (prefix, behind_prefix.as_deref())
        }
        Keys::Range { start, end } => (start, end.as_deref()),
        Keys::All => (&[], None),
    };
    let (from, first) = match &scan.after {
        Some(after) if **after >= *start => (Bound::Excluded(&**after), &**after),
        _ => (Bound::Included(start), start),
    };
    let mut page = Page::default();
    // Ordered maps panic on inverted bounds.
    if end.is_some_and(|end| first >= end) {
        return Ok(page);
    }
    let mut bytes = 0;
    for record in table.between(from, end.map_or(Bound::Unbounded, Bound::Excluded))? {
        let (key, stored) = record?;
        let Some(value) = present(Some(stored), table.time_ms()) else { continue };
        if page.records.len() >= limit || bytes >= SCAN_PAGE_BYTES {
            page.next = page.records.last().map(|record| record.key.clone());
            break;
        }
        let value: Option<Bytes> = (!scan.keys_only).then(|| value.into());
        bytes += key.as_ref().len() + value.as_ref().map_or(0, Bytes::len);
        page.records.push(Record { key: key.into(), value });
    }
    Ok(page)
}

/// Returns the first key after all that begin with `prefix`; `None` if there is none.
fn first_behind(prefix: &[u8]) -> Option<Vec<u8>> {
    // Increments the last byte that can be incremented and drops the bytes after it.
    let at = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut behind = prefix.get(..=at)?.to_vec();
    *behind.last_mut()? += 1;
    Some(behind)
}
