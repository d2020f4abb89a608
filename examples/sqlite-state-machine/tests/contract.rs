//! Every rule of the contract, each as a test.
#![allow(clippy::unwrap_used)]

use d_engine::storage::{ClusterId, Incarnation};
use d_engine::testing::{StateMachineCase, state_machine_suite};
use d_engine::{Binding, StateMachine as _};
use sqlite_state_machine::{Command, SqliteMachine};

const SCHEMA: &str = "CREATE TABLE notes (k INTEGER PRIMARY KEY, v INTEGER, at_ms INTEGER)";

fn command(n: u64) -> Vec<u8> {
    let n = n.cast_signed();
    let sql = "INSERT INTO notes VALUES (?1, ?2, log_time_ms()) \
               ON CONFLICT (k) DO UPDATE SET v = excluded.v, at_ms = excluded.at_ms RETURNING v";
    Command::new(sql, [(n % 7).into(), n.into()]).encode().unwrap()
}

fn contents(machine: &SqliteMachine) -> Vec<u8> {
    let all = Command::new("SELECT * FROM notes ORDER BY k", []).encode().unwrap();
    machine.query(&all).unwrap().to_vec()
}

state_machine_suite!(
    StateMachineCase::new(|dir| SqliteMachine::open(dir, SCHEMA).unwrap())
        .commands(command)
        .contents(contents)
        .undecodable(Command::new("INSERT INTO nowhere VALUES (1)", []).encode().unwrap())
        .undecodable(
            Command::new("INSERT INTO notes VALUES (random(), 0, 0)", []).encode().unwrap()
        )
        .questions(|n| Command::new(
            "SELECT v FROM notes WHERE k = ?1",
            [(n.cast_signed() % 7).into()]
        )
        .encode()
        .unwrap())
        // Free pages contain earlier content.
        .snapshots_may_differ()
);

/// Databases of another node, or of this one before its data directory was wiped, are refused, and
/// the error names the difference.
#[test]
fn its_files_belong_to_one_data_directory() {
    let binding = |incarnation| Binding::new(ClusterId([1; 16]), 1, Incarnation([incarnation; 16]));
    let dir = tempfile::tempdir().unwrap();
    let open = || SqliteMachine::open(dir.path(), SCHEMA).unwrap();
    open().bind(&binding(7)).unwrap();
    let machine = open();
    machine.bind(&binding(7)).unwrap();
    let refused = machine.bind(&binding(8)).unwrap_err().to_string();
    assert!(
        refused.contains("incarnation 07070707") && refused.contains("incarnation 08080808"),
        "{refused}"
    );
    // A reset replaces the database with another one of the same history.
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(machine.reset())
        .unwrap();
    drop(machine);
    assert!(open().bind(&binding(8)).is_err());
}

#[test]
fn it_knows_how_large_its_snapshot_will_be() {
    let (home, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let machine = SqliteMachine::open(home.path(), SCHEMA).unwrap();
    let chunk = (1..=200).map(|index| d_engine::Entry::new(index, 1, command(index))).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(machine.apply_chunk(chunk)).unwrap();
    let told = machine.snapshot_bytes().unwrap();
    machine.snapshot_view().unwrap().unwrap().write(dir.path()).unwrap();
    assert_eq!(told, std::fs::metadata(dir.path().join("state.db")).unwrap().len());
}
