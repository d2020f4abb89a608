//! What a poisoned lock means, in one place: nothing.
//!
//! The standard library poisons a lock when a thread panics while it holds it. Here a panic is
//! noticed where the thread ends, not at the next lock: a panic on a node's thread ends the node
//! with the reason (`guarded` in `crates/server/src/threads/workers.rs`), and a panic of a user's
//! state machine is caught around the call. What a lock guards is valid after every statement under
//! it, so the next thread may continue, for example to answer the callers that wait. A lock for
//! which that does not hold must not use [`Unpoisoned`].

use std::sync::{LockResult, PoisonError};

/// The guard of a lock, whether or not a thread has panicked while it held the lock.
///
/// It is implemented for what every `lock`, `read`, `write` and `wait` returns, so it serves
/// `Mutex`, `RwLock` and `Condvar`, and those of the model checker loom too.
///
/// ```
/// use std::sync::Mutex;
///
/// use d_engine_locks::Unpoisoned;
///
/// let calls = Mutex::new(0);
/// *calls.lock().unpoisoned() += 1;
/// assert_eq!(calls.into_inner().unpoisoned(), 1);
/// ```
pub trait Unpoisoned {
    /// What the lock guards.
    type Guard;

    /// Returns the guard, and ignores that the lock is poisoned.
    fn unpoisoned(self) -> Self::Guard;
}

impl<G> Unpoisoned for LockResult<G> {
    type Guard = G;

    fn unpoisoned(self) -> G {
        self.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Mutex;

    use super::Unpoisoned;

    #[test]
    fn a_panic_under_a_lock_leaves_the_value_to_the_next_thread() {
        let value = Mutex::new(1);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut value = value.lock().unpoisoned();
            *value = 2;
            panic!("this test panics under the lock");
        }));
        assert!(panicked.is_err() && value.is_poisoned());
        assert_eq!(*value.lock().unpoisoned(), 2);
    }
}
