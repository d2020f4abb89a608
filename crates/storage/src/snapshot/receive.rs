//! Receives an archive from another node into the store; `partial.rs` says what of it survives an
//! interruption.

use std::sync::Arc;

use super::directory::Inner;
use super::offer::{Offer, partial_name};
use super::partial::PartialArchive;
use super::{Health, Pace, SnapshotError, SnapshotInfo};

/// Receives an archive piece by piece. Dropping it keeps what was received: the next
/// [`super::SnapshotStore::receive`] of the same offer continues there.
#[derive(Debug)]
pub struct Receiver {
    inner: Arc<Inner>,
    partial: PartialArchive,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.inner.busy().receiving = false;
    }
}

impl Receiver {
    /// Opens the partial file of this offer or begins one. `inner` is marked as receiving; dropping
    /// this value clears the mark.
    pub(super) fn open(
        inner: Arc<Inner>,
        offer: Offer,
        pace: &mut dyn Pace,
    ) -> Result<Self, SnapshotError> {
        let (fs, path) = (Arc::clone(&inner.fs), inner.dir.join(partial_name(&offer)));
        let partial = PartialArchive::open(fs, path, offer, inner.options.sync_bytes, pace)?;
        Ok(Self { inner, partial })
    }

    /// Returns the offer that is being received.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        self.partial.offer()
    }

    /// Returns the offset at which the next piece must begin; everything before it has been
    /// received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.partial.received()
    }

    /// Writes the piece at `offset`. Bytes that were received before are compared and skipped, so a
    /// piece may arrive twice.
    ///
    /// # Errors
    /// [`SnapshotError::Piece`], [`SnapshotError::Gap`], [`SnapshotError::PastEnd`] and
    /// [`SnapshotError::Overlap`] change nothing. After an I/O error, drop the receiver and begin
    /// again; if a sync failed, nothing that was received is left.
    pub fn write(&mut self, offset: u64, bytes: &[u8], crc: u32) -> Result<(), SnapshotError> {
        self.partial.write(offset, bytes, crc)
    }

    /// Makes the archive durable, verifies it as a whole, and publishes it among the finished ones.
    /// On success it also survives a power loss.
    ///
    /// # Errors
    /// [`SnapshotError::Incomplete`]: continue to receive. [`SnapshotError::Damaged`],
    /// [`SnapshotError::WrongOwner`], [`SnapshotError::UnsupportedFormat`]: the partial file is
    /// removed, and the finished snapshots are not affected. After [`SnapshotError::Aborted`] or an
    /// I/O error, receive the offer again; unless a sync failed, it continues where it ended.
    pub fn finish(mut self, pace: &mut dyn Pace) -> Result<SnapshotInfo, SnapshotError> {
        let inner = &self.inner;
        let archive =
            self.partial.complete(pace, |header, path| inner.check_owner(header, path))?;
        let path = inner.path_of(archive.last_included());
        inner.publish(self.partial.path(), &path)?;
        Ok(inner.register(&archive, path, Health::Whole))
    }
}
