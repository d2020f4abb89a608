//! A chunk of commands against its commands one by one, and against a naive model.
#![allow(clippy::unwrap_used)]

mod support;

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::{
    KvCommand, KvOperation, KvQuery, KvQueryReply, KvReply, KvStateMachine, PutOptions, Scan,
    UndecodableError,
};
use d_engine_state_machine::{Durability, Entry, LogId, StateMachine};
use proptest::prelude::*;
use support::{apply, apply_at, at_once};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// The machine's rules a second time, as plainly as possible: a list of keys, values and expiries.
#[derive(Clone, Default)]
struct Model {
    records: Vec<(Bytes, Bytes, Option<u64>)>,
    time_ms: u64,
}

impl Model {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.records.iter().find(|(k, ..)| k == key).map(|(_, value, _)| value.clone())
    }

    /// Returns the previous value.
    fn set(
        &mut self,
        key: &Bytes,
        value: Option<&Bytes>,
        ttl_ms: Option<NonZeroU64>,
    ) -> Option<Bytes> {
        let before = self.get(key);
        self.records.retain(|(k, ..)| k != key);
        if let Some(value) = value {
            let expiry = ttl_ms.map(|ttl| self.time_ms + ttl.get());
            self.records.push((key.clone(), value.clone(), expiry));
        }
        before
    }

    fn tick(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.max(time_ms);
        let now = self.time_ms;
        self.records.retain(|(.., expiry)| expiry.is_none_or(|expiry| expiry > now));
    }

    /// Executes one operation; `Err`: a compare failed.
    fn operate(&mut self, operation: &KvOperation) -> Result<bool, Option<Bytes>> {
        let before = match operation {
            KvOperation::Put { key, value, ttl_ms } => self.set(key, Some(value), *ttl_ms),
            KvOperation::Delete { key } => self.set(key, None, None),
            KvOperation::CompareAndSwap { key, expected, value } if self.get(key) == *expected => {
                self.set(key, value.as_ref(), None)
            }
            KvOperation::CompareAndSwap { key, .. } => return Err(self.get(key)),
            other => panic!("the model does not know {other:?}"),
        };
        Ok(before.is_some())
    }

    fn apply(&mut self, time_ms: u64, command: &KvCommand) -> KvReply {
        self.tick(time_ms);
        match command {
            KvCommand::Single(operation) => match self.operate(operation) {
                Ok(existed) => KvReply::Done { existed },
                Err(current) => KvReply::CompareFailed { current },
            },
            KvCommand::PutReturning { key, value, ttl_ms } => {
                KvReply::Replaced { previous: self.set(key, Some(value), *ttl_ms) }
            }
            KvCommand::Batch(operations) => {
                // On a copy, which replaces the original only if every operation succeeds.
                let mut after = self.clone();
                let mut existed = Vec::new();
                for (operation, number) in operations.iter().zip(0..) {
                    match after.operate(operation) {
                        Ok(found) => existed.push(found),
                        Err(current) => return KvReply::BatchFailed { operation: number, current },
                    }
                }
                *self = after;
                KvReply::BatchDone { existed }
            }
            other => panic!("the model does not know {other:?}"),
        }
    }

    fn next_expiry_ms(&self) -> Option<u64> {
        self.records.iter().filter_map(|(.., expiry)| *expiry).min()
    }
}

/// Few keys and values, so that commands affect each other.
fn any_word() -> impl Strategy<Value = Bytes> {
    prop::sample::select(vec!["", "a", "b", "c"]).prop_map(bytes)
}

fn any_ttl() -> impl Strategy<Value = Option<Duration>> {
    prop::option::of((1_u64..8).prop_map(Duration::from_millis))
}

fn any_operation() -> impl Strategy<Value = KvOperation> {
    let maybe = || prop::option::of(any_word());
    prop_oneof![
        (any_word(), any_word(), any_ttl()).prop_map(|(key, value, ttl)| match ttl {
            None => KvOperation::put(key, value),
            Some(ttl) => KvOperation::put_with_ttl(key, value, ttl),
        }),
        any_word().prop_map(KvOperation::delete),
        (any_word(), maybe(), maybe())
            .prop_map(|(key, expected, value)| KvOperation::compare_and_swap(key, expected, value)),
    ]
}

fn any_command() -> impl Strategy<Value = KvCommand> {
    prop_oneof![
        4 => any_operation().prop_map(KvCommand::Single),
        1 => (any_word(), any_word(), any_ttl()).prop_map(|(key, value, ttl)| {
            let options = PutOptions::default().previous();
            KvCommand::put_with(key, value, ttl.map_or(options, |ttl| options.ttl(ttl)))
        }),
        2 => prop::collection::vec(any_operation(), 0..5).prop_map(KvCommand::batch),
    ]
}

/// A chunk in which each command follows some time after the one before it, and the time by which a
/// tick after the chunk advances.
fn any_chunk() -> impl Strategy<Value = (Vec<(u64, KvCommand)>, u64)> {
    (prop::collection::vec((0_u64..4, any_command()), 0..12), 0_u64..4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    /// FAULTS row 48: commands of one chunk must not read the state from before the chunk.
    #[test]
    fn a_chunk_equals_its_commands_one_by_one_and_the_model(
        chunks in prop::collection::vec(any_chunk(), 1..6)
    ) {
        let (whole, single) = (KvStateMachine::new(), KvStateMachine::new());
        let mut model = Model::default();
        let (mut next, mut time_ms) = (1, 1_000);
        for (steps, tick) in &chunks {
            let chunk: Vec<_> = steps
                .iter()
                .map(|(step, command)| {
                    time_ms += step;
                    (time_ms, command.clone())
                })
                .collect();
            let at_once = apply_at(&whole, next, &chunk);
            let one_by_one: Vec<_> = chunk
                .iter()
                .zip(next..)
                .flat_map(|(command, index)| apply_at(&single, index, std::slice::from_ref(command)))
                .collect();
            let expected: Vec<_> = chunk.iter().map(|(time_ms, command)| model.apply(*time_ms, command)).collect();
            prop_assert_eq!(&at_once, &one_by_one);
            prop_assert_eq!(&at_once, &expected);
            time_ms += tick;
            let at = LogId::of(1, next + chunk.len() as u64);
            whole.advance_time(at, time_ms).unwrap();
            single.advance_time(at, time_ms).unwrap();
            model.tick(time_ms);
            next = at.index.next().get();
            prop_assert_eq!(whole.position_and_hash(), single.position_and_hash());
            prop_assert_eq!(whole.next_expiry_ms(), model.next_expiry_ms());
            prop_assert_eq!(whole.len(), model.records.len());
            for (key, value, _) in &model.records {
                prop_assert_eq!(whole.get(key).unwrap(), Some(value.clone()));
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_rejected_or_applied_and_never_an_error(
        data in prop::collection::vec(any::<u8>(), 0..60)
    ) {
        let machine = KvStateMachine::new();
        let (entry, probe) = Entry::with_reply_probe(1, 1, data);
        prop_assert!(at_once(machine.apply_chunk(vec![entry])).is_ok());
        prop_assert!(KvReply::decode(&probe.take().unwrap()).is_ok());
    }
}

/// FAULTS row 48, by hand.
#[test]
fn of_two_equal_swaps_in_one_chunk_only_the_first_succeeds() {
    let machine = KvStateMachine::new();
    let take = |by| KvCommand::compare_and_swap("lock", None, Some(bytes(by)));
    let replies = apply(&machine, 1, &[take("first"), take("second")]);
    assert_eq!(
        replies,
        [
            KvReply::Done { existed: false },
            KvReply::CompareFailed { current: Some(bytes("first")) }
        ]
    );
    assert_eq!(machine.get(b"lock").unwrap(), Some(bytes("first")));
}

#[test]
fn a_chunk_delivered_again_changes_nothing_and_answers_nothing() {
    let machine = KvStateMachine::new();
    let commands = [KvCommand::put("k", "old"), KvCommand::put("k", "new")];
    apply(&machine, 1, &commands);
    let before = machine.position_and_hash();
    let (again, probe) = Entry::with_reply_probe(1, 1, commands[0].encode());
    at_once(machine.apply_chunk(vec![again])).unwrap();
    assert_eq!(machine.position_and_hash(), before);
    assert_eq!(probe.take(), None);
}

#[test]
fn of_a_chunk_that_overlaps_only_the_new_entries_take_effect() {
    let machine = KvStateMachine::new();
    apply(&machine, 1, &[KvCommand::put("k", "1"), KvCommand::delete("k")]);
    let chunk = vec![
        Entry::new(1, 1, KvCommand::put("k", "1").encode()),
        Entry::new(2, 1, KvCommand::delete("k").encode()),
        Entry::new(3, 2, KvCommand::put("other", "2").encode()),
    ];
    at_once(machine.apply_chunk(chunk)).unwrap();
    assert_eq!(machine.get(b"k").unwrap(), None);
    assert_eq!(machine.get(b"other").unwrap(), Some(bytes("2")));
    assert_eq!(machine.last_applied(), LogId::of(2, 3));
}

#[test]
fn what_is_no_command_gets_a_reply_and_the_rest_of_the_chunk_goes_on() {
    let machine = KvStateMachine::new();
    let (bad, bad_probe) = Entry::with_reply_probe(1, 1, "not a command");
    let (newer, newer_probe) = Entry::with_reply_probe(2, 1, &b"\x08\x63\x1a\x03\x0a\x01k"[..]);
    let good = Entry::new(3, 1, KvCommand::put("k", "v").encode());
    at_once(machine.apply_chunk(vec![bad, newer, good])).unwrap();
    let reason =
        |probe: d_engine_state_machine::ReplyProbe| match KvReply::decode(&probe.take().unwrap())
            .unwrap()
        {
            KvReply::Rejected { reason } => reason,
            other => panic!("{other:?}"),
        };
    assert_eq!(reason(bad_probe), "the bytes are not a key-value message");
    assert_eq!(reason(newer_probe), "the format version is 99, this program reads 1");
    assert_eq!(machine.get(b"k").unwrap(), Some(bytes("v")));
    assert_eq!(machine.last_applied().index, 3);
}

#[test]
fn the_position_moves_only_forward() {
    let machine = KvStateMachine::new();
    machine.update_last_applied(LogId::of(2, 5));
    machine.update_last_applied(LogId::of(1, 4));
    assert_eq!(machine.last_applied(), LogId::of(2, 5));
    assert_eq!(machine.entry_term(5), Some(2));
    assert_eq!(machine.entry_term(4), None);
    assert_eq!(machine.entry_term(0), None);
}

#[test]
fn reset_goes_back_to_the_beginning() {
    let machine = KvStateMachine::new();
    apply(&machine, 1, &[KvCommand::put("k", "v")]);
    at_once(machine.reset()).unwrap();
    assert_eq!(machine.position_and_hash(), KvStateMachine::new().position_and_hash());
    assert!(machine.is_empty());
    apply(&machine, 1, &[KvCommand::put("k", "v")]);
    assert_eq!(machine.len(), 1);
}

#[test]
fn the_machine_runs_between_start_and_stop() {
    let machine = KvStateMachine::new();
    assert!(!machine.is_running());
    machine.start().unwrap();
    assert!(machine.is_running());
    machine.stop().unwrap();
    machine.stop().unwrap();
    assert!(!machine.is_running());
    assert_eq!(machine.durability(), Durability::Rebuilt);
}

/// A log of the first version: these are the bytes that it wrote.
#[test]
fn a_log_of_the_first_version_gives_the_state_and_the_replies_it_gave() {
    let machine = KvStateMachine::new();
    let log: [(&[u8], &[u8]); 5] = [
        (b"\x08\x01\x12\x06\x0a\x01k\x12\x01v", b"\x08\x01\x12\x00"),
        (b"\x08\x01\x12\x06\x0a\x01k\x12\x01a", b"\x08\x01\x12\x02\x08\x01"),
        (b"\x08\x01\x22\x09\x0a\x01k\x12\x01a\x1a\x01b", b"\x08\x01\x12\x02\x08\x01"),
        (b"\x08\x01\x22\x03\x0a\x01k", b"\x08\x01\x1a\x03\x0a\x01b"),
        (b"\x08\x01\x1a\x03\x0a\x01x", b"\x08\x01\x12\x00"),
    ];
    for ((stored, reply), index) in log.into_iter().zip(1..) {
        let (entry, probe) = Entry::with_reply_probe(index, 1, stored);
        at_once(machine.apply_chunk(vec![entry])).unwrap();
        assert_eq!(probe.take().unwrap(), reply, "entry {index}");
    }
    assert_eq!(machine.get(b"k").unwrap(), Some(bytes("b")));
    assert_eq!(machine.len(), 1);
}

fn put_for(key: &'static str, ttl_ms: u64) -> KvCommand {
    KvCommand::put_with(key, "v", PutOptions::default().ttl(Duration::from_millis(ttl_ms)))
}

#[test]
fn a_tick_expires_keys_and_moves_the_position() {
    let machine = KvStateMachine::new();
    assert_eq!(machine.next_expiry_ms(), None);
    apply_at(&machine, 1, &[(1_000, put_for("k", 500))]);
    assert_eq!(machine.next_expiry_ms(), Some(1_500));
    machine.advance_time(LogId::of(1, 2), 1_499).unwrap();
    assert_eq!(machine.get(b"k").unwrap(), Some(bytes("v")));
    machine.advance_time(LogId::of(1, 3), 1_500).unwrap();
    assert_eq!(machine.get(b"k").unwrap(), None);
    assert_eq!(machine.next_expiry_ms(), None);
    assert_eq!(machine.last_applied().index, 3);
}

/// A tick that is delivered again after a crash must change nothing.
#[test]
fn a_tick_that_was_told_before_changes_nothing() {
    let machine = KvStateMachine::new();
    apply_at(&machine, 1, &[(1_000, put_for("k", 500)), (1_100, KvCommand::delete("x"))]);
    let before = machine.position_and_hash();
    machine.advance_time(LogId::of(1, 2), 9_000).unwrap();
    assert_eq!(machine.position_and_hash(), before);
}

/// Also a command that changes nothing itself, and one that cannot be decoded.
#[test]
fn every_entry_moves_log_time() {
    for data in [KvCommand::delete("x").encode(), bytes("not a command")] {
        let machine = KvStateMachine::new();
        apply_at(&machine, 1, &[(1_000, put_for("k", 500))]);
        at_once(machine.apply_chunk(vec![Entry::new(2, 1, data).at_time_ms(1_500)])).unwrap();
        assert_eq!(machine.get(b"k").unwrap(), None);
    }
}

#[test]
fn questions_are_answered_from_one_state_and_bad_ones_are_told_apart() {
    let machine = KvStateMachine::new();
    apply(&machine, 1, &[KvCommand::put("a", "1"), KvCommand::put("b", "2")]);
    let ask = |query: KvQuery| {
        machine.query(&query.encode()).map(|answer| KvQueryReply::decode(&answer).unwrap())
    };
    let values = ask(KvQuery::get_many(["b", "none"])).unwrap();
    assert_eq!(values, KvQueryReply::Values(vec![Some(bytes("2")), None]));
    let KvQueryReply::Page(page) = ask(KvQuery::Scan(Scan::prefix("a"))).unwrap() else {
        panic!("no page")
    };
    assert_eq!((page.records.len(), page.next), (1, None));
    let error = ask(KvQuery::Scan(Scan::all().limit(20_000))).unwrap_err().to_string();
    assert!(error.contains("20000") && error.contains("10000"), "{error}");
    let error = machine.query(b"\x01what?").unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(UndecodableError::Malformed)), "{error}");
}
