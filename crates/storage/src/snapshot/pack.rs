//! Packs the directory that a state machine wrote into an archive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::chunks::{CHUNK_FRAME_LEN, TRAILER_LEN, Trailer, checksum_of_header, chunk_checksum};
use super::compress::compressed;
use super::directory::Inner;
use super::error::{hex, io_error};
use super::pace::keep_pace;
use super::{Compression, ENGINE_FORMAT, Pace, SnapshotError, SnapshotFacts, SnapshotHeader};
use crate::fs::tree::{TreeHash, files_below};
use crate::fs::{FsFile, OpenMode, read_up_to, write_all_at};

/// An empty directory of its own for a state machine to write a snapshot into. Dropping it removes
/// the directory.
#[derive(Debug)]
pub struct Staging {
    pub(super) inner: Arc<Inner>,
    pub(super) path: PathBuf,
    /// Whether a future of the state machine writes here, or did when it was dropped.
    pub(super) is_lent: bool,
}

impl Staging {
    /// Records that from now on a future writes here that may be dropped before its end. Its
    /// blocking work may outlive it.
    pub fn lend(&mut self) {
        self.is_lent = true;
    }

    /// Records that the future has ended.
    pub fn give_back(&mut self) {
        self.is_lent = false;
    }

    /// Returns the path of the directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // If something stays because it is still written to, it is removed at the next start or by
        // the next `staging`.
        self.inner.fs.remove_tree(&self.path).ok();
        if let Some(attempts) = self.path.parent()
            && self.inner.fs.list(attempts).is_ok_and(|left| left.is_empty())
        {
            self.inner.fs.remove_tree(attempts).ok();
        }
        let mut busy = self.inner.busy();
        busy.staging = false;
        busy.given_up += usize::from(self.is_lent);
    }
}

impl Inner {
    /// Returns the header of an archive of the files below `staging`.
    pub(super) fn header_for(
        &self,
        staging: &Path,
        facts: &SnapshotFacts,
    ) -> Result<SnapshotHeader, SnapshotError> {
        Ok(SnapshotHeader {
            cluster: self.options.cluster,
            group: self.options.group,
            facts: facts.clone(),
            engine_format: ENGINE_FORMAT,
            compression: self.options.compression,
            chunk_bytes: self.options.chunk_bytes,
            files: files_below(&*self.fs, staging)?,
        })
    }

    /// Writes the archive into the new file at `path` and syncs it.
    pub(super) fn write_archive(
        &self,
        staging: &Path,
        path: &Path,
        header: &SnapshotHeader,
        encoded: &Bytes,
        pace: &mut dyn Pace,
    ) -> Result<(), SnapshotError> {
        let mut writer = self.writer(path, header, encoded, pace)?;
        let mut content = TreeHash::default();
        for file in &header.files {
            content.begin_file(file);
            let path = staging.join(&file.name);
            let source =
                self.fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
            writer.add_file(&*source, &path, file.len, &mut content)?;
        }
        let found = content.finish();
        if found != header.facts.checksum {
            return Err(SnapshotError::ContentChecksum {
                last_included: header.facts.last_included,
                expected: hex(&header.facts.checksum),
                found: hex(&found),
            });
        }
        writer.finish()
    }

    /// Begins the archive in the new file at `path` with its header.
    pub(super) fn writer<'a>(
        &self,
        path: &'a Path,
        header: &SnapshotHeader,
        encoded: &Bytes,
        pace: &'a mut dyn Pace,
    ) -> Result<Writer<'a>, SnapshotError> {
        let mut writer = Writer {
            file: self.create_temporary(path)?,
            path,
            offset: 0,
            synced: 0,
            sync_bytes: self.options.sync_bytes,
            hash: Sha256::new(),
            header_checksum: checksum_of_header(encoded),
            number: 0,
            compression: header.compression,
            buffer: vec![0; CHUNK_FRAME_LEN],
            full: CHUNK_FRAME_LEN + header.chunk_bytes as usize,
            pace,
        };
        writer.put(encoded)?;
        Ok(writer)
    }

    /// Creates the temporary file. One that a crash has left must not become part of it (FAULTS row
    /// 35).
    fn create_temporary(&self, path: &Path) -> Result<Arc<dyn FsFile>, SnapshotError> {
        if self.fs.kind(path).is_ok() {
            self.fs.remove_file(path).map_err(io_error("remove", path))?;
        }
        self.fs.open(path, OpenMode::CreateNew).map_err(io_error("create", path))
    }
}

/// Writes an archive.
pub(super) struct Writer<'a> {
    file: Arc<dyn FsFile>,
    path: &'a Path,
    offset: u64,
    /// Everything up to this offset is synced.
    synced: u64,
    sync_bytes: u64,
    hash: Sha256,
    header_checksum: u32,
    /// Number of the chunk in the buffer.
    number: u64,
    compression: Compression,
    /// Space for the frame, then the content of the current chunk.
    buffer: Vec<u8>,
    /// Length of the buffer with a whole chunk in it.
    full: usize,
    pace: &'a mut dyn Pace,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.hash.update(bytes);
        write_all_at(&*self.file, self.offset, bytes).map_err(io_error("write", self.path))?;
        self.offset += bytes.len() as u64;
        if self.offset - self.synced >= self.sync_bytes {
            // Sync often: one large write-back would stall the log's syncs on the same disk.
            self.file.sync_data().map_err(io_error("sync", self.path))?;
            self.synced = self.offset;
        }
        Ok(())
    }

    fn put_chunk(&mut self) -> Result<(), SnapshotError> {
        let mut chunk = std::mem::take(&mut self.buffer);
        let length = chunk.len() as u64;
        if let Some(shorter) =
            compressed(self.compression, chunk.get(CHUNK_FRAME_LEN..).unwrap_or_default())
        {
            chunk.truncate(CHUNK_FRAME_LEN);
            chunk.extend_from_slice(&shorter);
        }
        self.seal(&mut chunk);
        self.put(&chunk)?;
        keep_pace(self.pace, length)?;
        self.number += 1;
        chunk.truncate(CHUNK_FRAME_LEN);
        self.buffer = chunk;
        Ok(())
    }

    /// Writes the frame of the next chunk: the length of its content and their checksum.
    fn seal(&self, chunk: &mut [u8]) {
        if let Some((frame, content)) = chunk.split_at_mut_checked(CHUNK_FRAME_LEN) {
            let checksum = chunk_checksum(self.header_checksum, self.number, content);
            let (length, sum) = frame.split_at_mut(4);
            length.copy_from_slice(&(content.len() as u32).to_le_bytes());
            sum.copy_from_slice(&checksum.to_le_bytes());
        }
    }

    /// Adds a chunk of another archive as it is stored there, with its frame. Its checksum is made
    /// anew.
    pub(super) fn put_stored(&mut self, stored: &[u8]) -> Result<(), SnapshotError> {
        let mut chunk = std::mem::take(&mut self.buffer);
        chunk.clear();
        chunk.extend_from_slice(stored);
        self.seal(&mut chunk);
        self.put(&chunk)?;
        keep_pace(self.pace, chunk.len() as u64)?;
        self.number += 1;
        chunk.truncate(CHUNK_FRAME_LEN);
        self.buffer = chunk;
        Ok(())
    }

    fn add_file(
        &mut self,
        source: &dyn FsFile,
        path: &Path,
        len: u64,
        content: &mut TreeHash,
    ) -> Result<(), SnapshotError> {
        let mut found = 0;
        while found < len {
            let start = self.buffer.len();
            let take = usize::try_from(len - found).unwrap_or(usize::MAX).min(self.full - start);
            self.buffer.resize(start + take, 0);
            let room = self.buffer.get_mut(start..).unwrap_or_default();
            let read = read_up_to(source, found, room).map_err(io_error("read", path))?;
            content.add(room.get(..read).unwrap_or_default());
            found += read as u64;
            if read < take {
                return Err(SnapshotError::Changed { path: path.to_owned(), expected: len, found });
            }
            if self.buffer.len() == self.full {
                self.put_chunk()?;
            }
        }
        let now = source.len().map_err(io_error("read the length of", path))?;
        if now != len {
            return Err(SnapshotError::Changed {
                path: path.to_owned(),
                expected: len,
                found: now,
            });
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<(), SnapshotError> {
        if self.buffer.len() > CHUNK_FRAME_LEN {
            self.put_chunk()?;
        }
        let sha256 = std::mem::take(&mut self.hash).finalize().into();
        let trailer = Trailer { total: self.offset + TRAILER_LEN as u64, sha256 };
        self.put(&trailer.encode())?;
        self.file.sync_all().map_err(io_error("sync", self.path))
    }
}
