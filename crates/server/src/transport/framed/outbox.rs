//! The messages that wait for one peer: two lanes, both bounded.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use d_engine_proto::engine::EncodedFrame;
use d_engine_replica::PeerMessage;
use tokio::sync::Notify;

use super::PART_BYTES;
use super::batch::Batch;
use super::wire::Piece;
use crate::transport::Sent;

/// Which messages go first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Small and awaited: heartbeats, votes, every answer.
    Urgent,
    /// Appends, also empty ones: they must keep their order.
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

/// Filled by the raft thread, emptied by the task that writes to the peer.
pub(super) struct Outbox {
    lanes: Mutex<Lanes>,
    filled: Notify,
    max_frames: usize,
    max_bytes: usize,
}

#[derive(Default)]
struct Lanes {
    /// Nothing is taken while there is no connection: it would be stale by the time there is one.
    open: bool,
    /// The peer was given up: never open again.
    retired: bool,
    urgent: Queue,
    bulk: Queue,
    dropped: u64,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<EncodedFrame>,
    bytes: usize,
    /// So much of the first frame was taken out before, in parts.
    taken_of_first: usize,
}

impl Queue {
    fn pop(&mut self) -> Option<EncodedFrame> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }

    /// The first frame, or the next part of it if it is a long one.
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

/// The bytes of a frame between two places in it; shared, not copied.
fn slice(frame: &EncodedFrame, from: usize, to: usize) -> EncodedFrame {
    let head = frame.head.len();
    EncodedFrame {
        head: frame.head.slice(from.min(head)..to.min(head)),
        entries: frame.entries.slice(from.saturating_sub(head)..to.saturating_sub(head)),
    }
}

impl Outbox {
    pub(super) fn new(max_frames: usize, max_bytes: usize) -> Self {
        Self { lanes: Mutex::default(), filled: Notify::new(), max_frames, max_bytes }
    }

    // No caller panics while it holds the lock.
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection stands: messages are taken from now on. False when the peer was given up
    /// meanwhile.
    pub(super) fn open(&self) -> bool {
        let mut lanes = self.lanes();
        lanes.open = !lanes.retired;
        lanes.open
    }

    /// Closes for good. Whether there was a connection.
    pub(super) fn retire(&self) -> bool {
        let was_open = self.close();
        self.lanes().retired = true;
        was_open
    }

    pub(super) fn is_open(&self) -> bool {
        self.lanes().open
    }

    /// The connection is gone, and with it whatever waited. Whether there was one.
    pub(super) fn close(&self) -> bool {
        let mut lanes = self.lanes();
        let was_open = lanes.open;
        *lanes = Lanes { dropped: lanes.dropped, retired: lanes.retired, ..Lanes::default() };
        was_open
    }

    /// Takes a frame, or loses it when its lane is full. An empty lane takes any frame.
    pub(super) fn push(&self, lane: Lane, frame: EncodedFrame) -> Sent {
        let mut lanes = self.lanes();
        if !lanes.open {
            return Sent::Lost;
        }
        let queue = match lane {
            Lane::Urgent => &mut lanes.urgent,
            Lane::Bulk => &mut lanes.bulk,
        };
        let full = queue.frames.len() >= self.max_frames || queue.bytes + frame.len() > self.max_bytes;
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

    /// Moves frames into the batch: everything urgent, then appends until they reach `bulk_bytes`. A long
    /// append goes in parts, so that what is urgent gets its turn between them.
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

    /// Resolves after something was pushed since the last `take` that found nothing.
    pub(super) async fn filled(&self) {
        self.filled.notified().await;
    }

    pub(super) fn stats(&self) -> OutboxStats {
        let lanes = self.lanes();
        OutboxStats { dropped: lanes.dropped, queued_bytes: lanes.urgent.bytes + lanes.bulk.bytes }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Buf, Bytes};

    use super::*;

    fn frame(byte: u8, length: usize) -> EncodedFrame {
        EncodedFrame { head: Bytes::from(vec![byte; length]), entries: Bytes::new() }
    }

    fn outbox(max_frames: usize, max_bytes: usize) -> Outbox {
        let outbox = Outbox::new(max_frames, max_bytes);
        assert!(outbox.open());
        outbox
    }

    /// The first payload byte of each frame taken, in order of sending.
    fn taken(outbox: &Outbox, bulk_bytes: usize) -> Vec<u8> {
        let mut batch = Batch::default();
        outbox.take(&mut batch, bulk_bytes);
        batch.seal();
        let mut bytes = batch.copy_to_bytes(batch.remaining());
        let mut order = Vec::new();
        while bytes.has_remaining() {
            let length = bytes.get_u32_le() as usize;
            bytes.advance(4);
            order.push(bytes[0]);
            bytes.advance(length);
        }
        order
    }

    #[test]
    fn urgent_frames_overtake_bulk_and_each_lane_keeps_its_order() {
        let outbox = outbox(10, 1000);
        for (lane, byte) in [(Lane::Bulk, 1), (Lane::Urgent, 2), (Lane::Bulk, 3), (Lane::Urgent, 4)] {
            assert_eq!(outbox.push(lane, frame(byte, 5)), Sent::Queued);
        }
        assert_eq!(taken(&outbox, 1000), [2, 4, 1, 3]);
    }

    #[test]
    fn a_batch_takes_bulk_only_up_to_its_size_so_that_urgent_frames_get_their_turn() {
        let outbox = outbox(10, 1000);
        for byte in 1..=3 {
            assert_eq!(outbox.push(Lane::Bulk, frame(byte, 50)), Sent::Queued);
        }
        assert_eq!(taken(&outbox, 60), [1, 2]);
        assert_eq!(outbox.push(Lane::Urgent, frame(9, 5)), Sent::Queued);
        assert_eq!(taken(&outbox, 60), [9, 3]);
        assert_eq!(outbox.stats().queued_bytes, 0);
    }

    /// A heartbeat never waits for the whole of a long append.
    #[test]
    fn a_long_append_goes_in_parts_and_urgent_frames_come_between_them() {
        let outbox = outbox(10, 1 << 20);
        let (head, entries) = (Bytes::from_static(b"head"), Bytes::from(vec![7; 3 * PART_BYTES]));
        let long = EncodedFrame { head, entries };
        assert_eq!(outbox.push(Lane::Bulk, long.clone()), Sent::Queued);
        let mut reader = super::super::wire::FrameReader::new(1 << 20);
        let mut lengths = Vec::new();
        for _ in 0..4 {
            assert_eq!(outbox.push(Lane::Urgent, frame(1, 5)), Sent::Queued);
            let mut batch = Batch::default();
            outbox.take(&mut batch, 1);
            batch.seal();
            assert!(batch.remaining() <= PART_BYTES + 100, "{} bytes", batch.remaining());
            reader.buffer().extend_from_slice(&batch.copy_to_bytes(batch.remaining()));
            while let Some(payload) = reader.next().unwrap() {
                lengths.push(payload.len());
                assert!(payload.len() == 5 || payload == long.to_bytes());
            }
        }
        assert_eq!(lengths, [5, 5, 5, 5, long.len()]);
        assert_eq!(outbox.stats().queued_bytes, 0);
    }

    #[test]
    fn a_full_lane_loses_the_newest_frame_and_says_so() {
        for full in [outbox(2, 1000), outbox(10, 100)] {
            assert_eq!(full.push(Lane::Bulk, frame(1, 50)), Sent::Queued);
            assert_eq!(full.push(Lane::Bulk, frame(2, 50)), Sent::Queued);
            assert_eq!(full.push(Lane::Bulk, frame(3, 50)), Sent::Lost);
            assert_eq!(full.push(Lane::Urgent, frame(4, 50)), Sent::Queued, "the other lane has room");
            assert_eq!(full.stats().dropped, 1);
            assert_eq!(taken(&full, 1000), [4, 1, 2]);
        }
    }

    #[test]
    fn a_frame_longer_than_the_queue_is_taken_when_it_waits_alone() {
        let outbox = outbox(10, 10);
        assert_eq!(outbox.push(Lane::Bulk, frame(1, 50)), Sent::Queued);
        assert_eq!(outbox.push(Lane::Bulk, frame(2, 1)), Sent::Lost);
    }

    #[test]
    fn what_waits_is_lost_with_the_connection() {
        let outbox = outbox(10, 1000);
        assert_eq!(outbox.push(Lane::Bulk, frame(1, 5)), Sent::Queued);
        assert!(outbox.close());
        assert!(!outbox.close());
        assert_eq!(outbox.push(Lane::Urgent, frame(2, 5)), Sent::Lost);
        assert!(outbox.open());
        assert_eq!(taken(&outbox, 1000), Vec::<u8>::new());
    }

    #[test]
    fn the_outbox_of_a_peer_that_was_given_up_never_opens_again() {
        let outbox = outbox(10, 1000);
        assert!(outbox.retire());
        assert!(!outbox.open());
        assert_eq!(outbox.push(Lane::Urgent, frame(1, 5)), Sent::Lost);
    }
}
