//! The machine on disk against the one in memory: given the same calls, both return the same and
//! hold the same state.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_kv_disk::{
    DiskKvStateMachine, KvCommand, KvOperation, KvQuery, KvReply, PutOptions, Scan,
};
use d_engine_state_machine::StateMachine;
use proptest::prelude::*;
use support::{apply_at, at_once, id, install, snapshot, started};

/// The calls between two comparisons of the machines.
#[derive(Clone, Debug)]
enum Step {
    /// A chunk: for each command, by how much log time has advanced, and its bytes.
    Chunk(Vec<(u64, Bytes)>),
    /// The previous chunk, delivered again.
    Again,
    /// A tick of the log's clock, by this many milliseconds.
    Time(u64),
    /// An entry without a command.
    Other,
    Flush,
    Reopen,
    /// A snapshot of one machine is installed in the other.
    Install {
        from_disk: bool,
    },
    Reset,
}

fn key() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(0..4_u8, 0..3).prop_map(Bytes::from)
}

fn value() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..6).prop_map(Bytes::from)
}

fn operation() -> impl Strategy<Value = KvOperation> {
    prop_oneof![
        3 => (key(), value()).prop_map(|(key, value)| KvOperation::put(key, value)),
        3 => (key(), value(), 1..40_u64)
            .prop_map(|(key, value, ttl)| KvOperation::put_with_ttl(key, value, Duration::from_millis(ttl))),
        2 => key().prop_map(KvOperation::delete),
        2 => (key(), prop::option::of(value()), prop::option::of(value()))
            .prop_map(|(key, expected, value)| KvOperation::compare_and_swap(key, expected, value)),
        // A compare that often succeeds.
        2 => (key(), value()).prop_map(|(key, value)| KvOperation::compare_and_swap(key, None, Some(value))),
    ]
}

fn command() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        8 => operation().prop_map(|operation| KvCommand::Single(operation).encode()),
        2 => (key(), value(), prop::option::of(1..40_u64)).prop_map(|(key, value, ttl)| {
            let options = PutOptions::default().previous();
            let options = match ttl {
                Some(ttl) => options.ttl(Duration::from_millis(ttl)),
                None => options,
            };
            KvCommand::put_with(key, value, options).encode()
        }),
        3 => prop::collection::vec(operation(), 0..5)
            .prop_map(|operations| KvCommand::Batch(operations).encode()),
        1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => prop::collection::vec((0..20_u64, command()), 1..8).prop_map(Step::Chunk),
        1 => Just(Step::Again),
        2 => (0..60_u64).prop_map(Step::Time),
        1 => Just(Step::Other),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => any::<bool>().prop_map(|from_disk| Step::Install { from_disk }),
        1 => Just(Step::Reset),
    ]
}

fn look_alike(disk: &DiskKvStateMachine, memory: &KvStateMachine) -> Result<(), TestCaseError> {
    prop_assert_eq!(disk.last_applied(), memory.last_applied());
    prop_assert_eq!(disk.len(), memory.len());
    prop_assert_eq!(disk.next_expiry_ms(), memory.next_expiry_ms());
    for query in [
        KvQuery::Scan(Scan::all()),
        KvQuery::Scan(Scan::prefix(vec![1]).limit(2)),
        KvQuery::Scan(Scan::range(vec![0], Some(vec![3].into())).keys_only().after(vec![1])),
        KvQuery::GetMany { keys: (0..4_u8).map(|byte| Bytes::from(vec![byte])).collect() },
    ] {
        prop_assert_eq!(
            disk.query(&query.encode()).unwrap(),
            memory.query(&query.encode()).unwrap()
        );
    }
    for byte in 0..4 {
        prop_assert_eq!(disk.get(&[byte]).unwrap(), memory.get(&[byte]).unwrap());
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn both_machines_answer_alike_and_hold_the_same(steps in prop::collection::vec(step(), 1..25)) {
        let home = tempfile::tempdir().unwrap();
        let (mut disk, memory) = (started(home.path()), KvStateMachine::new());
        let (mut now, mut next, mut before) = (0, 1, (1, Vec::new()));
        for step in steps {
            match step {
                Step::Chunk(commands) => {
                    let commands: Vec<_> = commands
                        .into_iter()
                        .map(|(later, command)| { now += later; (now, command) })
                        .collect();
                    let replies = apply_at(&memory, next, &commands).unwrap();
                    prop_assert_eq!(apply_at(&disk, next, &commands).unwrap(), replies);
                    before = (next, commands);
                    next += before.1.len() as u64;
                }
                Step::Again => {
                    let (first, commands) = &before;
                    let replies = apply_at(&disk, *first, commands).unwrap();
                    prop_assert!(replies.iter().all(Option::is_none));
                }
                Step::Time(later) => {
                    now += later;
                    memory.advance_time(id(next), now).unwrap();
                    disk.advance_time(id(next), now).unwrap();
                    next += 1;
                }
                Step::Other => {
                    memory.update_last_applied(id(next));
                    disk.update_last_applied(id(next));
                    next += 1;
                }
                Step::Flush => disk.flush().unwrap(),
                Step::Reopen => {
                    drop(disk);
                    disk = started(home.path());
                }
                Step::Install { from_disk } => {
                    let dir = tempfile::tempdir().unwrap();
                    if from_disk {
                        let meta = snapshot(&disk, dir.path());
                        prop_assert_eq!(install(&memory, &meta, dir.path()), Ok(()));
                    } else {
                        let meta = snapshot(&memory, dir.path());
                        prop_assert_eq!(install(&disk, &meta, dir.path()), Ok(()));
                    }
                }
                Step::Reset => {
                    at_once(memory.reset()).unwrap();
                    at_once(disk.reset()).unwrap();
                    (now, next, before) = (0, 1, (1, Vec::new()));
                }
            }
            look_alike(&disk, &memory)?;
        }
        // The same bytes: a node with the other machine may continue an interrupted send.
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        prop_assert_eq!(snapshot(&disk, one.path()), snapshot(&memory, other.path()));
    }
}

/// Many keys that expire at once are removed in small steps, but all of them are absent from that
/// moment on, on both machines alike: in reads, to commands, and after a snapshot in the middle.
#[test]
fn of_many_keys_that_are_due_each_entry_removes_some_and_nobody_sees_the_others() {
    const KEYS: u64 = 2_500;
    let home = tempfile::tempdir().unwrap();
    let (disk, memory) = (started(home.path()), KvStateMachine::new());
    memory.start().unwrap();
    let both: [&dyn StateMachine; 2] = [&disk, &memory];
    let ttl = PutOptions::default().ttl(Duration::from_millis(100));
    let puts: Vec<_> = (0..KEYS)
        .map(|n| (1_000, KvCommand::put_with(format!("k{n:04}"), "x", ttl).encode()))
        .collect();
    apply_at(&disk, 1, &puts).unwrap();
    apply_at(&memory, 1, &puts).unwrap();
    let all =
        |machine: &dyn StateMachine| machine.query(&KvQuery::Scan(Scan::all()).encode()).unwrap();
    for machine in both {
        machine.advance_time(id(KEYS + 1), 1_099).unwrap();
        assert_eq!(machine.len() as u64, KEYS);
        machine.advance_time(id(KEYS + 2), 1_100).unwrap();
        assert_eq!(machine.len() as u64, KEYS - 1_000, "one tick removes so many");
        assert_eq!(machine.next_expiry_ms(), Some(1_100), "the next tick must follow at once");
        assert_eq!(machine.get(b"k2499").unwrap(), None);
    }
    assert_eq!(all(&disk), all(&KvStateMachine::new()), "no key may be visible");
    assert_eq!(all(&disk), all(&memory));
    // They are absent to commands as well; each command removes a few before its own work.
    let commands = vec![
        (1_100, KvCommand::put("k2498", "new").encode()),
        (
            1_100,
            KvCommand::compare_and_swap("k2497", Some(Bytes::from_static(b"x")), None).encode(),
        ),
        (1_100, KvCommand::delete("k2496").encode()),
        (1_100, KvCommand::put_with("k2495", "y", PutOptions::default().previous()).encode()),
    ];
    let replies = apply_at(&disk, KEYS + 3, &commands).unwrap();
    assert_eq!(replies, apply_at(&memory, KEYS + 3, &commands).unwrap());
    let decoded: Vec<_> =
        replies.iter().map(|reply| KvReply::decode(reply.as_ref().unwrap()).unwrap()).collect();
    let expected = [
        KvReply::Done { existed: false },
        KvReply::CompareFailed { current: None },
        KvReply::Done { existed: false },
        KvReply::Replaced { previous: None },
    ];
    assert_eq!(decoded, expected);
    // The delete has removed k2496, and the two that were put again stay.
    let left = KEYS - 1_000 - 4 * 32 - 1;
    for machine in both {
        assert_eq!(machine.len() as u64, left);
    }
    // A snapshot contains those that are left, and so does the machine that installs it.
    let dir = tempfile::tempdir().unwrap();
    let meta = snapshot(&memory, dir.path());
    install(&disk, &meta, dir.path()).unwrap();
    assert_eq!(disk.len() as u64, left);
    for machine in both {
        machine.advance_time(id(KEYS + 7), 1_101).unwrap();
        machine.advance_time(id(KEYS + 8), 1_101).unwrap();
        assert_eq!((machine.len(), machine.next_expiry_ms()), (2, None));
        assert_eq!(machine.get(b"k2498").unwrap(), Some(Bytes::from_static(b"new")));
    }
    assert_eq!(all(&disk), all(&memory));
}
