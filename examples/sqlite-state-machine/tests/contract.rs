//! Every line of the contract, each as a test.
#![allow(clippy::unwrap_used)]

use d_engine::StateMachine as _;
use d_engine::testing::{StateMachineCase, state_machine_suite};
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
        .undecodable(Command::new("INSERT INTO notes VALUES (random(), 0, 0)", []).encode().unwrap())
        // Pages that are free hold what was there before.
        .snapshots_may_differ()
);
