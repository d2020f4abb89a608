//! A chunk of commands against its commands one by one, and against a naive model.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvReply, KvStateMachine};
use d_engine_replica::{Durability, Entry, LogId, StateMachine};
use proptest::prelude::*;
use support::{apply, at_once};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

/// The machine's rules once more, as plainly as possible: a list of pairs.
#[derive(Default)]
struct Model {
    pairs: Vec<(Bytes, Bytes)>,
}

impl Model {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, value)| value.clone())
    }

    fn set(&mut self, key: &Bytes, value: Option<&Bytes>) -> bool {
        let existed = self.get(key).is_some();
        self.pairs.retain(|(k, _)| k != key);
        if let Some(value) = value {
            self.pairs.push((key.clone(), value.clone()));
        }
        existed
    }

    fn apply(&mut self, command: &KvCommand) -> KvReply {
        match command {
            KvCommand::Put { key, value } => KvReply::Done { existed: self.set(key, Some(value)) },
            KvCommand::Delete { key } => KvReply::Done { existed: self.set(key, None) },
            KvCommand::CompareAndSwap { key, expected, value } if self.get(key) == *expected => {
                KvReply::Done { existed: self.set(key, value.as_ref()) }
            }
            KvCommand::CompareAndSwap { key, .. } => KvReply::CompareFailed { current: self.get(key) },
            other => panic!("the model does not know {other:?}"),
        }
    }
}

/// Few keys and values, so that commands meet each other.
fn any_command() -> impl Strategy<Value = KvCommand> {
    let word = || prop::sample::select(vec!["", "a", "b", "c"]).prop_map(bytes);
    prop_oneof![
        (word(), word()).prop_map(|(key, value)| KvCommand::put(key, value)),
        word().prop_map(KvCommand::delete),
        (word(), prop::option::of(word()), prop::option::of(word()))
            .prop_map(|(key, expected, value)| KvCommand::compare_and_swap(key, expected, value)),
    ]
}

proptest! {
    /// FAULTS row 48: commands of one chunk that read what was there before the chunk.
    #[test]
    fn a_chunk_equals_its_commands_one_by_one_and_the_model(
        chunks in prop::collection::vec(prop::collection::vec(any_command(), 0..12), 1..6)
    ) {
        let (whole, single) = (KvStateMachine::new(), KvStateMachine::new());
        let mut model = Model::default();
        let mut next = 1;
        for chunk in &chunks {
            let at_once = apply(&whole, next, chunk);
            let one_by_one: Vec<_> = chunk
                .iter()
                .zip(next..)
                .flat_map(|(command, index)| apply(&single, index, std::slice::from_ref(command)))
                .collect();
            let expected: Vec<_> = chunk.iter().map(|command| model.apply(command)).collect();
            prop_assert_eq!(&at_once, &one_by_one);
            prop_assert_eq!(&at_once, &expected);
            next += chunk.len() as u64;
        }
        prop_assert_eq!(whole.position_and_hash(), single.position_and_hash());
        prop_assert_eq!(whole.len(), model.pairs.len());
        for (key, value) in &model.pairs {
            prop_assert_eq!(whole.get(key).unwrap(), Some(value.clone()));
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
        [KvReply::Done { existed: false }, KvReply::CompareFailed { current: Some(bytes("first")) }]
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
    assert_eq!(machine.last_applied(), LogId { term: 2, index: 3 });
}

#[test]
fn what_is_no_command_gets_a_reply_and_the_rest_of_the_chunk_goes_on() {
    let machine = KvStateMachine::new();
    let (bad, bad_probe) = Entry::with_reply_probe(1, 1, "not a command");
    let (newer, newer_probe) = Entry::with_reply_probe(2, 1, &b"\x08\x63\x1a\x03\x0a\x01k"[..]);
    let good = Entry::new(3, 1, KvCommand::put("k", "v").encode());
    at_once(machine.apply_chunk(vec![bad, newer, good])).unwrap();
    let reason = |probe: d_engine_replica::ReplyProbe| match KvReply::decode(&probe.take().unwrap()).unwrap()
    {
        KvReply::Rejected { reason } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(bad_probe), "the bytes are no key-value message");
    assert_eq!(reason(newer_probe), "the format version is 99, this program reads 1");
    assert_eq!(machine.get(b"k").unwrap(), Some(bytes("v")));
    assert_eq!(machine.last_applied().index, 3);
}

#[test]
fn the_position_moves_only_forward() {
    let machine = KvStateMachine::new();
    machine.update_last_applied(LogId { term: 2, index: 5 });
    machine.update_last_applied(LogId { term: 1, index: 4 });
    assert_eq!(machine.last_applied(), LogId { term: 2, index: 5 });
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
