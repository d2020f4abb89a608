//! Receives an archive from another node.
//!
//! A partial file needs no record of its progress. After an interruption or a crash, the part that
//! verifies by itself is kept: the header, and then chunk after chunk. Everything after it is
//! requested again, wherever the pieces of the new sender begin.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::read_header;
use super::chunks::{Chunks, Trailer};
use super::directory::Inner;
use super::error::{hex, io_error};
use super::offer::{Offer, partial_name};
use super::pace::keep_pace;
use super::{Health, Pace, SnapshotArchive, SnapshotError, SnapshotInfo};
use crate::fs::{FsFile, OpenMode, read_up_to, write_all_at};

/// Receives an archive piece by piece. Dropping it keeps what was received: the next
/// [`super::SnapshotStore::receive`] of the same offer continues there.
#[derive(Debug)]
pub struct Receiver {
    inner: Arc<Inner>,
    offer: Offer,
    file: Arc<dyn FsFile>,
    path: PathBuf,
    received: u64,
    synced: u64,
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
        let path = inner.dir.join(partial_name(&offer));
        let fs = &*inner.fs;
        let (file, is_new) = if fs.kind(&path).is_ok() {
            (fs.open(&path, OpenMode::Existing), false)
        } else {
            (fs.open(&path, OpenMode::CreateNew), true)
        };
        let file = file.map_err(io_error("open", &path))?;
        let received = if is_new { 0 } else { verified_prefix(&*file, &path, &offer, pace)? };
        if is_new {
            // Otherwise a power loss after an hour of receiving could lose the name.
            fs.sync_dir(&inner.dir).map_err(io_error("sync", &inner.dir))?;
        } else {
            file.set_len(received).map_err(io_error("truncate", &path))?;
        }
        Ok(Self { inner, offer, file, path, received, synced: 0 })
    }

    /// Returns the offer that is being received.
    #[must_use]
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Returns the offset at which the next piece must begin; everything before it has been
    /// received.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Writes the piece at `offset`. Bytes that were received before are compared and skipped, so a
    /// piece may arrive twice.
    ///
    /// # Errors
    /// [`SnapshotError::Piece`], [`SnapshotError::Gap`], [`SnapshotError::PastEnd`] and
    /// [`SnapshotError::Overlap`] change nothing. After an I/O error, drop the receiver and begin
    /// again; if a sync failed, nothing that was received is left.
    pub fn write(&mut self, offset: u64, bytes: &[u8], crc: u32) -> Result<(), SnapshotError> {
        let path = || self.path.clone();
        let found = crc32c::crc32c(bytes);
        if found != crc {
            return Err(SnapshotError::Piece { path: path(), offset, expected: crc, found });
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.offer.len {
            return Err(SnapshotError::PastEnd { path: path(), end, length: self.offer.len });
        }
        if offset > self.received {
            return Err(SnapshotError::Gap { path: path(), offset, expected: self.received });
        }
        let known = usize::try_from(self.received - offset).unwrap_or(usize::MAX).min(bytes.len());
        let (before, new) = bytes.split_at(known);
        if !self.holds(offset, before)? {
            return Err(SnapshotError::Overlap { path: path(), offset });
        }
        write_all_at(&*self.file, self.received, new).map_err(io_error("write", &self.path))?;
        self.received += new.len() as u64;
        if self.received - self.synced >= self.inner.options.sync_bytes {
            let synced = self.file.sync_data();
            self.after_sync(synced)?;
        }
        Ok(())
    }

    fn holds(&self, offset: u64, expected: &[u8]) -> Result<bool, SnapshotError> {
        let mut found = vec![0; expected.len()];
        let read =
            read_up_to(&*self.file, offset, &mut found).map_err(io_error("read", &self.path))?;
        Ok(read == expected.len() && found == expected)
    }

    /// Handles the result of a sync. After a failed one the operating system may show bytes that a
    /// power loss takes away, and report the next sync as successful (FAULTS row 33), so nothing is
    /// kept.
    fn after_sync(&mut self, synced: std::io::Result<()>) -> Result<(), SnapshotError> {
        if synced.is_err() {
            self.inner.fs.remove_file(&self.path).ok();
        }
        synced.map_err(io_error("sync", &self.path))?;
        self.synced = self.received;
        Ok(())
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
        if self.received < self.offer.len {
            return Err(SnapshotError::Incomplete {
                path: self.path.clone(),
                received: self.received,
                length: self.offer.len,
            });
        }
        let synced = self.file.sync_all();
        self.after_sync(synced)?;
        let archive = match self.verified(pace) {
            Ok(archive) => archive,
            Err(error) => {
                if !matches!(error, SnapshotError::Io { .. } | SnapshotError::Aborted) {
                    self.inner.fs.remove_file(&self.path).ok();
                }
                return Err(error);
            }
        };
        let path = self.inner.path_of(self.offer.last_included);
        self.inner.publish(&self.path, &path)?;
        Ok(self.inner.register(&archive, path, Health::Whole))
    }

    fn verified(&self, pace: &mut dyn Pace) -> Result<SnapshotArchive, SnapshotError> {
        let archive = SnapshotArchive::of(Arc::clone(&self.file), &self.path)?;
        self.inner.check_owner(archive.header(), &self.path)?;
        let wrong = |what, found, expected| {
            Err(SnapshotError::WrongOwner { path: self.path.clone(), what, found, expected })
        };
        if archive.last_included() != self.offer.last_included {
            return wrong(
                "last included entry",
                archive.last_included().to_string(),
                self.offer.last_included.to_string(),
            );
        }
        if archive.sha256() != self.offer.sha256 {
            return wrong("SHA-256", hex(&archive.sha256()), hex(&self.offer.sha256));
        }
        archive.verify(pace)?;
        Ok(archive)
    }
}

/// Returns the length of the prefix of a partial file that verifies.
fn verified_prefix(
    file: &dyn FsFile,
    path: &Path,
    offer: &Offer,
    pace: &mut dyn Pace,
) -> Result<u64, SnapshotError> {
    let len = file.len().map_err(io_error("read the length of", path))?;
    let (header, encoded) = match read_header(file, path, len) {
        Ok((header, _)) if header.facts.last_included != offer.last_included => return Ok(0),
        Ok(header) => header,
        Err(error @ SnapshotError::Io { .. }) => return Err(error),
        Err(_) => return Ok(0),
    };
    let mut chunks = Chunks::new(file, path, &header, &encoded);
    loop {
        match chunks.next() {
            Ok(Some(chunk)) => keep_pace(pace, chunk.stored.len() as u64)?,
            Ok(None) => break,
            Err(error @ SnapshotError::Io { .. }) => return Err(error),
            Err(_) => return Ok(bounded(chunks.offset, offer)),
        }
    }
    match Trailer::read(file, path, offer.len) {
        Ok(trailer) if trailer.sha256 == offer.sha256 && len >= offer.len => Ok(offer.len),
        Err(error @ SnapshotError::Io { .. }) => Err(error),
        _ => Ok(bounded(chunks.offset, offer)),
    }
}

/// Returns `offset`, or 0 if it exceeds the offer: a header that announces more than the offer is
/// not that of the offered archive.
fn bounded(offset: u64, offer: &Offer) -> u64 {
    if offset <= offer.len { offset } else { 0 }
}
