//! Unpacks an archive into the directory that a state machine reads.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::io_error;
use super::{Pace, SnapshotArchive, SnapshotError, SnapshotFile};
use crate::fs::tree::fault_of;
use crate::fs::{Fs, FsFile, OpenMode, ensure_dir, write_all_at};

/// A large file is synced each time this many bytes of it have been written, to leave the disk to
/// the log's syncs.
const SYNC_BYTES: u64 = 4 << 20;

impl SnapshotArchive {
    /// Writes the files of the archive into `dir`, which must be empty or missing, verifies every
    /// chunk and the whole, and syncs files and directories. If this fails, `dir` is removed. After
    /// a crash `dir` may not be empty, and the caller must remove it.
    ///
    /// # Errors
    /// [`SnapshotError::NotEmpty`], [`SnapshotError::Damaged`], [`SnapshotError::Aborted`], or an
    /// I/O error.
    pub fn unpack(
        &self,
        fs: &dyn Fs,
        dir: &Path,
        pace: &mut dyn Pace,
    ) -> Result<(), SnapshotError> {
        ensure_dir(fs, dir).map_err(io_error("create", dir))?;
        if !fs.list(dir).map_err(io_error("list", dir))?.is_empty() {
            return Err(SnapshotError::NotEmpty { path: dir.to_owned() });
        }
        let unpacked = self.unpack_into(fs, dir, pace);
        if unpacked.is_err() {
            // Half a snapshot must not be mistaken for a whole one. If it cannot be removed, the
            // next attempt fails with `NotEmpty`.
            fs.remove_tree(dir).ok();
        }
        unpacked
    }

    fn unpack_into(
        &self,
        fs: &dyn Fs,
        dir: &Path,
        pace: &mut dyn Pace,
    ) -> Result<(), SnapshotError> {
        let mut target = Target { fs, dir, dirs: BTreeSet::new(), open: None };
        let mut files = self.header().files.iter();
        target.next_file(&mut files)?;
        self.check(pace, &mut |chunk| {
            let mut rest = chunk.content;
            while !rest.is_empty() {
                rest = target.write(rest)?;
                if !rest.is_empty() {
                    target.next_file(&mut files)?;
                }
            }
            Ok(())
        })?;
        // Empty files after the last byte.
        target.next_file(&mut files)?;
        target.sync_dirs()
    }
}

struct Target<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    /// Directories created below `dir`.
    dirs: BTreeSet<PathBuf>,
    open: Option<OpenFile>,
}

struct OpenFile {
    file: Arc<dyn FsFile>,
    path: PathBuf,
    written: u64,
    synced: u64,
    len: u64,
}

impl Target<'_> {
    /// Closes the current file and opens the next one that has any bytes, creating empty ones on
    /// the way.
    fn next_file<'f>(
        &mut self,
        files: &mut impl Iterator<Item = &'f SnapshotFile>,
    ) -> Result<(), SnapshotError> {
        self.close()?;
        for next in files {
            let path = self.dir.join(&next.name);
            // The header was checked when it was read; this check guards the line that would write
            // elsewhere.
            if let Some(what) = fault_of(&next.name) {
                return Err(SnapshotError::Name { path, name: next.name.clone(), what });
            }
            self.create_parents(&path)?;
            let file =
                self.fs.open(&path, OpenMode::CreateNew).map_err(io_error("create", &path))?;
            self.open = Some(OpenFile { file, path, written: 0, synced: 0, len: next.len });
            if next.len > 0 {
                break;
            }
            self.close()?;
        }
        Ok(())
    }

    fn create_parents(&mut self, path: &Path) -> Result<(), SnapshotError> {
        let parents = path.ancestors().skip(1).take_while(|parent| *parent != self.dir);
        let mut missing: Vec<&Path> =
            parents.filter(|parent| !self.dirs.contains(*parent)).collect();
        while let Some(parent) = missing.pop() {
            self.fs.create_dir(parent).map_err(io_error("create", parent))?;
            self.dirs.insert(parent.to_owned());
        }
        Ok(())
    }

    /// Writes the bytes that still belong to the current file. Returns the rest.
    fn write<'b>(&mut self, bytes: &'b [u8]) -> Result<&'b [u8], SnapshotError> {
        // The header's lengths add up to the content's, so a file is always open here.
        let Some(open) = &mut self.open else { return Ok(&[]) };
        let room = usize::try_from(open.len - open.written).unwrap_or(usize::MAX);
        let (mine, rest) = bytes.split_at(room.min(bytes.len()));
        write_all_at(&*open.file, open.written, mine).map_err(io_error("write", &open.path))?;
        open.written += mine.len() as u64;
        if open.written - open.synced >= SYNC_BYTES {
            open.file.sync_data().map_err(io_error("sync", &open.path))?;
            open.synced = open.written;
        }
        Ok(rest)
    }

    fn close(&mut self) -> Result<(), SnapshotError> {
        match self.open.take() {
            Some(open) => open.file.sync_all().map_err(io_error("sync", &open.path)),
            None => Ok(()),
        }
    }

    fn sync_dirs(&self) -> Result<(), SnapshotError> {
        for dir in self.dirs.iter().map(PathBuf::as_path).chain([self.dir]) {
            self.fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        }
        Ok(())
    }
}
