//! The layout of a log in files.

use crate::log::segment::Alignment;

/// How a [`crate::FileStorageEngine`] lays out its log.
#[derive(Clone, Debug)]
pub struct FileStorageOptions {
    /// Size at which a segment is full, in bytes. A larger write group makes its segment larger.
    pub segment_bytes: u64,
    /// The boundaries of write groups in new segments. Existing segments keep theirs.
    pub alignment: Alignment,
    /// A segment that was not prepared grows by this many bytes of zeros at a time.
    pub grow_bytes: u64,
    /// Bytes that one call of [`crate::LogStore::idle`] fills with zeros, in the current segment
    /// and then in the next. This bounds the time that a write may have to wait for such a call.
    /// Call it repeatedly while the log is idle.
    pub prepare_bytes: u64,
    /// Files of purged segments that are kept for reuse, each of up to `segment_bytes`: overwriting
    /// them is faster than growing new ones. Further files are removed.
    pub spare_segments: usize,
    /// Zeros kept after the log's end for terms and votes alone, so that a node without space for
    /// entries still stores these. The next group of entries restores what was used.
    pub reserve_bytes: u64,
}

impl Default for FileStorageOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            alignment: Alignment::default(),
            grow_bytes: 1 << 20,
            prepare_bytes: 8 << 20,
            spare_segments: 4,
            reserve_bytes: 64 << 10,
        }
    }
}
