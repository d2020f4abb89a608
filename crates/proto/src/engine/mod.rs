//! Engine types to wire bytes and back. The simulator and the server use the same code.
//!
//! [`encode_frame`] and [`FrameEncoder`] write a [`PeerMessage`](d_engine_replica::PeerMessage),
//! [`decode_frame`] reads one. Whatever a peer sends, decoding never panics, allocates at most a
//! small multiple of the frame's own size, and lets through no number that the core could not
//! count on from.

mod decode;
mod encode;
mod errors;
mod hello;
mod snapshot;

pub use decode::{FrameError, decode_frame};
pub use encode::{EncodedFrame, FrameEncoder, encode_frame};
pub use errors::{propose_error_detail, read_error_detail, skip_error_detail, transfer_error_detail};
pub use hello::{Greeting, GreetingError, decode_hello, encode_hello};
pub use snapshot::{MAX_SNAPSHOT_FRAME_BYTES, decode_snapshot_frame, encode_snapshot_frame};

/// The longest frame that is read or written, in bytes. A longer one is refused before anything is
/// allocated for it.
pub const MAX_FRAME_BYTES: usize = 16 << 20;

/// The most entries in one append: a bound on what a frame of tiny entries unfolds to in memory.
pub const MAX_ENTRIES_PER_FRAME: usize = 1 << 16;

/// The longest payload of one entry, in bytes; half a frame, so that an entry with its envelope
/// always fits. Configured command limits must not be higher.
pub const MAX_ENTRY_DATA_BYTES: usize = MAX_FRAME_BYTES / 2;

/// Key of the field `entries` of `PeerFrame`: number 15, length-delimited.
const ENTRIES_KEY: u8 = (15 << 3) | 2;

#[cfg(test)]
mod tests;
