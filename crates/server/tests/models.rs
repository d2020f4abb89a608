//! The structs that threads of a node share, under every order of the threads' steps, and under
//! every value that a weak memory may return. Loom runs each model once for each of these.
//!
//! The files are the node's own: compiled here, `crate::sync` is loom's instead of the standard
//! library's. A model has two or three threads and few steps, because their orders are many.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, missing_docs)]

/// The primitives that `src/sync.rs` provides to the node.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64};
    pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};

    /// What `tokio::sync::Notify` guarantees for one waiting task: a notification is kept until the
    /// task takes it.
    pub(crate) struct Notify {
        permit: Mutex<bool>,
        wake: Condvar,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Self { permit: Mutex::new(false), wake: Condvar::new() }
        }

        pub(crate) fn notify_one(&self) {
            *self.permit.lock().unwrap() = true;
            self.wake.notify_one();
        }

        pub(crate) async fn notified(&self) {
            let mut permit = self.permit.lock().unwrap();
            while !std::mem::take(&mut *permit) {
                permit = self.wake.wait(permit).unwrap();
            }
        }
    }
}

/// A clock that stands still: the lease of the models is valid at every moment.
mod node {
    pub(crate) mod clock {
        #[derive(Clone, Copy)]
        pub(crate) struct Clock;

        impl Clock {
            pub(crate) fn now(&self) -> d_engine_core::Instant {
                d_engine_core::Instant::from_nanos(10)
            }
        }
    }
}

#[path = "../src/threads/inbox.rs"]
mod inbox;
#[path = "../src/threads/read_gate.rs"]
mod read_gate;
#[path = "../src/threads/work_queue.rs"]
mod work_queue;

mod threads {
    pub(crate) use crate::{inbox, read_gate, work_queue};
}

mod transport {
    pub(crate) use d_engine_server::transport::{ReceivePermit, Sent};
}

#[path = "models/framed.rs"]
mod framed;
#[path = "models/inbox.rs"]
mod inbox_model;
#[path = "models/read_gate.rs"]
mod read_gate_model;
#[path = "models/work_queue.rs"]
mod work_queue_model;

/// Runs a model under every order of its threads' steps with at most three preemptions. More add
/// no order that finds a bug of two threads, and take much longer.
fn model(check: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(check);
}

/// The result of a future that waits only inside loom's primitives.
fn run<T>(future: impl Future<Output = T>) -> T {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(future).poll(&mut context) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => unreachable!("the model's primitives block their thread"),
    }
}
