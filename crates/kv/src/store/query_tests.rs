//! What queries read from the store.

use d_engine_kv_language::rules;
use d_engine_kv_language::{
    GET_MANY_KEYS_MAX, Keys, KvCommand, KvQuery, KvQueryReply, Page, QueryLimitError, Record,
    SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};
use proptest::prelude::*;

use bytes::Bytes;

use super::{Store, always};

fn page(store: &Store, scan: &Scan) -> Page {
    always(rules::page(store, scan))
}

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
        assert!(
            page.next.is_none() || !page.records.is_empty(),
            "a page that continues is not empty"
        );
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
    let answer = store.answer(&KvQuery::get_many(["b", "none", "a", "b"])).unwrap();
    let values = vec![Some(bytes("")), None, Some(bytes("1")), Some(bytes(""))];
    assert_eq!(answer, KvQueryReply::Values(values));
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
    let giant =
        store([(bytes("g"), Bytes::from(vec![0; 3 * SCAN_PAGE_BYTES])), (bytes("h"), bytes(""))]);
    let first = page(&giant, &Scan::all());
    assert_eq!((first.records.len(), first.next), (1, Some(bytes("g"))));
}

#[test]
fn questions_beyond_the_limits_are_refused() {
    let refused = |query| Store::default().answer(&query).unwrap_err();
    let limit = SCAN_LIMIT_MAX + 1;
    assert_eq!(
        refused(KvQuery::Scan(Scan::all().limit(limit))),
        QueryLimitError::Records { limit }
    );
    let keys = GET_MANY_KEYS_MAX + 1;
    assert_eq!(refused(KvQuery::get_many(vec!["k"; keys])), QueryLimitError::Keys { keys });
    // The same long value requested often enough.
    let store = store([(bytes("k"), Bytes::from(vec![0; 1 << 20]))]);
    assert!(store.answer(&KvQuery::get_many(vec!["k"; 16])).is_ok());
    assert_eq!(store.answer(&KvQuery::get_many(vec!["k"; 17])), Err(QueryLimitError::Bytes));
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
        (any_key(), prop::option::of(any_key()))
            .prop_map(|(start, end)| Keys::Range { start, end }),
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
