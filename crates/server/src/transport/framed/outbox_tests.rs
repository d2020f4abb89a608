//! The order and the bounds of an outbox.
#![allow(clippy::unwrap_used)]

use bytes::{Buf, Bytes};

use d_engine_wire::EncodedFrame;

use super::batch::Batch;
use super::outbox::{Lane, Outbox};
use super::wire::PART_BYTES;
use crate::transport::Sent;

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

/// A heartbeat never waits for all of a long append.
#[test]
fn a_long_append_goes_in_parts_and_urgent_frames_come_between_them() {
    let outbox = outbox(10, 1 << 20);
    let (head, entries) = (Bytes::from_static(b"head"), Bytes::from(vec![7; 3 * PART_BYTES]));
    let long = EncodedFrame { head, entries };
    assert_eq!(outbox.push(Lane::Bulk, long.clone()), Sent::Queued);
    let mut reader = super::wire::FrameReader::new(1 << 20);
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
        assert_eq!(full.push(Lane::Urgent, frame(4, 50)), Sent::Queued, "the other lane has space");
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
