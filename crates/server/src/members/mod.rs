//! Members that come and go: a node that joins (`join.rs`), the answers to it (`questions.rs`),
//! changes that a caller requests (`change.rs`), and the members as callers see them (`view.rs`).

pub(crate) mod change;
pub(crate) mod join;
pub(crate) mod questions;
pub(crate) mod view;
