//! The queue between the raft thread and one worker. `tests/models.rs` checks it under every order
//! of its threads' steps.

use std::time::{Duration, Instant};

use d_engine_locks::Unpoisoned;

use crate::sync::{Condvar, Mutex, MutexGuard};

/// Work for one thread. Its length is bounded by what the replica hands out: writes by the leader's
/// window and the limit on uncommitted bytes, apply jobs by their number.
pub(crate) struct WorkQueue<T> {
    state: Mutex<QueueState<T>>,
    wake: Condvar,
}

struct QueueState<T> {
    work: T,
    filled: bool,
    closed: bool,
}

/// The result of [`WorkQueue::take`].
pub(crate) enum Found<T> {
    Work(T),
    Idle,
    Closed(T),
}

impl<T: Default> WorkQueue<T> {
    pub(crate) fn new() -> Self {
        let state = QueueState { work: T::default(), filled: false, closed: false };
        Self { state: Mutex::new(state), wake: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<T>> {
        self.state.lock().unpoisoned()
    }

    /// Adds work. Once the queue is closed, the work is dropped, and with it the channels on which
    /// callers wait.
    pub(crate) fn put(&self, put: impl FnOnce(&mut T)) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        put(&mut state.work);
        state.filled = true;
        drop(state);
        self.wake.notify_one();
    }

    /// Closes the queue: the worker still executes what is queued.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.wake.notify_one();
    }

    /// Closes the queue after its worker has ended. Drops what is queued; the callers see their
    /// channels close.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.closed = true;
        let left = std::mem::take(&mut state.work);
        drop(state);
        drop(left);
    }

    /// Waits for `timeout`, or until the queue is closed. Returns whether it is closed.
    pub(crate) fn closes_within(&self, timeout: Duration) -> bool {
        let by = Instant::now() + timeout;
        let mut state = self.lock();
        while !state.closed {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.wake.wait_timeout(state, left);
            state = waited.unpoisoned().0;
        }
        true
    }

    pub(crate) fn take(&self, idle_after: Option<Duration>) -> Found<T> {
        let mut state = self.lock();
        loop {
            if state.closed {
                state.filled = false;
                return Found::Closed(std::mem::take(&mut state.work));
            }
            if state.filled {
                state.filled = false;
                return Found::Work(std::mem::take(&mut state.work));
            }
            let Some(timeout) = idle_after else {
                state = self.wake.wait(state).unpoisoned();
                continue;
            };
            let (after, waited) = self.wake.wait_timeout(state, timeout).unpoisoned();
            state = after;
            if waited.timed_out() && !state.filled && !state.closed {
                return Found::Idle;
            }
        }
    }
}
