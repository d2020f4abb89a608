//! What questions read from the store.

use std::ops::Bound;

use bytes::Bytes;
use d_engine_proto::key_value::{
    GET_MANY_BYTES_MAX, Keys, KvAnswer, KvQuery, Page, QueryLimitError, Record, SCAN_LIMIT_DEFAULT,
    SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};

use crate::store::Store;

/// Answers a question from one state. Values in the answer are shared with the store, not copied.
pub(crate) fn answer(store: &Store, query: &KvQuery) -> Result<KvAnswer, QueryLimitError> {
    query.check()?;
    match query {
        KvQuery::Scan(scan) => Ok(KvAnswer::Page(page(store, scan))),
        KvQuery::GetMany { keys } => get_many(store, keys).map(KvAnswer::Values),
        // A question of a newer library; `KvQuery::decode` gives none.
        _ => Ok(KvAnswer::Values(Vec::new())),
    }
}

fn get_many(store: &Store, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, QueryLimitError> {
    let mut bytes = 0;
    let mut values = Vec::with_capacity(keys.len());
    for key in keys {
        let value = store.get(key);
        bytes += value.as_ref().map_or(0, Bytes::len);
        if bytes > GET_MANY_BYTES_MAX {
            return Err(QueryLimitError::Bytes);
        }
        values.push(value);
    }
    Ok(values)
}

fn page(store: &Store, scan: &Scan) -> Page {
    let limit = if scan.limit == 0 { SCAN_LIMIT_DEFAULT } else { scan.limit.min(SCAN_LIMIT_MAX) } as usize;
    let behind_prefix;
    let (start, end): (&[u8], Option<&[u8]>) = match &scan.keys {
        Keys::Prefix(prefix) => {
            behind_prefix = first_behind(prefix);
            (prefix, behind_prefix.as_deref())
        }
        Keys::Range { start, end } => (start, end.as_deref()),
        _ => (&[], None),
    };
    let from = match &scan.after {
        Some(after) if **after >= *start => Bound::Excluded(&**after),
        _ => Bound::Included(start),
    };
    let mut page = Page::default();
    let mut bytes = 0;
    for (key, stored) in store.range(from, end.map_or(Bound::Unbounded, Bound::Excluded)) {
        if page.records.len() >= limit || bytes >= SCAN_PAGE_BYTES {
            page.next = page.records.last().map(|record| record.key.clone());
            break;
        }
        let value = (!scan.keys_only).then(|| stored.value.clone());
        bytes += key.len() + value.as_ref().map_or(0, Bytes::len);
        page.records.push(Record { key: key.clone(), value });
    }
    page
}

/// The first key behind all that begin with `prefix`; `None`: there is none.
fn first_behind(prefix: &[u8]) -> Option<Vec<u8>> {
    // The last byte that can be raised is raised, and what is behind it dropped.
    let at = prefix.iter().rposition(|byte| *byte < u8::MAX)?;
    let mut behind = prefix.get(..=at)?.to_vec();
    *behind.last_mut()? += 1;
    Some(behind)
}

#[cfg(test)]
mod tests {
    use d_engine_proto::key_value::{GET_MANY_KEYS_MAX, KvCommand};
    use proptest::prelude::*;

    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    fn store(records: impl IntoIterator<Item = (Bytes, Bytes)>) -> Store {
        let mut store = Store::default();
        for (key, value) in records {
            store.apply(&KvCommand::put(key, value), 0);
        }
        store
    }

    fn all_pages(store: &Store, mut scan: Scan) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let page = page(store, &scan);
            assert!(page.next.is_none() || !page.records.is_empty(), "a page that goes on is not empty");
            records.extend(page.records);
            match page.next {
                Some(next) => scan.after = Some(next),
                None => return records,
            }
        }
    }

    #[test]
    fn values_come_in_the_order_of_the_keys_asked_for() {
        let store = store([(bytes("a"), bytes("1")), (bytes("b"), bytes(""))]);
        let answer = answer(&store, &KvQuery::get_many(["b", "none", "a", "b"])).unwrap();
        let values = vec![Some(bytes("")), None, Some(bytes("1")), Some(bytes(""))];
        assert_eq!(answer, KvAnswer::Values(values));
    }

    #[test]
    fn a_page_ends_at_its_limit_and_says_where_to_go_on_unless_it_is_the_last() {
        let store = store(["a", "b", "c", "d"].map(|key| (bytes(key), bytes("v"))));
        let first = page(&store, &Scan::all().limit(2));
        assert_eq!((first.records.len(), first.next.clone()), (2, Some(bytes("b"))));
        let last = page(&store, &Scan::all().limit(2).after(first.next.unwrap()).keys_only());
        let record = |key| Record { key: bytes(key), value: None };
        assert_eq!(last, Page { records: vec![record("c"), record("d")], next: None });
    }

    #[test]
    fn the_default_page_has_a_thousand_records() {
        let keys = (0..1_001_u32).map(|n| (Bytes::from(n.to_be_bytes().to_vec()), Bytes::new()));
        let first = page(&store(keys), &Scan::all());
        assert_eq!(first.records.len(), 1_000);
        assert!(first.next.is_some());
    }

    #[test]
    fn a_page_of_long_values_ends_early_and_has_at_least_one() {
        let long = Bytes::from(vec![b'x'; SCAN_PAGE_BYTES / 2]);
        let records = ["a", "b", "c", "d"].map(|key| (bytes(key), long.clone()));
        let some = store(records);
        let first = page(&some, &Scan::all());
        assert_eq!((first.records.len(), first.next), (2, Some(bytes("b"))));
        assert_eq!(all_pages(&some, Scan::all()).len(), 4);
        // Without values they are short.
        assert_eq!(page(&some, &Scan::all().keys_only()).next, None);
        let giant = store([(bytes("g"), Bytes::from(vec![0; 3 * SCAN_PAGE_BYTES])), (bytes("h"), bytes(""))]);
        let first = page(&giant, &Scan::all());
        assert_eq!((first.records.len(), first.next), (1, Some(bytes("g"))));
    }

    #[test]
    fn questions_beyond_the_limits_are_refused() {
        let refused = |query| answer(&Store::default(), &query).unwrap_err();
        let limit = SCAN_LIMIT_MAX + 1;
        assert_eq!(refused(KvQuery::Scan(Scan::all().limit(limit))), QueryLimitError::Records { limit });
        let keys = GET_MANY_KEYS_MAX + 1;
        assert_eq!(refused(KvQuery::get_many(vec!["k"; keys])), QueryLimitError::Keys { keys });
        // The same long value asked for often enough.
        let store = store([(bytes("k"), Bytes::from(vec![0; 1 << 20]))]);
        assert!(answer(&store, &KvQuery::get_many(vec!["k"; 16])).is_ok());
        assert_eq!(answer(&store, &KvQuery::get_many(vec!["k"; 17])), Err(QueryLimitError::Bytes));
    }

    /// Few bytes, among them the last one, so that prefixes and bounds meet the edges.
    fn any_key() -> impl Strategy<Value = Bytes> {
        let byte = prop::sample::select(vec![0_u8, 1, 0xfe, 0xff]);
        prop::collection::vec(byte, 0..4).prop_map(Bytes::from)
    }

    fn any_keys() -> impl Strategy<Value = Keys> {
        prop_oneof![
            Just(Keys::All),
            any_key().prop_map(Keys::Prefix),
            (any_key(), prop::option::of(any_key())).prop_map(|(start, end)| Keys::Range { start, end }),
        ]
    }

    proptest! {
        #[test]
        fn the_pages_of_a_scan_are_the_matching_records_once_and_in_order(
            keys in prop::collection::btree_set(any_key(), 0..40),
            which in any_keys(),
            after in prop::option::of(any_key()),
            limit in 1_u32..5,
        ) {
            let store = store(keys.iter().map(|key| (key.clone(), key.clone())));
            let matches = |key: &Bytes| {
                let within = match &which {
                    Keys::Prefix(prefix) => key.starts_with(prefix),
                    Keys::Range { start, end } => key >= start && end.as_ref().is_none_or(|end| key < end),
                    _ => true,
                };
                within && after.as_ref().is_none_or(|after| key > after)
            };
            let expected: Vec<Bytes> = keys.iter().filter(|key| matches(key)).cloned().collect();
            let mut scan = Scan::all().limit(limit);
            scan.keys = which.clone();
            scan.after = after.clone();
            let found = all_pages(&store, scan);
            prop_assert!(found.iter().all(|record| record.value.as_ref() == Some(&record.key)));
            let found: Vec<Bytes> = found.into_iter().map(|record| record.key).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
