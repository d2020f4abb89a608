//! The messages between nodes, with payloads. The core sees the same messages without them.

use std::sync::Arc;

use d_engine_core::Message;
use d_engine_storage::LogEntry;

/// A message between two nodes of one group, whose appends carry entries with their payloads,
/// shared by all followers that are sent the same range. `d-engine-wire` encodes and decodes it;
/// the simulator uses the same encoding.
pub type PeerMessage = Message<Arc<[LogEntry]>>;
