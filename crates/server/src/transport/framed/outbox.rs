//! The messages queued for one peer: two lanes, both bounded. `tests/models.rs` checks the queue
//! under every order of its threads' steps.

use std::collections::VecDeque;

use d_engine_locks::Unpoisoned;
use d_engine_replica::PeerMessage;
use d_engine_wire::EncodedFrame;

use super::batch::Batch;
use super::wire::{PART_BYTES, Piece};
use crate::sync::{Mutex, MutexGuard, Notify};
use crate::transport::Sent;

/// The priority of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Short and urgent: heartbeats, votes, all responses.
    Urgent,
    /// Appends, including empty ones: they must keep their order.
    Bulk,
}

impl Lane {
    pub(super) fn of(message: &PeerMessage) -> Self {
        if matches!(message, PeerMessage::Append { .. }) { Self::Bulk } else { Self::Urgent }
    }
}

/// Counters of one outbox.
pub(super) struct OutboxStats {
    pub(super) dropped: u64,
    pub(super) queued_bytes: usize,
}

/// The raft thread fills it, and the task that writes to the peer empties it.
pub(super) struct Outbox {
    lanes: Mutex<Lanes>,
    filled: Notify,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Lanes {
    /// Whether there is a connection. Without one nothing is queued, because it would be stale by
    /// the time there is one.
    open: bool,
    /// The peer was disconnected for good: never opens again.
    retired: bool,
    urgent: Queue,
    bulk: Queue,
    dropped: u64,
}

impl Lanes {
    /// Closes them and drops what is queued. Returns whether they were open.
    fn close(&mut self) -> bool {
        let was_open = self.open;
        *self = Self { dropped: self.dropped, retired: self.retired, ..Self::default() };
        was_open
    }
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<EncodedFrame>,
    bytes: usize,
    /// Bytes of the first frame that were already taken, in parts.
    taken_of_first: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<EncodedFrame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// Takes the first frame, or the next part of it if it is long.
    fn pop_piece(&mut self) -> Option<(Piece, EncodedFrame)> {
        let first = self.frames.front()?;
        let left = first.len() - self.taken_of_first;
        if self.taken_of_first == 0 && left <= PART_BYTES {
            return self.pop().map(|frame| (Piece::Whole, frame));
        }
        let from = self.taken_of_first;
        let to = from + left.min(PART_BYTES);
        let part = slice(first, from, to);
        self.bytes -= to - from;
        if to < first.len() {
            self.taken_of_first = to;
            return Some((Piece::Part, part));
        }
        self.taken_of_first = 0;
        self.frames.pop_front();
        Some((Piece::LastPart, part))
    }
}

/// Returns the bytes of a frame between two offsets; shared, not copied.
fn slice(frame: &EncodedFrame, from: usize, to: usize) -> EncodedFrame {
    let head = frame.head.len();
    EncodedFrame {
        head: frame.head.slice(from.min(head)..to.min(head)),
        entries: frame.entries.slice(from.saturating_sub(head)..to.saturating_sub(head)),
    }
}

impl Outbox {
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { lanes: Mutex::new(Lanes::default()), filled: Notify::new(), max_frames, max_bytes }
    }

    // No caller panics while it holds the lock.
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unpoisoned()
    }

    /// Opens the outbox for messages: there is a connection. Returns `false` if the peer was
    /// disconnected meanwhile.
    pub(super) fn open(&self) -> bool {
        let mut lanes = self.lanes();
        lanes.open = !lanes.retired;
        lanes.open
    }

    /// Closes the outbox for good. Returns whether there was a connection.
    pub(super) fn retire(&self) -> bool {
        // Under one lock: a task that has just connected must not open it in between.
        let mut lanes = self.lanes();
        lanes.retired = true;
        lanes.close()
    }

    pub(super) fn is_open(&self) -> bool {
        self.lanes().open
    }

    /// Closes the outbox and drops the queued messages: the connection is lost. Returns whether
    /// there was one.
    pub(super) fn close(&self) -> bool {
        self.lanes().close()
    }

    /// Enqueues a frame, or drops it if its lane is full. An empty lane accepts any frame.
    pub(super) fn push(&self, lane: Lane, frame: EncodedFrame) -> Sent {
        let mut lanes = self.lanes();
        if !lanes.open {
            return Sent::Lost;
        }
        let queue = match lane {
            Lane::Urgent => &mut lanes.urgent,
            Lane::Bulk => &mut lanes.bulk,
        };
        let full =
            queue.frames.len() >= self.max_frames || queue.bytes + frame.len() > self.max_bytes;
        if full && !queue.frames.is_empty() {
            lanes.dropped += 1;
            return Sent::Lost;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        drop(lanes);
        self.filled.notify_one();
        Sent::Queued
    }

    /// Moves frames into the batch: everything urgent, then appends until they reach `bulk_bytes`.
    /// A long append is moved in parts, so that urgent frames can be sent between them.
    pub(super) fn take(&self, batch: &mut Batch, bulk_bytes: usize) {
        let mut lanes = self.lanes();
        while let Some(frame) = lanes.urgent.pop() {
            batch.push(frame);
        }
        let mut taken = 0;
        while taken < bulk_bytes
            && let Some((piece, frame)) = lanes.bulk.pop_piece()
        {
            taken += frame.len();
            batch.push_piece(piece, frame);
        }
    }

    /// Resolves once something was pushed after the last `take` that found nothing.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    pub(super) fn stats(&self) -> OutboxStats {
        let lanes = self.lanes();
        OutboxStats { dropped: lanes.dropped, queued_bytes: lanes.urgent.bytes + lanes.bulk.bytes }
    }
}
