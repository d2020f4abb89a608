//! What commands and log time do to an ordered table, and what questions read from it: pure, and written once for
//! every machine, so that one in memory and one on disk cannot come to differ.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;

use super::{
    GET_MANY_BYTES_MAX, Keys, KvAnswer, KvCommand, KvOperation, KvQuery, KvReply, Page, QueryLimitError,
    Record, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};

/// A value, and when it vanishes, in UNIX milliseconds of log time.
pub type Stored<V> = (V, Option<NonZeroU64>);

/// A key and what is stored under it, or why they could not be read.
pub type Pair<V, E> = Result<(V, Stored<V>), E>;

/// Records that one command removes because their time is over, before its own work. What is due beyond that is absent
/// all the same: no question and no command sees it. Every replica must remove alike, so both numbers are part of
/// the format.
pub const EXPIRIES_PER_COMMAND_MAX: usize = 32;
/// The same of a tick.
pub const EXPIRIES_PER_TICK_MAX: usize = 1_000;

/// A table as questions see it: one state, which does not change while it is read. It gives what is due like anything
/// else; what that means is decided in this module.
pub trait KvRead {
    /// A key or a value, owned.
    type Value: AsRef<[u8]> + Into<Bytes>;
    /// Why the table could not be read. A table in memory has none ([`std::convert::Infallible`]).
    type Error;

    /// What is stored under a key.
    ///
    /// # Errors
    /// The table could not be read.
    fn stored(&self, key: &[u8]) -> Result<Option<Stored<Self::Value>>, Self::Error>;

    /// The latest log time that was told, in UNIX milliseconds.
    fn time_ms(&self) -> u64;

    /// Keys and what is stored under them between two bounds, in order. The bounds leave something between them.
    ///
    /// # Errors
    /// The table could not be read.
    fn between(
        &self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> Result<impl Iterator<Item = Pair<Self::Value, Self::Error>>, Self::Error>;
}

/// A value that a change has taken the place of, and when it would have vanished.
pub type Replaced<V> = Option<Stored<V>>;

/// A table as commands see it: records, the order in which they vanish, and the log time. Only moves data; what a
/// command means is decided in this module alone.
pub trait KvTable: KvRead {
    /// Sets a value and when it vanishes, in UNIX milliseconds of log time; returns what was there.
    ///
    /// # Errors
    /// As of [`KvTable::set_time_ms`], here and below: the table could not be read or written, and what the command
    /// has done so far must not become visible.
    fn insert(
        &mut self,
        key: &[u8],
        value: &[u8],
        expires_ms: Option<NonZeroU64>,
    ) -> Result<Replaced<Self::Value>, Self::Error>;

    /// Removes a record; returns what was there.
    ///
    /// # Errors
    /// The table could not be read or written.
    fn remove(&mut self, key: &[u8]) -> Result<Replaced<Self::Value>, Self::Error>;

    /// Notes when a key, which is in the table, vanishes.
    ///
    /// # Errors
    /// The table could not be written.
    fn note_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Self::Error>;

    /// Forgets what was noted. The key need not be in the table any more.
    ///
    /// # Errors
    /// The table could not be written.
    fn forget_expiry(&mut self, at_ms: NonZeroU64, key: &[u8]) -> Result<(), Self::Error>;

    /// What vanishes first of all that was noted, and when; by the key among equals.
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

/// Moves log time forward at a tick: every key whose expiry it has reached is absent from then on. Log time never goes
/// back, so an earlier one changes nothing.
///
/// # Errors
/// The table failed.
pub fn advance_to<T: KvTable>(table: &mut T, time_ms: u64) -> Result<(), T::Error> {
    advance(table, time_ms, EXPIRIES_PER_TICK_MAX)
}

/// The same at a command, also at one that cannot be decoded.
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

/// What is there of a record at this log time: nothing once it is due, whether it has been removed or not.
fn present<V>(stored: Option<Stored<V>>, time_ms: u64) -> Option<V> {
    let (value, expires_ms) = stored?;
    expires_ms.is_none_or(|at| at.get() > time_ms).then_some(value)
}

/// The value under a key.
///
/// # Errors
/// The table failed.
pub fn value<T: KvRead>(table: &T, key: &[u8]) -> Result<Option<T::Value>, T::Error> {
    Ok(present(table.stored(key)?, table.time_ms()))
}

/// Carries out one command of this log time; everything that expires by then is gone before it.
///
/// # Errors
/// The table failed; a part of the command may have been carried out.
pub fn apply<T: KvTable>(table: &mut T, command: &KvCommand, time_ms: u64) -> Result<KvReply, T::Error> {
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

/// All or nothing: first every compare, against what the batch would have done by then; then the changes.
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

/// Whether the operation finds the value that it expects, if it expects one; otherwise what is there.
/// `so_far` is what operations before it in a batch would have left.
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

/// Changes one key, its compare having succeeded; returns the value before.
fn carry_out<T: KvTable>(table: &mut T, operation: &KvOperation) -> Result<Option<T::Value>, T::Error> {
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
        // A refreshed key must not vanish by the expiry that it had.
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

/// The key that an operation changes, and what it has afterwards.
fn outcome(operation: &KvOperation) -> (&Bytes, Option<&Bytes>) {
    match operation {
        KvOperation::Put { key, value, .. } => (key, Some(value)),
        KvOperation::CompareAndSwap { key, value, .. } => (key, value.as_ref()),
        KvOperation::Delete { key } => (key, None),
    }
}

/// Answers a question from one state; or says which limit it goes beyond.
///
/// # Errors
/// The table failed.
pub fn answer<T: KvRead>(table: &T, query: &KvQuery) -> Result<Result<KvAnswer, QueryLimitError>, T::Error> {
    if let Err(limit) = query.check() {
        return Ok(Err(limit));
    }
    match query {
        KvQuery::Scan(scan) => Ok(Ok(KvAnswer::Page(page(table, scan)?))),
        KvQuery::GetMany { keys } => Ok(get_many(table, keys)?.map(KvAnswer::Values)),
    }
}

type Values = Vec<Option<Bytes>>;

fn get_many<T: KvRead>(table: &T, keys: &[Bytes]) -> Result<Result<Values, QueryLimitError>, T::Error> {
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

/// One page of a scan. Limits are those that [`answer`] has checked.
///
/// # Errors
/// The table failed.
pub fn page<T: KvRead>(table: &T, scan: &Scan) -> Result<Page, T::Error> {
    let limit = if scan.limit == 0 { SCAN_LIMIT_DEFAULT } else { scan.limit.min(SCAN_LIMIT_MAX) } as usize;
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
    // Ordered maps panic for bounds in the wrong order.
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

/// The first key behind all that begin with `prefix`; `None`: there is none.
fn first_behind(prefix: &[u8]) -> Option<Vec<u8>> {
    // The last byte that can be raised is raised, and what is behind it dropped.
    let at = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut behind = prefix.get(..=at)?.to_vec();
    *behind.last_mut()? += 1;
    Some(behind)
}
