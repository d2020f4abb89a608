//! What commands and log time do to an ordered map: pure, no lock, no file, no position.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::Bound;

use bytes::Bytes;
use d_engine_proto::key_value::{KvCommand, KvOperation, KvReply};
use sha2::{Digest, Sha256};

/// A value, and the log time at which it vanishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    /// UNIX milliseconds of log time; `None`: never.
    pub(crate) expires_ms: Option<NonZeroU64>,
}

/// Ordered keys with their values, as of a log time.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Store {
    map: BTreeMap<Bytes, Stored>,
    /// Every expiry in `map`, earliest first. The keys are those of `map`, shared.
    expiries: BTreeSet<(NonZeroU64, Bytes)>,
    /// The latest log time that was told.
    time_ms: u64,
}

impl Store {
    /// Moves log time forward: every key whose expiry it has reached is gone. Log time never goes back, so
    /// an earlier one changes nothing.
    pub(crate) fn advance_to(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.max(time_ms);
        while let Some(earliest) = self.expiries.first()
            && earliest.0.get() <= self.time_ms
        {
            if let Some((_, key)) = self.expiries.pop_first() {
                self.map.remove(&key);
            }
        }
    }

    /// Carries out one command of this log time; everything that expires by then is gone before it.
    pub(crate) fn apply(&mut self, command: &KvCommand, time_ms: u64) -> KvReply {
        self.advance_to(time_ms);
        match command {
            KvCommand::Single(operation) => match self.compare(operation, None) {
                Err(current) => KvReply::CompareFailed { current },
                Ok(()) => KvReply::Done { existed: self.carry_out(operation).is_some() },
            },
            KvCommand::PutReturning { key, value, ttl_ms } => {
                KvReply::Replaced { previous: self.put(key, value, *ttl_ms) }
            }
            KvCommand::Batch(operations) => self.apply_batch(operations),
            // A command of a newer library that this machine was not built for.
            _ => KvReply::Rejected { reason: "this machine does not know the command".to_owned() },
        }
    }

    /// All or nothing: first every compare, against what the batch would have done by then; then the changes.
    fn apply_batch(&mut self, operations: &[KvOperation]) -> KvReply {
        let mut so_far: BTreeMap<&Bytes, Option<&Bytes>> = BTreeMap::new();
        for (operation, number) in operations.iter().zip(0..) {
            if let Err(current) = self.compare(operation, Some(&so_far)) {
                return KvReply::BatchFailed { operation: number, current };
            }
            let (key, value) = outcome(operation);
            so_far.insert(key, value);
        }
        let existed = operations.iter().map(|operation| self.carry_out(operation).is_some()).collect();
        KvReply::BatchDone { existed }
    }

    /// Whether the operation finds the value that it expects, if it expects one; otherwise what is there.
    /// `so_far` is what operations before it in a batch would have left.
    fn compare(
        &self,
        operation: &KvOperation,
        so_far: Option<&BTreeMap<&Bytes, Option<&Bytes>>>,
    ) -> Result<(), Option<Bytes>> {
        let KvOperation::CompareAndSwap { key, expected, .. } = operation else { return Ok(()) };
        let changed = so_far.and_then(|so_far| so_far.get(key)).copied();
        let current = changed.unwrap_or_else(|| self.map.get(key).map(|stored| &stored.value));
        // A value found goes into the reply only: copied there, it keeps no buffer alive.
        if current == expected.as_ref() { Ok(()) } else { Err(current.cloned()) }
    }

    /// Changes one key, its compare having succeeded; returns the value before.
    fn carry_out(&mut self, operation: &KvOperation) -> Option<Bytes> {
        match operation {
            KvOperation::Put { key, value, ttl_ms } => self.put(key, value, *ttl_ms),
            KvOperation::CompareAndSwap { key, value: Some(value), .. } => self.put(key, value, None),
            KvOperation::Delete { key } | KvOperation::CompareAndSwap { key, .. } => self.delete(key),
            // `outcome` has nothing for it either, and no command decodes to it.
            _ => None,
        }
    }

    /// Keys and values are slices of the buffer in which a whole batch of entries came; kept as they
    /// are, one small value would keep all of it in memory. So they are copied here, once.
    fn put(&mut self, key: &Bytes, value: &Bytes, ttl_ms: Option<NonZeroU64>) -> Option<Bytes> {
        let expires_ms = ttl_ms.map(|ttl| ttl.saturating_add(self.time_ms));
        let stored = Stored { value: Bytes::copy_from_slice(value), expires_ms };
        if let Some(current) = self.map.get_mut(key) {
            let before = std::mem::replace(current, stored);
            if before.expires_ms != expires_ms {
                self.forget_expiry(before.expires_ms, key);
                self.note_expiry(expires_ms, key);
            }
            return Some(before.value);
        }
        self.map.insert(Bytes::copy_from_slice(key), stored);
        self.note_expiry(expires_ms, key);
        None
    }

    /// Notes when a key of the map vanishes, under the map's own copy of it.
    fn note_expiry(&mut self, expires_ms: Option<NonZeroU64>, key: &Bytes) {
        if let Some(at) = expires_ms
            && let Some((held, _)) = self.map.get_key_value(key)
        {
            self.expiries.insert((at, held.clone()));
        }
    }

    fn delete(&mut self, key: &Bytes) -> Option<Bytes> {
        let before = self.map.remove(key)?;
        self.forget_expiry(before.expires_ms, key);
        Some(before.value)
    }

    /// A refreshed or deleted key must not vanish by the expiry that it had.
    fn forget_expiry(&mut self, expires_ms: Option<NonZeroU64>, key: &Bytes) {
        if let Some(at) = expires_ms {
            self.expiries.remove(&(at, key.clone()));
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key).map(|stored| stored.value.clone())
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// The log time at which the next key vanishes.
    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.expiries.first().map(|(at, _)| at.get())
    }

    /// The latest log time that was told.
    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// All records, in order of their keys.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Bytes, &Stored)> {
        self.map.iter()
    }

    /// The records between two keys, in order. Nothing when the bounds leave nothing between them.
    pub(crate) fn range<'a>(
        &'a self,
        from: Bound<&[u8]>,
        to: Bound<&[u8]>,
    ) -> impl Iterator<Item = (&'a Bytes, &'a Stored)> + use<'a> {
        // The map's own `range` panics for bounds in the wrong order.
        let empty = match (from, to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from >= to
            }
        };
        (!empty).then(|| self.map.range::<[u8], _>((from, to))).into_iter().flatten()
    }

    /// A store of these records at this log time.
    pub(crate) fn from_records(records: Vec<(Bytes, Stored)>, time_ms: u64) -> Self {
        let expiry = |(key, stored): &(Bytes, Stored)| Some((stored.expires_ms?, key.clone()));
        let expiries = records.iter().filter_map(expiry).collect();
        Self { expiries, map: records.into_iter().collect(), time_ms }
    }

    /// SHA-256 over the log time and all records in order of their keys, each with its lengths and expiry.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.time_ms.to_le_bytes());
        for (key, stored) in &self.map {
            for part in [key, &stored.value] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
            hash.update(stored.expires_ms.map_or(0, NonZeroU64::get).to_le_bytes());
        }
        hash.finalize().into()
    }
}

/// The key that an operation changes, and what it has afterwards.
fn outcome(operation: &KvOperation) -> (&Bytes, Option<&Bytes>) {
    match operation {
        KvOperation::Put { key, value, .. } => (key, Some(value)),
        KvOperation::CompareAndSwap { key, value, .. } => (key, value.as_ref()),
        other => (other.key(), None),
    }
}

#[cfg(test)]
mod tests;
