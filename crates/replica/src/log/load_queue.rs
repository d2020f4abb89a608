//! The reads of the log that wait for the thread that reads it.

use crate::event::LoadJob;

/// Queued reads of the log for followers that lag: at most one for each follower.
#[derive(Debug, Default)]
pub struct LoadQueue {
    queued: Vec<LoadJob>,
}

impl LoadQueue {
    /// Queues a read. It replaces the queued read for the same follower, whose leader has restarted
    /// at another index.
    pub fn put(&mut self, job: LoadJob) {
        self.queued.retain(|queued| queued.to != job.to);
        self.queued.push(job);
    }

    /// Whether no read waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queued.is_empty()
    }

    /// Removes all queued reads and returns them in the order of their execution.
    pub fn take(&mut self) -> Vec<LoadJob> {
        std::mem::take(&mut self.queued)
    }
}

#[cfg(test)]
mod tests {
    use d_engine_core::{LogIndex, NodeId};

    use super::*;

    /// While a disk hangs, the reads for the same follower are planned again and again.
    #[test]
    fn the_last_planned_read_for_each_follower_is_queued() {
        let mut queue = LoadQueue::default();
        for (to, first) in [(2, 1), (3, 1), (2, 5), (2, 9)] {
            let (to, first) = (NodeId::new(to).unwrap(), LogIndex::new(first));
            queue.put(LoadJob { to, token: first.get(), first, last: first, max_bytes: 1 });
        }
        let queued: Vec<_> =
            queue.take().iter().map(|job| (job.to.get(), job.first.get())).collect();
        assert_eq!(queued, [(3, 1), (2, 9)]);
        assert!(queue.is_empty());
    }
}
