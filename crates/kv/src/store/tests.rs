use std::time::Duration;

use d_engine_kv_language::{KvOperation, PutOptions, Scan};

use super::*;

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn store(records: &[(&'static str, &'static str)]) -> Store {
    let stored = |value: &str| Stored { value: value.as_bytes().into(), expires_ms: None };
    Store::from_records(
        records.iter().map(|(key, value)| (Blob::from(key.as_bytes()), stored(value))).collect(),
        0,
    )
}

/// One command at log time 0.
fn apply(store: &mut Store, command: &KvCommand) -> KvReply {
    store.apply(command, 0)
}

fn put_for(key: &'static str, value: &'static str, ttl_ms: u64) -> KvCommand {
    KvCommand::put_with(key, value, PutOptions::default().ttl(Duration::from_millis(ttl_ms)))
}

fn pointer(blob: &Blob) -> *const u8 {
    blob.as_ref().as_ptr()
}

fn keys(store: &Store) -> Vec<Bytes> {
    store.records().map(|(key, _)| key.clone().into()).collect()
}

#[test]
fn put_tells_whether_there_was_a_value() {
    let mut store = Store::default();
    assert_eq!(apply(&mut store, &KvCommand::put("k", "1")), KvReply::Done { existed: false });
    assert_eq!(apply(&mut store, &KvCommand::put("k", "2")), KvReply::Done { existed: true });
    assert_eq!(store.get(b"k"), Some(bytes("2")));
}

#[test]
fn put_gives_the_value_before_if_it_is_asked_to() {
    let mut store = Store::default();
    let put = |value| KvCommand::put_with("k", value, PutOptions::default().previous());
    assert_eq!(apply(&mut store, &put("1")), KvReply::Replaced { previous: None });
    assert_eq!(apply(&mut store, &put("2")), KvReply::Replaced { previous: Some(bytes("1")) });
    assert_eq!(store.get(b"k"), Some(bytes("2")));
}

#[test]
fn delete_of_nothing_is_done_and_says_so() {
    let mut store = store(&[("k", "1")]);
    assert_eq!(apply(&mut store, &KvCommand::delete("k")), KvReply::Done { existed: true });
    assert_eq!(apply(&mut store, &KvCommand::delete("k")), KvReply::Done { existed: false });
    assert_eq!(store.len(), 0);
}

#[test]
fn a_failed_compare_changes_nothing_and_tells_what_is_there() {
    let mut store = store(&[("k", "1")]);
    let before = store.clone();
    let wrong = KvCommand::compare_and_swap("k", Some(bytes("0")), Some(bytes("2")));
    assert_eq!(apply(&mut store, &wrong), KvReply::CompareFailed { current: Some(bytes("1")) });
    let absent = KvCommand::compare_and_swap("k", None, Some(bytes("2")));
    assert_eq!(apply(&mut store, &absent), KvReply::CompareFailed { current: Some(bytes("1")) });
    let elsewhere = KvCommand::compare_and_swap("other", Some(bytes("1")), None);
    assert_eq!(apply(&mut store, &elsewhere), KvReply::CompareFailed { current: None });
    assert_eq!(store, before);
}

#[test]
fn compare_and_swap_creates_changes_and_deletes() {
    let mut store = Store::default();
    let swap = |expected: Option<&'static str>, value: Option<&'static str>| {
        KvCommand::compare_and_swap("k", expected.map(bytes), value.map(bytes))
    };
    assert_eq!(apply(&mut store, &swap(None, Some(""))), KvReply::Done { existed: false });
    assert_eq!(apply(&mut store, &swap(Some(""), Some("1"))), KvReply::Done { existed: true });
    assert_eq!(store.get(b"k"), Some(bytes("1")));
    assert_eq!(apply(&mut store, &swap(Some("1"), None)), KvReply::Done { existed: true });
    assert_eq!(store.get(b"k"), None);
    assert_eq!(apply(&mut store, &swap(None, None)), KvReply::Done { existed: false });
}

#[test]
fn operations_of_a_batch_see_what_the_ones_before_them_did() {
    let mut store = store(&[("a", "1"), ("gone", "x")]);
    let batch = KvCommand::batch([
        KvOperation::compare_and_swap("a", Some(bytes("1")), Some(bytes("2"))),
        KvOperation::compare_and_swap("a", Some(bytes("2")), Some(bytes("3"))),
        KvOperation::delete("gone"),
        KvOperation::compare_and_swap("gone", None, Some(bytes("back"))),
        KvOperation::put("new", "n"),
    ]);
    let existed = vec![true, true, true, false, false];
    assert_eq!(apply(&mut store, &batch), KvReply::BatchDone { existed });
    assert_eq!(store.get(b"a"), Some(bytes("3")));
    assert_eq!(store.get(b"gone"), Some(bytes("back")));
    assert_eq!(apply(&mut store, &KvCommand::batch([])), KvReply::BatchDone { existed: vec![] });
}

#[test]
fn a_batch_with_a_failed_compare_changes_nothing_and_names_it() {
    let mut store = store(&[("a", "1"), ("b", "1")]);
    let before = store.clone();
    let batch = |expected| {
        KvCommand::batch([
            KvOperation::put("a", "2"),
            KvOperation::delete("b"),
            KvOperation::compare_and_swap("a", Some(bytes(expected)), None),
        ])
    };
    let failed = KvReply::BatchFailed { operation: 2, current: Some(bytes("2")) };
    assert_eq!(apply(&mut store, &batch("1")), failed);
    assert_eq!(store, before);
    assert_eq!(apply(&mut store, &batch("2")), KvReply::BatchDone { existed: vec![true; 3] });
    assert_eq!(store.len(), 0);
}

#[test]
fn a_key_vanishes_when_log_time_reaches_its_expiry_and_not_before() {
    let mut store = Store::default();
    store.apply(&put_for("late", "v", 200), 1_000);
    store.apply(&put_for("soon", "v", 100), 1_000);
    assert_eq!(store.next_expiry_ms(), Some(1_100));
    store.advance_to(1_099);
    assert_eq!(keys(&store), ["late", "soon"]);
    store.advance_to(1_100);
    assert_eq!(keys(&store), ["late"]);
    assert_eq!(store.next_expiry_ms(), Some(1_200));
    // Any command moves log time too, and comes after what expires by then.
    let reply = store.apply(&KvCommand::put("late", "w"), 1_200);
    assert_eq!(reply, KvReply::Done { existed: false });
    assert_eq!(store.next_expiry_ms(), None);
    store.advance_to(u64::MAX);
    assert_eq!(keys(&store), ["late"]);
}

/// FAULTS.md section 3: a time to live that ends at the very moment of a refresh.
#[test]
fn a_refresh_at_the_moment_of_expiry_finds_the_key_gone_and_makes_it_anew() {
    let mut store = Store::default();
    store.apply(&put_for("k", "1", 100), 1_000);
    assert_eq!(store.apply(&put_for("k", "2", 100), 1_100), KvReply::Done { existed: false });
    assert_eq!(store.next_expiry_ms(), Some(1_200));
}

#[test]
fn every_change_of_a_key_takes_the_place_of_its_old_expiry() {
    let swap = KvCommand::compare_and_swap("k", Some(bytes("1")), Some(bytes("2")));
    let batch = KvCommand::batch([KvOperation::put_with_ttl("k", "2", Duration::from_millis(300))]);
    let returning = KvCommand::put_with(
        "k",
        "2",
        PutOptions::default().ttl(Duration::from_millis(300)).previous(),
    );
    let changes = [
        (put_for("k", "2", 300), Some(1_350)),
        (returning, Some(1_350)),
        (batch, Some(1_350)),
        (KvCommand::put("k", "2"), None),
        (swap, None),
        (KvCommand::delete("k"), None),
        (KvCommand::compare_and_swap("k", Some(bytes("1")), None), None),
    ];
    for (change, expiry) in changes {
        let mut store = Store::default();
        store.apply(&put_for("k", "1", 100), 1_000);
        store.apply(&change, 1_050);
        assert_eq!(store.next_expiry_ms(), expiry, "{change:?}");
        // At the old expiry nothing happens.
        let before = store.len();
        store.advance_to(1_100);
        assert_eq!(store.len(), before, "{change:?}");
    }
}

#[test]
fn log_time_does_not_go_back_and_does_not_overflow() {
    let mut store = Store::default();
    store.advance_to(1_000);
    store.advance_to(500);
    assert_eq!(store.time_ms(), 1_000);
    store.apply(&put_for("k", "v", 100), 500);
    assert_eq!(store.next_expiry_ms(), Some(1_100), "counted from the latest log time");
    store.apply(&put_for("far", "v", u64::MAX), 1_001);
    store.advance_to(u64::MAX - 1);
    assert_eq!(keys(&store), ["far"]);
}

#[test]
fn a_scan_with_bounds_in_the_wrong_order_is_empty() {
    let store = store(&[("a", ""), ("b", ""), ("c", "")]);
    let count = |scan: Scan| always(rules::page(&store, &scan)).records.len();
    assert_eq!(count(Scan::all()), 3);
    let range = |start, end| Scan::range(bytes(start), Some(bytes(end)));
    assert_eq!(count(range("a", "c")), 2);
    assert_eq!(count(range("c", "a")), 0);
    assert_eq!(count(range("b", "b")), 0);
    assert_eq!(count(range("a", "b").after(bytes("b"))), 0);
    assert_eq!(count(range("a", "c").after(bytes("a"))), 1);
    assert_eq!(count(range("a", "b").after(bytes("x"))), 0);
}

#[test]
fn stored_values_do_not_keep_the_batch_they_came_in_alive() {
    let batch = KvCommand::put("key", "value").encode();
    let within = batch.as_ptr_range();
    let mut store = Store::default();
    store.apply(&KvCommand::decode(&batch).unwrap(), 0);
    let (key, stored) = store.records().next().unwrap();
    assert!(!within.contains(&pointer(key)) && !within.contains(&pointer(&stored.value)));
}

/// A second put keeps the stored key, and the expiry index shares it with the map.
#[test]
fn a_refresh_keeps_the_key_that_is_there() {
    let mut store = Store::default();
    store.apply(&put_for("key", "1", 100), 0);
    let held = pointer(store.records().next().unwrap().0);
    store.apply(&put_for("key", "2", 200), 0);
    assert_eq!(pointer(store.records().next().unwrap().0), held);
    assert_eq!(pointer(&store.expiries.get_min().unwrap().1), held);
    assert_eq!(store.expiries.len(), 1);
}

#[test]
fn the_hash_tells_stores_apart() {
    let one = store(&[("a", "bc")]);
    assert_eq!(one.hash(), store(&[("a", "bc")]).hash());
    let mut expiring = store(&[]);
    expiring.apply(&put_for("a", "bc", 7), 0);
    let mut later = one.clone();
    later.advance_to(1);
    for other in [
        store(&[("ab", "c")]),
        store(&[("a", "bd")]),
        store(&[]),
        store(&[("a", "bc"), ("b", "")]),
        expiring,
        later,
    ] {
        assert_ne!(one.hash(), other.hash());
    }
}

/// What a snapshot writes must not change while it is written: values, the set of keys, expiries,
/// log time.
#[test]
fn a_clone_is_unaffected_by_what_comes_later() {
    let mut store = Store::default();
    for key in 0..500_u32 {
        let ttl = Duration::from_millis(u64::from(key) + 1);
        let options =
            if key % 2 == 0 { PutOptions::default().ttl(ttl) } else { PutOptions::default() };
        store.apply(&KvCommand::put_with(key.to_be_bytes().to_vec(), "1", options), 1_000);
    }
    let (view, rebuilt) =
        (store.clone(), store.records().map(|(k, s)| (k.clone(), s.clone())).collect());
    let rebuilt = Store::from_records(rebuilt, 1_000);
    for key in 0..600_u32 {
        let key = key.to_be_bytes().to_vec();
        let change =
            if key[3] % 3 == 0 { KvCommand::delete(key) } else { KvCommand::put(key, "2") };
        store.apply(&change, 1_100);
    }
    store.advance_to(2_000);
    assert_eq!(view, rebuilt);
    assert_eq!(view.hash(), rebuilt.hash());
    assert_ne!(view.hash(), store.hash());
    assert_eq!((view.next_expiry_ms(), store.next_expiry_ms()), (Some(1_001), None));
}
