//! Ends the scrub thread at the node's shutdown.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::threads::work_queue::WorkQueue;

/// Ends the scrub thread, also in the middle of a round.
pub(crate) struct ScrubEnd {
    pub(crate) stops: AtomicBool,
    pub(crate) queue: WorkQueue<()>,
}

impl Default for ScrubEnd {
    fn default() -> Self {
        Self { stops: AtomicBool::new(false), queue: WorkQueue::new() }
    }
}

impl ScrubEnd {
    pub(crate) fn stop(&self) {
        self.stops.store(true, Ordering::Release);
        self.queue.close();
    }
}
