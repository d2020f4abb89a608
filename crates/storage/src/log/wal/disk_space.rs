//! What the log knows of the space on its disk.

/// The state of the log regarding disk space.
#[derive(Debug, Default)]
pub(super) struct DiskSpace {
    /// Whether a group waits for space.
    pub(super) waits: bool,
    /// The segment for whose first group the hard states are already in the buffer.
    pub(super) opened_in: u64,
    /// Whether `log.meta` must be written to match the log.
    pub(super) record_due: bool,
    /// Nothing is prepared until the next purge, because there was no space for it.
    pub(super) is_tight: bool,
    /// Free bytes at the last check.
    pub(super) free_bytes: Option<u64>,
    /// Bytes written since the last check.
    pub(super) unseen: u64,
}
