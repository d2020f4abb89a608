//! What the tests of the key-value machine share.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use d_engine_kv::{KvCommand, KvReply, KvStateMachine};
use d_engine_replica::{Entry, StateMachine};

/// The result of a future that never waits, as all of this machine's do.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

/// Applies the commands in one chunk from `first` on, all in term 1; returns the replies.
pub(crate) fn apply(machine: &KvStateMachine, first: u64, commands: &[KvCommand]) -> Vec<KvReply> {
    let (entries, probes): (Vec<_>, Vec<_>) = commands
        .iter()
        .zip(first..)
        .map(|(command, index)| Entry::with_reply_probe(index, 1, command.encode()))
        .unzip();
    at_once(machine.apply_chunk(entries)).unwrap();
    probes.iter().map(|probe| KvReply::decode(&probe.take().unwrap()).unwrap()).collect()
}
