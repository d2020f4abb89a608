//! Writes many frames with one vectored write.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};
use d_engine_wire::EncodedFrame;

use super::wire;

/// Entries up to this length are copied next to their head; longer ones are written from their own
/// buffer, which all followers share.
const COPIED_BYTES: usize = 4 << 10;

/// Frames to be written to the socket; a [`Buf`] once it is sealed.
#[derive(Default)]
pub(super) struct Batch {
    parts: VecDeque<Bytes>,
    small: BytesMut,
    sealed_bytes: usize,
}

impl Batch {
    /// Adds a frame with its length and checksum.
    pub(super) fn push(&mut self, frame: EncodedFrame) {
        self.push_piece(wire::Piece::Whole, frame);
    }

    /// Adds a frame or a part of one, with its length and checksum.
    pub(super) fn push_piece(&mut self, piece: wire::Piece, frame: EncodedFrame) {
        self.small.extend_from_slice(&wire::header_of(piece, &[&frame.head, &frame.entries]));
        self.small.extend_from_slice(&frame.head);
        if frame.entries.len() <= COPIED_BYTES {
            self.small.extend_from_slice(&frame.entries);
        } else {
            self.seal();
            self.add_part(frame.entries);
        }
    }

    /// Adds a frame without payload.
    pub(super) fn push_ping(&mut self) {
        self.small.extend_from_slice(&wire::header(&[]));
    }

    /// Makes everything added so far readable.
    pub(super) fn seal(&mut self) {
        if !self.small.is_empty() {
            let small = self.small.split().freeze();
            self.add_part(small);
        }
    }

    fn add_part(&mut self, part: Bytes) {
        self.sealed_bytes += part.len();
        self.parts.push_back(part);
    }
}

impl Buf for Batch {
    fn remaining(&self) -> usize {
        self.sealed_bytes
    }

    fn chunk(&self) -> &[u8] {
        self.parts.front().map_or(&[], Bytes::as_ref)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, part) in slices.iter_mut().zip(&self.parts) {
            *slice = IoSlice::new(part);
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        self.sealed_bytes -= count;
        while let Some(part) = self.parts.front_mut() {
            if count < part.len() {
                part.advance(count);
                return;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(head: &'static [u8], entries: Bytes) -> EncodedFrame {
        EncodedFrame { head: Bytes::from_static(head), entries }
    }

    #[test]
    fn frames_come_out_whole_and_in_order_however_they_are_advanced() {
        let long = Bytes::from(vec![7; COPIED_BYTES + 1]);
        let fill = || {
            let mut batch = Batch::default();
            batch.push(frame(b"one", Bytes::from_static(b"short")));
            batch.push(frame(b"two", long.clone()));
            batch.push_ping();
            batch.push(frame(b"three", Bytes::new()));
            batch.seal();
            batch
        };
        let whole = fill().copy_to_bytes(fill().remaining());
        let mut reader = wire::FrameReader::new(1 << 20);
        reader.buffer().extend_from_slice(&whole);
        let mut frames = Vec::new();
        while let Some(payload) = reader.next().unwrap() {
            frames.push(payload);
        }
        assert_eq!(frames.len(), 4);
        assert_eq!(&frames[0][..], b"oneshort");
        assert_eq!(frames[1].len(), 3 + long.len());
        assert!(frames[2].is_empty());
        assert_eq!(&frames[3][..], b"three");

        for step in [1, 7, 4096, 5000] {
            let mut batch = fill();
            let mut collected = Vec::new();
            while batch.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 8];
                let count = batch.chunks_vectored(&mut slices);
                let joined: Vec<u8> =
                    slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
                assert_eq!(joined.len(), batch.remaining());
                let now = step.min(joined.len());
                collected.extend_from_slice(&joined[..now]);
                batch.advance(now);
            }
            assert_eq!(collected, whole, "in steps of {step}");
        }
    }

    #[test]
    fn long_entries_are_not_copied() {
        let long = Bytes::from(vec![7; COPIED_BYTES + 1]);
        let mut batch = Batch::default();
        batch.push(frame(b"head", long.clone()));
        assert!(batch.parts.iter().any(|part| part.as_ptr() == long.as_ptr()));
    }
}
