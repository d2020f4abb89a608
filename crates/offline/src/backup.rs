//! Backups: files with a snapshot archive, copied out of a cluster that serves. The format is that
//! of a node's own snapshots (`docs/file-format.md`), and [`crate::restore`] makes a new cluster of
//! one.

use std::path::Path;
use std::sync::Arc;

pub use d_engine_storage::snapshot::{
    BackupFile, Offer, Pace, SnapshotArchive, SnapshotError, SnapshotHeader,
};

use crate::Fs;

/// An intact backup.
#[derive(Clone, Debug)]
pub struct Verified {
    /// What the file says of itself.
    pub header: Arc<SnapshotHeader>,
    /// Length of the file in bytes.
    pub bytes: u64,
    /// SHA-256 of everything before the trailer.
    pub sha256: [u8; 32],
}

/// Reads a whole backup and compares every checksum. Blocks; changes nothing.
///
/// # Errors
/// [`SnapshotError::Damaged`] with the place; `d_engine::offline::inspect` says what else is
/// damaged. [`SnapshotError::UnsupportedFormat`], [`SnapshotError::Aborted`], or an I/O error.
pub fn verify(fs: &dyn Fs, file: &Path, pace: &mut dyn Pace) -> Result<Verified, SnapshotError> {
    let archive = SnapshotArchive::open_file(fs, file)?;
    archive.verify(pace)?;
    let (bytes, sha256) = (archive.len(), archive.sha256());
    Ok(Verified { header: Arc::clone(archive.header()), bytes, sha256 })
}
