//! What the tests of the key-value machine share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use d_engine_kv::{KvCommand, KvReply, KvStateMachine};
use d_engine_state_machine::{Entry, StateMachine};

/// Returns the result of a future that never waits, as this machine's do not.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

/// Applies the commands in one chunk from `first` on, all in term 1 and at log time 0; returns the
/// replies.
pub(crate) fn apply(machine: &KvStateMachine, first: u64, commands: &[KvCommand]) -> Vec<KvReply> {
    let timed: Vec<_> = commands.iter().map(|command| (0, command.clone())).collect();
    apply_at(machine, first, &timed)
}

/// As [`apply`], each command with its log time.
pub(crate) fn apply_at(
    machine: &KvStateMachine,
    first: u64,
    commands: &[(u64, KvCommand)],
) -> Vec<KvReply> {
    let (entries, probes): (Vec<_>, Vec<_>) = commands
        .iter()
        .zip(first..)
        .map(|((time_ms, command), index)| {
            let (entry, probe) = Entry::with_reply_probe(index, 1, command.encode());
            (entry.at_time_ms(*time_ms), probe)
        })
        .unzip();
    at_once(machine.apply_chunk(entries)).unwrap();
    probes.iter().map(|probe| KvReply::decode(&probe.take().unwrap()).unwrap()).collect()
}
