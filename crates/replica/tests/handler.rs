//! The handler calls a state machine when its contract says, and in that order.
#![allow(clippy::unwrap_used)]

mod recording;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use d_engine_core::{EntryKind, LogIndex};
use d_engine_replica::{
    Never, ProposeError, ProposeResponder, StateMachineHandler, StopReason, UnknownBecause,
};
use d_engine_storage::RecoveredLog;
use recording::{Ground, Manner, Recording, at, entry, recovered};

type Answers = Arc<Mutex<Vec<(u64, Result<Bytes, ProposeError>)>>>;

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future waits for something"),
    }
}

fn open(machine: &Arc<Recording>, last: u64) -> Result<StateMachineHandler, StopReason> {
    open_over(machine, recovered(last))
}

fn open_over(
    machine: &Arc<Recording>,
    log: RecoveredLog,
) -> Result<StateMachineHandler, StopReason> {
    let mut ground = Ground::new();
    ground.opened.recovered = log;
    now(StateMachineHandler::open(machine.clone(), Arc::new(Never), ground.start()))
        .map(|(handler, _)| handler)
}

fn waiting(answers: &Answers, indexes: &[u64]) -> Vec<(LogIndex, ProposeResponder)> {
    let responder = |index: u64| {
        let answers = answers.clone();
        let respond: ProposeResponder =
            Box::new(move |answer| answers.lock().unwrap().push((index, answer)));
        (LogIndex::new(index), respond)
    };
    indexes.iter().map(|index| responder(*index)).collect()
}

#[test]
fn a_rebuilt_machine_is_started_and_reset() {
    let machine = Arc::new(Recording::default());
    let handler = open(&machine, 3).unwrap();
    assert_eq!(machine.calls.take(), ["bind", "start", "last_applied", "reset"]);
    assert_eq!(handler.applied(), at(0, 0));
}

#[test]
fn commands_come_as_one_chunk_and_entries_of_the_engine_only_move_the_position() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    machine.calls.take();
    let entries = [
        entry(1, EntryKind::Noop, 0),
        entry(2, EntryKind::Command, 5),
        entry(3, EntryKind::Membership, 0),
        entry(4, EntryKind::Command, 6),
    ];
    now(handler.apply(&entries, Vec::new(), None)).unwrap();
    assert_eq!(machine.calls.take(), ["apply_chunk [2, 4]", "update_last_applied 4"]);
    now(handler.apply(&[entry(5, EntryKind::Noop, 0)], Vec::new(), None)).unwrap();
    assert_eq!(machine.calls.take(), ["update_last_applied 5"]);
}

#[test]
fn a_tick_is_told_between_the_commands_before_and_after_it() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    machine.calls.take();
    let entries = [
        entry(1, EntryKind::Command, 1),
        entry(2, EntryKind::Tick, 0),
        entry(3, EntryKind::Command, 2),
    ];
    now(handler.apply(&entries, Vec::new(), None)).unwrap();
    let expected = [
        "apply_chunk [1]",
        "update_last_applied 1",
        "advance_time 2 1002",
        "update_last_applied 2",
        "apply_chunk [3]",
        "update_last_applied 3",
    ];
    assert_eq!(machine.calls.take(), expected);
}

#[test]
fn every_caller_gets_the_reply_to_its_own_command() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    let answers = Answers::default();
    let entries = [
        entry(1, EntryKind::Command, 1),
        entry(2, EntryKind::Noop, 0),
        entry(3, EntryKind::Command, 10),
    ];
    now(handler.apply(&entries, waiting(&answers, &[1, 3]), None)).unwrap();
    let answers = answers.lock().unwrap();
    assert_eq!(*answers, [(1, Ok(Bytes::from_static(b"1"))), (3, Ok(Bytes::from_static(b"11")))]);
}

#[test]
fn no_reply_leaves_before_its_chunk_is_applied() {
    let machine = Arc::new(Recording::with(Manner { chokes_on: Some(10), ..Manner::default() }));
    let mut handler = open(&machine, 0).unwrap();
    let answers = Answers::default();
    let entries = [entry(1, EntryKind::Command, 1), entry(2, EntryKind::Command, 10)];
    let stopped = now(handler.apply(&entries, waiting(&answers, &[1, 2]), None)).unwrap_err();
    assert!(stopped.to_string().contains("the backend is gone"), "{stopped}");
    // Both replies were given inside the chunk; neither may be sent, because the chunk was not
    // applied.
    let answers = answers.lock().unwrap();
    let unknown = || Err(ProposeError::OutcomeUnknown { why: UnknownBecause::StateMachineStopped });
    assert_eq!(*answers, [(1, unknown()), (2, unknown())]);
    assert_eq!(handler.applied(), at(0, 0));
}

#[test]
fn nothing_is_delivered_twice_and_a_gap_stops_the_node() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    now(handler.apply(&[entry(1, EntryKind::Command, 1)], Vec::new(), None)).unwrap();
    now(handler.apply(
        &[entry(1, EntryKind::Command, 1), entry(2, EntryKind::Command, 2)],
        Vec::new(),
        None,
    ))
    .unwrap();
    assert_eq!(machine.numbers(), [1, 2]);
    let gap = now(handler.apply(&[entry(4, EntryKind::Command, 4)], Vec::new(), None)).unwrap_err();
    assert!(gap.to_string().contains("entry 3 comes next"), "{gap}");
}

#[test]
fn the_end_persists_the_position_flushes_and_stops() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    now(handler.apply(&[entry(1, EntryKind::Command, 1)], Vec::new(), None)).unwrap();
    machine.calls.take();
    handler.close().unwrap();
    assert_eq!(machine.calls.take(), ["persist_last_applied 1", "flush", "stop"]);
}

#[test]
fn the_position_is_persisted_periodically() {
    let machine = Arc::new(Recording::default());
    let mut handler = open(&machine, 0).unwrap();
    let entries: Vec<_> = (1..=10_000).map(|index| entry(index, EntryKind::Noop, 0)).collect();
    now(handler.apply(&entries, Vec::new(), None)).unwrap();
    assert!(machine.calls.take().contains(&"persist_last_applied 10000".to_owned()));
}

#[test]
fn a_durable_machine_goes_on_from_where_it_stands() {
    let machine = Arc::new(Recording::durable_at(at(1, 2)));
    let mut handler = open(&machine, 3).unwrap();
    assert_eq!(
        machine.calls.take(),
        ["bind", "start", "last_applied", "snapshot_metadata", "entry_term 2"]
    );
    now(handler.apply(
        &[entry(2, EntryKind::Command, 9), entry(3, EntryKind::Command, 1)],
        Vec::new(),
        None,
    ))
    .unwrap();
    assert_eq!(machine.numbers(), [1]);
}

/// Rows 39 and 45: a state that does not fit its log is refused, with both values in the message.
#[test]
fn row_45_a_durable_machine_outside_its_log_is_refused() {
    let ahead = Arc::new(Recording::durable_at(at(1, 9)));
    let refused = open(&ahead, 3).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("index 9") && refused.contains("index 3"), "{refused}");

    let other_term = Arc::new(Recording::durable_at(at(2, 2)));
    let refused = open(&other_term, 3).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("term 2") && refused.contains("term 1"), "{refused}");

    let mut log = recovered(0);
    log.base = recording::id(1, 5);
    let behind = Arc::new(Recording::durable_at(at(1, 2)));
    let refused = open_over(&behind, log).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("entries between them are missing"), "{refused}");
}
