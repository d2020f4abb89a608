//! The file of an archive that is not complete yet.
//!
//! It needs no record of its progress. After an interruption or a crash, the part that verifies by
//! itself is kept: the header, and then chunk after chunk. Everything after it is requested again,
//! wherever the pieces of the new sender begin.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::archive::read_header;
use super::chunks::{Chunks, Trailer};
use super::error::{hex, io_error};
use super::pace::keep_pace;
use super::{Offer, Pace, SnapshotArchive, SnapshotError, SnapshotHeader};
use crate::fs::{Fs, FsFile, OpenMode, read_up_to, write_all_at};

/// An archive that is received piece by piece into one file.
#[derive(Debug)]
pub(super) struct PartialArchive {
    fs: Arc<dyn Fs>,
    offer: Offer,
    file: Arc<dyn FsFile>,
    path: PathBuf,
    received: u64,
    synced: u64,
    /// The file is synced after this many bytes, so that the final sync is short.
    sync_bytes: u64,
}

impl PartialArchive {
    /// Opens the partial file of this offer at `path`, a name that no other offer has, or begins
    /// it.
    pub(super) fn open(
        fs: Arc<dyn Fs>,
        path: PathBuf,
        offer: Offer,
        sync_bytes: u64,
        pace: &mut dyn Pace,
    ) -> Result<Self, SnapshotError> {
        let (file, is_new) = if fs.kind(&path).is_ok() {
            (fs.open(&path, OpenMode::Existing), false)
        } else {
            (fs.open(&path, OpenMode::CreateNew), true)
        };
        let file = file.map_err(io_error("open", &path))?;
        let received = if is_new { 0 } else { verified_prefix(&*file, &path, &offer, pace)? };
        if is_new {
            // Otherwise a power loss after an hour of receiving could lose the name.
            let dir = path.parent().unwrap_or(&path);
            fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        } else {
            file.set_len(received).map_err(io_error("truncate", &path))?;
        }
        Ok(Self { fs, offer, file, path, received, synced: 0, sync_bytes })
    }

    pub(super) fn offer(&self) -> &Offer {
        &self.offer
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// As [`super::Receiver::write`].
    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        crc: u32,
    ) -> Result<(), SnapshotError> {
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
        if self.received - self.synced >= self.sync_bytes {
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
            self.fs.remove_file(&self.path).ok();
        }
        synced.map_err(io_error("sync", &self.path))?;
        self.synced = self.received;
        Ok(())
    }

    /// Makes the content durable and verifies it as a whole: its owner by `check_owner`, what was
    /// offered, and every checksum. The file is removed if it can never become the offered archive.
    pub(super) fn complete(
        &mut self,
        pace: &mut dyn Pace,
        check_owner: impl FnOnce(&SnapshotHeader, &Path) -> Result<(), SnapshotError>,
    ) -> Result<SnapshotArchive, SnapshotError> {
        if self.received < self.offer.len {
            return Err(SnapshotError::Incomplete {
                path: self.path.clone(),
                received: self.received,
                length: self.offer.len,
            });
        }
        let synced = self.file.sync_all();
        self.after_sync(synced)?;
        let verified = self.verified(pace, check_owner);
        if verified
            .as_ref()
            .is_err_and(|error| !matches!(error, SnapshotError::Io { .. } | SnapshotError::Aborted))
        {
            self.fs.remove_file(&self.path).ok();
        }
        verified
    }

    fn verified(
        &self,
        pace: &mut dyn Pace,
        check_owner: impl FnOnce(&SnapshotHeader, &Path) -> Result<(), SnapshotError>,
    ) -> Result<SnapshotArchive, SnapshotError> {
        let archive = SnapshotArchive::of(Arc::clone(&self.file), &self.path)?;
        check_owner(archive.header(), &self.path)?;
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
