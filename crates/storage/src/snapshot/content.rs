//! The checksum of a snapshot's files, by which the engine and a state machine agree that it is whole.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::error::io_error;
use super::pack::files_below;
use super::{SnapshotError, SnapshotFile};
use crate::fs::{Fs, OpenMode, read_up_to};

/// How much of a file is in memory at a time.
const READ_AT_ONCE: usize = 64 << 10;

/// SHA-256 over files in byte order of their names: length of the name as u32, the name, length of the
/// content as u64, the content; numbers little-endian.
#[derive(Default)]
pub(super) struct ContentHash(Sha256);

impl ContentHash {
    /// The content of this file comes next.
    pub(super) fn begin_file(&mut self, file: &SnapshotFile) {
        // Names are shorter than 4 GiB on any file system.
        self.0.update((file.name.len() as u32).to_le_bytes());
        self.0.update(file.name.as_bytes());
        self.0.update(file.len.to_le_bytes());
    }

    pub(super) fn add(&mut self, content: &[u8]) {
        self.0.update(content);
    }

    pub(super) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
    }
}

/// The checksum of the files below `dir`, the one that an archive of them is checked against when it is
/// packed. Empty directories leave no trace.
///
/// # Errors
/// An I/O error, [`SnapshotError::Name`] for what could not be packed, or [`SnapshotError::Changed`].
pub fn content_checksum(fs: &dyn Fs, dir: &Path) -> Result<[u8; 32], SnapshotError> {
    let mut hash = ContentHash::default();
    let mut buffer = vec![0; READ_AT_ONCE];
    for file in files_below(fs, dir)? {
        let path = dir.join(&file.name);
        let source = fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
        hash.begin_file(&file);
        let mut found = 0;
        loop {
            let read = read_up_to(&*source, found, &mut buffer).map_err(io_error("read", &path))?;
            hash.add(buffer.get(..read).unwrap_or_default());
            found += read as u64;
            if read < READ_AT_ONCE {
                break;
            }
        }
        if found != file.len {
            return Err(SnapshotError::Changed { path, expected: file.len, found });
        }
    }
    Ok(hash.finish())
}
