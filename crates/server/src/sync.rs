//! The primitives by which the threads of a node share data. `tests/models.rs` compiles the files
//! that use them with the primitives of a model checker instead.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

pub(crate) use tokio::sync::Notify;
