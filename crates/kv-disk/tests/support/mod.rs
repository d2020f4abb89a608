//! What the tests of the machine on disk share.
#![allow(dead_code, reason = "each test file uses its part")]

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use d_engine_fs::sim::SimFs;
use d_engine_kv_disk::{DiskKvStateMachine, KvCommand};
use d_engine_state_machine::{Entry, LogId, Result, SnapshotMetadata, StateMachine};

/// Returns the result of a future that never waits, as those of these machines do not.
pub(crate) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

pub(crate) fn id(index: u64) -> LogId {
    LogId::of(1, index)
}

pub(crate) fn started(dir: &Path) -> DiskKvStateMachine {
    let machine = DiskKvStateMachine::new(dir);
    machine.start().unwrap();
    machine
}

/// Applies encoded commands with their log times as one chunk from `first` on; returns the replies.
pub(crate) fn apply_at(
    machine: &impl StateMachine,
    first: u64,
    commands: &[(u64, Bytes)],
) -> Result<Vec<Option<Bytes>>> {
    let (entries, probes): (Vec<_>, Vec<_>) = commands
        .iter()
        .zip(first..)
        .map(|((time_ms, command), index)| {
            let (entry, probe) = Entry::with_reply_probe(index, 1, command.clone());
            (entry.at_time_ms(*time_ms), probe)
        })
        .unzip();
    at_once(machine.apply_chunk(entries))?;
    Ok(probes.iter().map(d_engine_state_machine::ReplyProbe::take).collect())
}

/// As [`apply_at`], all at log time 0.
pub(crate) fn apply(machine: &impl StateMachine, first: u64, commands: &[KvCommand]) {
    let commands: Vec<_> = commands.iter().map(|command| (0, command.encode())).collect();
    apply_at(machine, first, &commands).unwrap();
}

/// Takes a snapshot into `dir`, with a view if the machine has one.
pub(crate) fn snapshot(machine: &impl StateMachine, dir: &Path) -> SnapshotMetadata {
    let view = machine.snapshot_view().unwrap().unwrap();
    let last_included = view.last_included();
    SnapshotMetadata::new(last_included, view.write(dir).unwrap())
}

pub(crate) fn install(
    machine: &impl StateMachine,
    meta: &SnapshotMetadata,
    dir: &Path,
) -> Result<(), String> {
    at_once(machine.apply_snapshot_from_file(meta, dir.to_owned()))
        .map_err(|error| error.to_string())
}

/// Cuts the power. `seed` decides which of the changes that were not synced survive.
pub(crate) fn crash(fs: &SimFs, seed: u64) {
    let mut state = seed;
    fs.crash(&mut |below| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if below == 0 { 0 } else { (state >> 33) % below }
    });
}
