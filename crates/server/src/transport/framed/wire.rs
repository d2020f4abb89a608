//! The framing of messages: preamble, length, checksum.

use bytes::{Buf, Bytes, BytesMut};
use d_engine_wire::PROTOCOL_VERSION;

use super::RefusalKind;

const MAGIC: &[u8; 8] = b"d-engine";
pub(super) const PREAMBLE_BYTES: usize = 12;
const HEADER_BYTES: usize = 8;
/// The bits of a frame's length field that hold the length; see [`Piece`] for the others.
const LENGTH_BITS: u32 = (1 << 30) - 1;
/// The longest frame of a handshake; a stranger receives no more memory than that.
pub(super) const MAX_HANDSHAKE_BYTES: usize = 4 << 10;
/// The bytes that are reserved for reading at a time.
const READ_BYTES: usize = 64 << 10;

/// The first bytes that each side sends.
pub(super) fn preamble() -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    let (magic, version) = bytes.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    version.copy_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    bytes
}

/// Checks the other side's preamble.
pub(super) fn check_preamble(bytes: [u8; PREAMBLE_BYTES]) -> Result<(), (RefusalKind, String)> {
    let Some(version) = bytes.strip_prefix(MAGIC) else {
        return Err((
            RefusalKind::OtherProtocol,
            "it does not speak the peer protocol of d-engine".to_owned(),
        ));
    };
    let theirs = version.try_into().map(u32::from_le_bytes).unwrap_or(0);
    if theirs != PROTOCOL_VERSION {
        let text =
            format!("it speaks protocol version {theirs}, this node speaks {PROTOCOL_VERSION}");
        return Err((RefusalKind::ProtocolVersion, text));
    }
    Ok(())
}

/// Longer appends are sent in parts of this length.
pub(super) const PART_BYTES: usize = 16 << 10;

/// Whether a frame is a whole payload or a part of one. Other frames may come between the parts of
/// a payload, so that nothing waits for all of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Piece {
    Whole,
    Part,
    LastPart,
}

impl Piece {
    /// The two highest bits of a frame's length field.
    const fn bits(self) -> u32 {
        match self {
            Self::Whole => 0,
            Self::Part => 1 << 31,
            Self::LastPart => 1 << 30,
        }
    }
}

/// Returns length and checksum of a payload that is given in slices.
pub(super) fn header(slices: &[&[u8]]) -> [u8; HEADER_BYTES] {
    header_of(Piece::Whole, slices)
}

/// Returns length and checksum of a payload, or of a part of one.
pub(super) fn header_of(piece: Piece, parts: &[&[u8]]) -> [u8; HEADER_BYTES] {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // Every frame is far shorter than 1 GiB; the receiver would refuse a longer one.
    let length = u32::try_from(length).unwrap_or(LENGTH_BITS).min(LENGTH_BITS) | piece.bits();
    let length = length.to_le_bytes();
    let checksum =
        parts.iter().fold(crc32c::crc32c(&length), |crc, part| crc32c::crc32c_append(crc, part));
    let mut header = [0; HEADER_BYTES];
    let (first, second) = header.split_at_mut(4);
    first.copy_from_slice(&length);
    second.copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Cuts a stream of bytes into checked payloads. Memory grows with the bytes that were received,
/// never with an announced length.
#[derive(Debug)]
pub(super) struct FrameReader {
    buffer: BytesMut,
    /// The received parts of a long payload.
    parts: BytesMut,
    max_bytes: usize,
}

impl FrameReader {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), parts: BytesMut::new(), max_bytes }
    }

    /// Allows frames of up to `max_bytes`: the handshake is over.
    pub(super) fn allow(&mut self, max_bytes: usize) {
        self.max_bytes = max_bytes;
    }

    /// Returns the buffer to read into.
    pub(super) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Reserves space for the next read: a fixed amount, or as much again as was received of a long
    /// frame.
    ///
    /// A payload is a slice of the allocation that it was read into and keeps that allocation
    /// alive. An allocation is therefore filled before the next one is made; otherwise every small
    /// frame would pin one.
    pub(super) fn reserve(&mut self) {
        if self.buffer.capacity() - self.buffer.len() >= READ_BYTES / 16 {
            return;
        }
        let wanted = READ_BYTES.min(self.max_bytes + HEADER_BYTES).max(self.buffer.len());
        self.buffer.reserve(wanted);
    }

    /// Returns the next payload; `None` if more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, (RefusalKind, String)> {
        while let Some((piece, payload)) = self.next_piece()? {
            if piece == Piece::Whole {
                return Ok(Some(payload));
            }
            let length = self.parts.len() + payload.len();
            if length > self.max_bytes {
                return Err(self.oversized(length));
            }
            self.parts.extend_from_slice(&payload);
            if piece == Piece::LastPart {
                return Ok(Some(std::mem::take(&mut self.parts).freeze()));
            }
        }
        Ok(None)
    }

    fn oversized(&self, length: usize) -> (RefusalKind, String) {
        let text = format!(
            "it announced a frame of {length} bytes; at most {} are allowed",
            self.max_bytes
        );
        (RefusalKind::OversizedFrame, text)
    }

    fn next_piece(&mut self) -> Result<Option<(Piece, Bytes)>, (RefusalKind, String)> {
        let Some((header, after)) = self.buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, checksum @ ..] = *header;
        let word = u32::from_le_bytes([a, b, c, d]);
        let length = (word & LENGTH_BITS) as usize;
        if length > self.max_bytes {
            return Err(self.oversized(length));
        }
        let piece = [Piece::Whole, Piece::Part, Piece::LastPart];
        let Some(piece) = piece.into_iter().find(|piece| piece.bits() == word & !LENGTH_BITS)
        else {
            return Err((
                RefusalKind::MalformedFrame,
                "it sent a frame of an unknown kind".to_owned(),
            ));
        };
        let Some(payload) = after.get(..length) else {
            return Ok(None);
        };
        let found = crc32c::crc32c_append(crc32c::crc32c(&[a, b, c, d]), payload);
        if found != u32::from_le_bytes(checksum) {
            return Err((
                RefusalKind::Checksum,
                "a frame was damaged in transit: its checksum does not match".to_owned(),
            ));
        }
        self.buffer.advance(HEADER_BYTES);
        Ok(Some((piece, self.buffer.split_to(length).freeze())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payload: &[u8]) -> Vec<u8> {
        [&header(&[payload])[..], payload].concat()
    }

    #[test]
    fn a_frame_is_found_however_its_bytes_arrive() {
        let stream = [framed(b"first"), framed(b""), framed(b"third")].concat();
        for step in 1..=stream.len() {
            let mut reader = FrameReader::new(100);
            let mut found = Vec::new();
            for piece in stream.chunks(step) {
                reader.buffer().extend_from_slice(piece);
                while let Some(payload) = reader.next().unwrap() {
                    found.push(payload);
                }
            }
            assert_eq!(found, [&b"first"[..], b"", b"third"], "in steps of {step}");
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_in_a_frame_is_noticed() {
        let good = framed(b"payload");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            // More bytes follow, so that a flipped length finds enough of them.
            bad.extend_from_slice(&[0; 200]);
            let mut reader = FrameReader::new(150);
            reader.buffer().extend_from_slice(&bad);
            assert!(reader.next().is_err(), "bit {bit} was not noticed");
        }
    }

    /// Payloads keep alive the memory that they were read into. If every read allocated, a cache of
    /// small entries would hold many times the bytes that it counts.
    #[test]
    fn small_frames_that_come_one_by_one_share_their_memory() {
        let mut reader = FrameReader::new(1 << 20);
        let mut kept: Vec<Bytes> = Vec::new();
        let mut pieces = 1;
        for _ in 0..500 {
            reader.reserve();
            reader.buffer().extend_from_slice(&framed(&[7; 100]));
            let payload = reader.next().unwrap().unwrap();
            let follows = kept.last().is_none_or(|last| {
                last.as_ptr().addr() + last.len() + HEADER_BYTES == payload.as_ptr().addr()
            });
            pieces += usize::from(!follows);
            kept.push(payload);
        }
        // 54,000 bytes in pieces of 64 KiB.
        assert!(pieces <= 2, "500 small frames took {pieces} pieces of memory");
    }

    fn part(piece: Piece, payload: &[u8]) -> Vec<u8> {
        [&header_of(piece, &[payload])[..], payload].concat()
    }

    #[test]
    fn the_parts_of_a_payload_come_together_and_others_come_between_them() {
        let mut reader = FrameReader::new(100);
        let stream = [
            part(Piece::Part, b"long "),
            framed(b"heartbeat"),
            part(Piece::Part, b"append "),
            framed(b""),
            part(Piece::LastPart, b"ends"),
            framed(b"next"),
        ];
        reader.buffer().extend_from_slice(&stream.concat());
        let mut found = Vec::new();
        while let Some(payload) = reader.next().unwrap() {
            found.push(payload);
        }
        assert_eq!(found, [&b"heartbeat"[..], b"", b"long append ends", b"next"]);
    }

    #[test]
    fn parts_are_bounded_together_as_one_frame_is() {
        let mut reader = FrameReader::new(100);
        for _ in 0..3 {
            reader.buffer().extend_from_slice(&part(Piece::Part, &[7; 40]));
        }
        assert_eq!(reader.next().unwrap_err().0, RefusalKind::OversizedFrame);
        let mut reader = FrameReader::new(100);
        reader.buffer().extend_from_slice(&[0, 0, 0, 0xc0, 0, 0, 0, 0]);
        assert_eq!(reader.next().unwrap_err().0, RefusalKind::MalformedFrame);
    }

    #[test]
    fn an_announced_length_is_refused_before_anything_is_allocated_for_it() {
        let mut reader = FrameReader::new(16 << 20);
        reader.buffer().extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 1, 2]);
        let capacity = reader.buffer().capacity();
        assert_eq!(reader.next().unwrap_err().0, RefusalKind::OversizedFrame);
        assert_eq!(reader.buffer().capacity(), capacity);
    }

    #[test]
    fn memory_grows_with_what_came_not_with_what_was_announced() {
        let mut reader = FrameReader::new(16 << 20);
        let announced = (15_u32 << 20).to_le_bytes();
        reader.buffer().extend_from_slice(&[&announced[..], &[0; 6]].concat());
        assert_eq!(reader.next().unwrap(), None);
        reader.reserve();
        assert!(reader.buffer().capacity() < 256 << 10, "{} bytes", reader.buffer().capacity());
        let mut stranger = FrameReader::new(MAX_HANDSHAKE_BYTES);
        stranger.reserve();
        assert!(stranger.buffer().capacity() < 2 * MAX_HANDSHAKE_BYTES);
    }

    /// Every version must be able to read the preamble, so nothing but the version may change.
    #[test]
    fn the_preamble_is_the_golden_one() {
        assert_eq!(&preamble(), b"d-engine\x02\x00\x00\x00");
        assert_eq!(check_preamble(preamble()), Ok(()));
        let kind = |bytes: &[u8; 12]| check_preamble(*bytes).unwrap_err().0;
        assert_eq!(kind(b"d-engine\x01\x00\x00\x00"), RefusalKind::ProtocolVersion);
        assert_eq!(kind(b"GET / HTTP/1"), RefusalKind::OtherProtocol);
    }
}
