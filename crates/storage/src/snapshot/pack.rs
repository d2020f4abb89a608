//! From the directory that a state machine wrote to an archive.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::chunks::{CHUNK_FRAME_LEN, TRAILER_LEN, Trailer, checksum_of_header, chunk_checksum};
use super::compress::compressed;
use super::content::ContentHash;
use super::directory::Inner;
use super::error::{hex, io_error};
use super::names::{MAX_DEPTH, MAX_FILES, fault_of};
use super::pace::keep_pace;
use super::{Compression, ENGINE_FORMAT, Pace, SnapshotError, SnapshotFacts, SnapshotFile, SnapshotHeader};
use crate::fs::{FileKind, Fs, FsFile, OpenMode, read_up_to, write_all_at};

/// An empty directory for a state machine to write a snapshot into, of its own. Dropping it removes the directory.
#[derive(Debug)]
pub struct Staging {
    pub(super) inner: Arc<Inner>,
    pub(super) path: PathBuf,
    /// A future of the state machine writes here, or did when it was dropped.
    pub(super) is_lent: bool,
}

impl Staging {
    /// A future that may be dropped before its end writes here from now on, by blocking work as well, which outlives it.
    pub fn lend(&mut self) {
        self.is_lent = true;
    }

    /// It has come to its end.
    pub fn give_back(&mut self) {
        self.is_lent = false;
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What stays is removed at the next start, or by the next `staging`: somebody may still write there.
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

/// The files below `dir` in byte order of their names.
pub(super) fn files_below(fs: &dyn Fs, dir: &Path) -> Result<Vec<SnapshotFile>, SnapshotError> {
    let mut files = Vec::new();
    collect(fs, dir, "", 1, &mut files)?;
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

fn collect(
    fs: &dyn Fs,
    dir: &Path,
    prefix: &str,
    depth: usize,
    files: &mut Vec<SnapshotFile>,
) -> Result<(), SnapshotError> {
    for name in fs.list(dir).map_err(io_error("list", dir))? {
        let path = dir.join(&name);
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let refuse = |what| Err(SnapshotError::Name { path: dir.to_owned(), name: name.clone(), what });
        match fs.kind(&path).map_err(io_error("look at", &path))? {
            FileKind::Dir if depth < MAX_DEPTH => collect(fs, &path, &name, depth + 1, files)?,
            FileKind::Dir => return refuse("has more than 16 parts"),
            FileKind::File if files.len() < MAX_FILES => {
                if let Some(what) = fault_of(&name) {
                    return refuse(what);
                }
                let file = fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
                let len = file.len().map_err(io_error("look at", &path))?;
                files.push(SnapshotFile { name, len });
            }
            FileKind::File => return refuse("is one of more than 65536 files"),
            FileKind::Other => return refuse("is neither a regular file nor a directory"),
        }
    }
    Ok(())
}

impl Inner {
    /// The header of the archive that would hold the files below `staging`.
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
        let file = self.create_temporary(path)?;
        let appended = cfg!(mutant = "snapshot-tmp-appended");
        let offset = if appended { file.len().map_err(io_error("look at", path))? } else { 0 };
        let mut writer = Writer {
            file,
            path,
            offset,
            synced: offset,
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
        let mut content = ContentHash::default();
        for file in &header.files {
            content.begin_file(file);
            let path = staging.join(&file.name);
            let source = self.fs.open(&path, OpenMode::Existing).map_err(io_error("open", &path))?;
            writer.add_file(&*source, &path, file.len, &mut content)?;
        }
        let found = content.finish();
        if found != header.facts.checksum {
            return Err(SnapshotError::ContentChecksum {
                label: header.facts.label,
                expected: hex(&header.facts.checksum),
                found: hex(&found),
            });
        }
        writer.finish()
    }

    /// A temporary file that a crash has left must not become a part of this one (FAULTS row 35).
    fn create_temporary(&self, path: &Path) -> Result<Arc<dyn FsFile>, SnapshotError> {
        let mode = if self.fs.kind(path).is_err() {
            OpenMode::CreateNew
        } else if cfg!(any(mutant = "snapshot-stale-tmp", mutant = "snapshot-tmp-appended")) {
            OpenMode::Existing
        } else {
            self.fs.remove_file(path).map_err(io_error("remove", path))?;
            OpenMode::CreateNew
        };
        self.fs.open(path, mode).map_err(io_error("create", path))
    }
}

struct Writer<'a> {
    file: Arc<dyn FsFile>,
    path: &'a Path,
    offset: u64,
    /// Up to here everything was synced.
    synced: u64,
    sync_bytes: u64,
    hash: Sha256,
    header_checksum: u32,
    /// Number of the chunk in the buffer.
    number: u64,
    compression: Compression,
    /// Room for the frame, then the content of the chunk under way.
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
            // Little by little: one large write-back would stall the log's syncs on the same disk.
            self.file.sync_data().map_err(io_error("sync", self.path))?;
            self.synced = self.offset;
        }
        Ok(())
    }

    fn put_chunk(&mut self) -> Result<(), SnapshotError> {
        let mut chunk = std::mem::take(&mut self.buffer);
        let length = chunk.len() as u64;
        if let Some(shorter) = compressed(self.compression, chunk.get(CHUNK_FRAME_LEN..).unwrap_or_default())
        {
            chunk.truncate(CHUNK_FRAME_LEN);
            chunk.extend_from_slice(&shorter);
        }
        if let Some((frame, content)) = chunk.split_at_mut_checked(CHUNK_FRAME_LEN) {
            let checksum = chunk_checksum(self.header_checksum, self.number, content);
            let (length, sum) = frame.split_at_mut(4);
            length.copy_from_slice(&(content.len() as u32).to_le_bytes());
            sum.copy_from_slice(&checksum.to_le_bytes());
        }
        self.put(&chunk)?;
        keep_pace(self.pace, length)?;
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
        content: &mut ContentHash,
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
        let now = source.len().map_err(io_error("look at", path))?;
        if now != len {
            return Err(SnapshotError::Changed { path: path.to_owned(), expected: len, found: now });
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), SnapshotError> {
        if self.buffer.len() > CHUNK_FRAME_LEN {
            self.put_chunk()?;
        }
        let sha256 = std::mem::take(&mut self.hash).finalize().into();
        let trailer = Trailer { total: self.offset + TRAILER_LEN as u64, sha256 };
        self.put(&trailer.encode())?;
        self.file.sync_all().map_err(io_error("sync", self.path))
    }
}
