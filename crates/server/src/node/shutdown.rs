//! The end of a node: a thread joins the others in the background and then releases the lock of the
//! directory.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use d_engine_core::NodeId;
use d_engine_locks::Unpoisoned;
use d_engine_storage::DirectoryLocks;
use tokio::sync::watch;

use crate::snapshots::Exchange;
use crate::threads::workers::start_thread;

/// How often a waiting shutdown logs which thread it waits for.
const TOLD_EVERY: Duration = Duration::from_secs(5);

/// The end of a node, shared by all callers that wait for it. A thread of its own joins the others:
/// it outlives the engine's handle and every runtime, and holds the locks of the directory until no
/// thread writes there any more.
pub(crate) struct Shutdown {
    waits_for: Arc<Mutex<Option<String>>>,
    ended: watch::Receiver<bool>,
}

/// Receives the threads to join, in the order of their start. Joining begins once this is dropped.
pub(crate) struct Joins(Sender<JoinHandle<()>>);

impl Joins {
    pub(crate) fn add(&self, thread: JoinHandle<()>) {
        // The joining thread receives until this sender is dropped, so this does not fail.
        self.0.send(thread).ok();
    }
}

impl Shutdown {
    /// Starts the thread that joins the added threads, and after them those that send and receive
    /// snapshots.
    pub(crate) fn start(
        name: String,
        locks: DirectoryLocks,
        exchange: Arc<Exchange>,
    ) -> std::io::Result<(Self, Joins)> {
        let (add, added) = channel();
        let (has_ended, ended) = watch::channel(false);
        let waits_for = Arc::new(Mutex::new(None));
        let told = waits_for.clone();
        start_thread(name, move || {
            join_all(&added, &exchange, &told);
            drop(locks);
            has_ended.send_replace(true);
        })?;
        Ok((Self { waits_for, ended }, Joins(add)))
    }

    /// Waits until all threads have ended. Logs every few seconds which one it still waits for.
    /// This future may be dropped: the next caller waits for the same end.
    pub(crate) async fn wait(&self, node: NodeId) {
        let mut ended = self.ended.clone();
        let began = Instant::now();
        while tokio::time::timeout(TOLD_EVERY, ended.wait_for(|ended| *ended)).await.is_err() {
            if let Some(thread) = self.waits_for() {
                let (seconds, why) = (began.elapsed().as_secs(), why_it_hangs(&thread));
                tracing::warn!(%node, thread, seconds, "the shutdown waits for a thread: {why}");
            }
        }
    }

    /// Returns the name of the thread that is being joined.
    fn waits_for(&self) -> Option<String> {
        lock(&self.waits_for).clone()
    }
}

fn lock(name: &Mutex<Option<String>>) -> MutexGuard<'_, Option<String>> {
    // No code panics while it holds the lock.
    name.lock().unpoisoned()
}

fn join_all(
    added: &Receiver<JoinHandle<()>>,
    exchange: &Exchange,
    waits_for: &Mutex<Option<String>>,
) {
    let join = |thread: JoinHandle<()>| {
        *lock(waits_for) = thread.thread().name().map(str::to_owned);
        // The thread has caught and reported a panic itself.
        thread.join().ok();
    };
    let threads: Vec<_> = added.iter().collect();
    threads.into_iter().for_each(join);
    // The raft thread has ended, and only it starts these.
    exchange.threads().into_iter().for_each(join);
}

/// Describes what a thread that does not end waits for, by its name.
fn why_it_hangs(thread: &str) -> &'static str {
    match thread.split('-').next() {
        Some("apply") => "the state machine has not returned from a call",
        Some("snap") => {
            "a view of the state machine or its scrub has not returned, or the disk of the \
             snapshots hangs"
        }
        Some("log" | "load") => "the disk of the log has not returned from a call",
        Some("send" | "receive") => {
            "a snapshot is being sent or received, and the disk of the snapshots hangs"
        }
        _ => "the thread has not ended",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::channel;

    use d_engine_storage::fs::sim::SimFs;
    use d_engine_storage::{Fs as _, LockAttempt};

    use super::*;
    use crate::snapshots::Exchange;

    /// The warning names the hanging thread, also one that receives a snapshot, and the directory
    /// stays locked.
    #[tokio::test]
    async fn a_shutdown_names_the_thread_that_it_waits_for_and_keeps_the_locks_until_all_have_ended()
     {
        for hangs in ["log-1", "receive-2"] {
            let fs = SimFs::new();
            let path = std::path::Path::new("/LOCK");
            let LockAttempt::Held(held) = fs.try_lock(path).unwrap() else {
                panic!("the lock is in use")
            };
            let exchange = Arc::new(Exchange::for_tests());
            let (ending, joins) =
                Shutdown::start("end-1".to_owned(), [held].into(), exchange.clone()).unwrap();
            let (let_go, wait) = channel::<()>();
            let hung = move || wait.recv().unwrap_or_default();
            if hangs == "receive-2" {
                exchange.spawn(hangs.to_owned(), hung, || panic!("no thread"));
            } else {
                joins.add(start_thread(hangs.to_owned(), hung).unwrap());
            }
            joins.add(start_thread("apply-1".to_owned(), || ()).unwrap());
            drop(joins);
            // `stop` does not wait for its threads; `ending` joins them.
            exchange.stop();
            while ending.waits_for().as_deref() != Some(hangs) {
                tokio::task::yield_now().await;
            }
            assert!(matches!(fs.try_lock(path).unwrap(), LockAttempt::InUse { .. }), "{hangs}");
            drop(let_go);
            ending.wait(NodeId::new(1).unwrap()).await;
            assert!(matches!(fs.try_lock(path).unwrap(), LockAttempt::Held(_)), "{hangs}");
        }
    }
}
