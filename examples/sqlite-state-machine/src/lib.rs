//! SQLite as a replicated state machine: every SQL statement in the log is executed on every node.
//!
//! `machine` is the state machine, `store` one database with its position, and `sql` the statements
//! that are allowed: those with the same effect on every node.

mod machine;
mod sql;
mod store;

pub use machine::SqliteMachine;
pub use sql::{Command, Reply, Value};
