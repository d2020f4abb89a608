//! What commands do to an ordered map: pure, no lock, no file, no position.

use std::collections::BTreeMap;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::command::{KvCommand, KvReply};

/// Ordered keys with their values.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Store {
    map: BTreeMap<Bytes, Bytes>,
}

impl Store {
    /// Carries out one command.
    pub(crate) fn apply(&mut self, command: &KvCommand) -> KvReply {
        match command {
            KvCommand::Put { key, value } => KvReply::Done { existed: self.put(key, value) },
            KvCommand::Delete { key } => KvReply::Done { existed: self.map.remove(key).is_some() },
            KvCommand::CompareAndSwap { key, expected, value } => {
                let current = self.map.get(key);
                if current != expected.as_ref() {
                    return KvReply::CompareFailed { current: current.cloned() };
                }
                let existed = current.is_some();
                match value {
                    Some(value) => self.put(key, value),
                    None => self.map.remove(key).is_some(),
                };
                KvReply::Done { existed }
            }
        }
    }

    /// Keys and values are slices of the buffer in which a whole batch of entries came; kept as they
    /// are, one small value would keep all of it in memory. So they are copied here, once.
    fn put(&mut self, key: &Bytes, value: &Bytes) -> bool {
        let value = Bytes::copy_from_slice(value);
        if let Some(current) = self.map.get_mut(key) {
            *current = value;
            return true;
        }
        self.map.insert(Bytes::copy_from_slice(key), value);
        false
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.map.get(key).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }

    /// All records, in order of their keys.
    pub(crate) fn records(&self) -> impl Iterator<Item = (&Bytes, &Bytes)> {
        self.map.iter()
    }

    /// A store of these records.
    pub(crate) fn from_records(records: Vec<(Bytes, Bytes)>) -> Self {
        Self { map: records.into_iter().collect() }
    }

    /// SHA-256 over all records in order of their keys, each with its lengths.
    pub(crate) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (key, value) in &self.map {
            for part in [key, value] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn store(records: &[(&'static str, &'static str)]) -> Store {
        Store::from_records(records.iter().map(|(key, value)| (bytes(key), bytes(value))).collect())
    }

    #[test]
    fn put_tells_whether_there_was_a_value() {
        let mut store = Store::default();
        assert_eq!(store.apply(&KvCommand::put("k", "1")), KvReply::Done { existed: false });
        assert_eq!(store.apply(&KvCommand::put("k", "2")), KvReply::Done { existed: true });
        assert_eq!(store.get(b"k"), Some(bytes("2")));
    }

    #[test]
    fn delete_of_nothing_is_done_and_says_so() {
        let mut store = store(&[("k", "1")]);
        assert_eq!(store.apply(&KvCommand::delete("k")), KvReply::Done { existed: true });
        assert_eq!(store.apply(&KvCommand::delete("k")), KvReply::Done { existed: false });
        assert_eq!(store.len(), 0);
    }

    #[test]
    fn a_failed_compare_changes_nothing_and_tells_what_is_there() {
        let mut store = store(&[("k", "1")]);
        let before = store.clone();
        let wrong = KvCommand::compare_and_swap("k", Some(bytes("0")), Some(bytes("2")));
        assert_eq!(store.apply(&wrong), KvReply::CompareFailed { current: Some(bytes("1")) });
        let absent = KvCommand::compare_and_swap("k", None, Some(bytes("2")));
        assert_eq!(store.apply(&absent), KvReply::CompareFailed { current: Some(bytes("1")) });
        let elsewhere = KvCommand::compare_and_swap("other", Some(bytes("1")), None);
        assert_eq!(store.apply(&elsewhere), KvReply::CompareFailed { current: None });
        assert_eq!(store, before);
    }

    #[test]
    fn compare_and_swap_creates_changes_and_deletes() {
        let mut store = Store::default();
        let swap = |expected: Option<&'static str>, value: Option<&'static str>| {
            KvCommand::compare_and_swap("k", expected.map(bytes), value.map(bytes))
        };
        assert_eq!(store.apply(&swap(None, Some(""))), KvReply::Done { existed: false });
        assert_eq!(store.apply(&swap(Some(""), Some("1"))), KvReply::Done { existed: true });
        assert_eq!(store.get(b"k"), Some(bytes("1")));
        assert_eq!(store.apply(&swap(Some("1"), None)), KvReply::Done { existed: true });
        assert_eq!(store.get(b"k"), None);
        assert_eq!(store.apply(&swap(None, None)), KvReply::Done { existed: false });
    }

    #[test]
    fn stored_values_do_not_keep_the_batch_they_came_in_alive() {
        let batch = KvCommand::put("key", "value").encode();
        let within = batch.as_ptr_range();
        let mut store = Store::default();
        store.apply(&KvCommand::decode(&batch).unwrap());
        let (key, value) = store.records().next().unwrap();
        assert!(!within.contains(&key.as_ptr()) && !within.contains(&value.as_ptr()));
    }

    #[test]
    fn the_hash_tells_stores_apart() {
        let one = store(&[("a", "bc")]);
        assert_eq!(one.hash(), store(&[("a", "bc")]).hash());
        for other in
            [store(&[("ab", "c")]), store(&[("a", "bd")]), store(&[]), store(&[("a", "bc"), ("b", "")])]
        {
            assert_ne!(one.hash(), other.hash());
        }
    }
}
