//! SQLite as a replicated state machine: whatever SQL statement is put into the log is carried out on every node.
//!
//! `machine` is the state machine, `store` one database with the position in it, `sql` what a statement may do: the
//! same on every node, or nothing.

mod machine;
mod sql;
mod store;

pub use machine::SqliteMachine;
pub use sql::{Command, Reply, Value};
