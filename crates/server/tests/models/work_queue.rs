//! The queue of a worker: nothing that was put is lost or taken twice, and its worker wakes.

use std::sync::Arc;

use loom::thread;

use crate::model;
use crate::threads::work_queue::{Found, WorkQueue};

type Numbers = WorkQueue<Vec<u64>>;

/// Takes until the queue is closed, as a worker does.
fn work(queue: &Numbers) -> Vec<u64> {
    let mut taken = Vec::new();
    loop {
        match queue.take(None) {
            Found::Work(numbers) => taken.extend(numbers),
            Found::Closed(numbers) => {
                taken.extend(numbers);
                return taken;
            }
            Found::Idle => {}
        }
    }
}

#[test]
fn a_worker_gets_everything_that_was_put_before_the_queue_was_closed() {
    model(|| {
        let queue = Arc::new(Numbers::new());
        let worker = thread::spawn({
            let queue = queue.clone();
            move || work(&queue)
        });
        queue.put(|numbers| numbers.push(1));
        queue.put(|numbers| numbers.push(2));
        queue.close();
        queue.put(|numbers| numbers.push(3));
        assert_eq!(worker.join().unwrap(), [1, 2], "what is put after the close is dropped");
    });
}

#[test]
fn what_two_threads_put_is_taken_once_each() {
    model(|| {
        let queue = Arc::new(Numbers::new());
        let other = thread::spawn({
            let queue = queue.clone();
            move || queue.put(|numbers| numbers.push(1))
        });
        let worker = thread::spawn({
            let queue = queue.clone();
            move || work(&queue)
        });
        queue.put(|numbers| numbers.push(2));
        other.join().unwrap();
        queue.close();
        let mut taken = worker.join().unwrap();
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}

/// A caller waits for the channel that it has put. The worker has ended, for whatever reason.
#[test]
fn what_is_put_while_the_worker_ends_is_dropped() {
    model(|| {
        let queue = Arc::new(WorkQueue::<Vec<Arc<()>>>::new());
        let channel = Arc::new(());
        let caller = thread::spawn({
            let (queue, channel) = (queue.clone(), channel.clone());
            move || queue.put(|work| work.push(channel))
        });
        queue.end();
        caller.join().unwrap();
        assert_eq!(Arc::strong_count(&channel), 1);
    });
}

#[test]
fn a_worker_that_waits_for_space_notices_the_close() {
    model(|| {
        let queue = Arc::new(Numbers::new());
        let raft = thread::spawn({
            let queue = queue.clone();
            move || queue.close()
        });
        // Loom's time stands still, so this returns only when the close has woken it.
        assert!(queue.closes_within(std::time::Duration::from_secs(3_600)));
        raft.join().unwrap();
    });
}
