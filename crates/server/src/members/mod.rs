//! Members that come and go: a node that joins (`join.rs`), the answers to it (`questions.rs`),
//! changes that a caller requests (`change.rs`), the members as callers see them (`view.rs`), how
//! members that have all moved find each other (`seeds.rs`), and who still answers when the
//! majority seems to be lost (`answering.rs`).

pub(crate) mod answering;
pub(crate) mod change;
pub(crate) mod join;
pub(crate) mod questions;
pub(crate) mod seeds;
#[cfg(test)]
mod stranger_tests;
pub(crate) mod view;
