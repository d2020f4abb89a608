//! The messages between nodes ([`message`]): converts engine types to wire bytes and back. The
//! simulator and the server use the same code.
//!
//! [`encode_frame`] and [`FrameEncoder`] encode a [`PeerMessage`](d_engine_replica::PeerMessage),
//! [`decode_frame`] decodes one. Whatever bytes a peer sends, decoding never panics, allocates at
//! most a small multiple of the frame's size, and refuses numbers so high that the core could
//! overflow when it counts on from them.

mod ask;
mod decode;
mod encode;
mod handshake;
mod snapshot;

pub use ask::{
    Answer, AskError, Question, decode_answer, decode_question, encode_answer, encode_question,
};
pub use decode::{FrameError, decode_frame};
pub use encode::{EncodedFrame, FrameEncoder, encode_frame};
pub use handshake::{
    Caller, Greeting, GreetingError, Inquiry, InquiryPurpose, JoinNumber, config_from_wire,
    config_to_wire, decode_handshake, encode_handshake, encode_inquiry,
};
pub use snapshot::{MAX_SNAPSHOT_FRAME_BYTES, decode_snapshot_frame, encode_snapshot_frame};

/// Messages between nodes, and the handshake before them (`proto/peer.proto`).
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod message {
    include!(concat!(env!("OUT_DIR"), "/d_engine.peer.v1.rs"));
}

/// The version of the peer protocol. Nodes with different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 2;

/// The longest frame to read or write, in bytes. A longer one is refused before memory is allocated
/// for it.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// The maximum number of entries in one append. It bounds the memory that a frame of tiny entries
/// decodes to.
pub const MAX_ENTRIES_PER_FRAME: usize = 1 << 16;

/// The longest payload of one entry, in bytes: half a frame, so that an entry with its envelope
/// always fits. A configured command limit must not be higher.
pub const MAX_ENTRY_DATA_BYTES: usize = MAX_FRAME_BYTES / 2;

/// The protobuf key of the field `entries` of `PeerFrame`: number 15, length-delimited.
const ENTRIES_KEY: u8 = (15 << 3) | 2;

#[cfg(test)]
mod tests;
