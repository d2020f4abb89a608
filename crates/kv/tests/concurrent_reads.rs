//! Readers concurrent with apply see whole chunks, never a part of one.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};

use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_state_machine::StateMachine;
use support::apply;

/// Every chunk writes the same value under both keys, `first` before `last`. A reader that reads
/// `first` and then `last` must never find an older value in `last`: a chunk becomes visible as
/// one.
#[test]
fn a_reader_never_sees_half_a_chunk() {
    let machine = KvStateMachine::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                threads.spawn(|| {
                    let mut reads = 0_u64;
                    while !done.load(Ordering::Acquire) || reads == 0 {
                        let first = number(&machine, b"first");
                        let last = number(&machine, b"last");
                        assert!(last >= first, "half a chunk: first {first}, last {last}");
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for round in 1..=2_000_u64 {
            let value = || round.to_be_bytes().to_vec();
            let chunk = [KvCommand::put("first", value()), KvCommand::put("last", value())];
            apply(&machine, round * 2 - 1, &chunk);
            assert_eq!(machine.last_applied().index, round * 2);
        }
        done.store(true, Ordering::Release);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
}

/// The hash belongs to one state: it must be a state that existed between two chunks.
#[test]
fn the_hash_is_always_that_of_a_state_between_chunks() {
    let chunk = |round: u64| {
        let value = || round.to_be_bytes().to_vec();
        [KvCommand::put("first", value()), KvCommand::put("last", value())]
    };
    let rounds = 300_u64;
    let rehearsal = KvStateMachine::new();
    let mut known = vec![rehearsal.position_and_hash()];
    for round in 1..=rounds {
        apply(&rehearsal, round * 2 - 1, &chunk(round));
        known.push(rehearsal.position_and_hash());
    }
    let machine = KvStateMachine::new();
    let done = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let reader = threads.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let seen = machine.position_and_hash();
                assert!(known.contains(&seen), "a state that never existed, at {}", seen.0);
            }
        });
        for round in 1..=rounds {
            apply(&machine, round * 2 - 1, &chunk(round));
        }
        done.store(true, Ordering::Release);
        reader.join().unwrap();
    });
}

fn number(machine: &KvStateMachine, key: &[u8]) -> u64 {
    machine.get(key).unwrap().map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()))
}
