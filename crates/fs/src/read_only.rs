//! A file system on which nothing can be changed.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::{FileKind, Fs, FsCounts, FsFile, LockAttempt, OpenMode};

/// Another file system, for reading only: whatever would change a file, a directory or a lock is
/// refused with `ReadOnlyFilesystem`. [`OpenMode::Existing`] opens for reading, so a user who may
/// only read the files can use it, on a disk that is mounted for reading too.
#[derive(Debug)]
pub struct ReadOnlyFs {
    fs: Arc<dyn Fs>,
}

impl ReadOnlyFs {
    /// `fs`, for reading only.
    #[must_use]
    pub fn new(fs: Arc<dyn Fs>) -> Self {
        Self { fs }
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Fs for ReadOnlyFs {
    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        match mode {
            OpenMode::Existing | OpenMode::ReadOnly => {
                Ok(Arc::new(ReadOnlyFile(self.fs.open(path, OpenMode::ReadOnly)?)))
            }
            OpenMode::CreateNew => refused(),
        }
    }

    fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_file(&self, _path: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.fs.list(dir)
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn try_lock(&self, _path: &Path) -> io::Result<LockAttempt> {
        refused()
    }

    fn try_lock_dir(&self, _dir: &Path) -> io::Result<LockAttempt> {
        refused()
    }

    fn lock_holder(&self, path: &Path) -> io::Result<Option<String>> {
        self.fs.lock_holder(path)
    }

    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        self.fs.kind(path)
    }

    fn remove_tree(&self, _dir: &Path) -> io::Result<()> {
        refused()
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.fs.free_bytes(dir)
    }

    fn counts(&self) -> FsCounts {
        self.fs.counts()
    }
}

/// A file that is only read.
#[derive(Debug)]
struct ReadOnlyFile(Arc<dyn FsFile>);

impl FsFile for ReadOnlyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, buffer)
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> io::Result<usize> {
        refused()
    }

    fn sync_data(&self) -> io::Result<()> {
        refused()
    }

    fn sync_all(&self) -> io::Result<()> {
        refused()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        refused()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RealFs, read_file};

    #[test]
    fn files_can_be_read_and_nothing_can_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "content").unwrap();
        let fs = ReadOnlyFs::new(Arc::new(RealFs::new()));
        assert_eq!(read_file(&fs, &path).unwrap(), b"content");
        let file = fs.open(&path, OpenMode::Existing).unwrap();
        let other = dir.path().join("other");
        let refusals = [
            file.write_at(0, b"x").map(drop),
            file.set_len(0),
            file.sync_data(),
            file.sync_all(),
            fs.open(&other, OpenMode::CreateNew).map(drop),
            fs.create_dir(&other),
            fs.rename(&path, &other),
            fs.remove_file(&path),
            fs.remove_tree(dir.path()),
            fs.sync_dir(dir.path()),
            fs.try_lock(&other).map(drop),
            fs.try_lock_dir(dir.path()).map(drop),
        ];
        for (number, refusal) in refusals.into_iter().enumerate() {
            let error = refusal.expect_err("it must be refused");
            assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem, "{number}");
        }
        assert_eq!(fs.list(dir.path()).unwrap(), ["file"]);
        assert_eq!(std::fs::read(&path).unwrap(), b"content");
    }
}
