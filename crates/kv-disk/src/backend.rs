//! Lets the database do its I/O through the engine's `Fs` trait, so that tests can cut its power.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use d_engine_fs::{FsFile, is_out_of_space, write_all_at};

/// One open file.
#[derive(Debug)]
pub(crate) struct Backend {
    pub(crate) file: Arc<dyn FsFile>,
    pub(crate) failures: Arc<Failures>,
}

/// What has failed in a file since it was opened. After any failure the database library refuses to
/// use the file any more, and no longer says why.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    /// The first lack of space.
    room: OnceLock<(io::ErrorKind, Option<i32>)>,
    /// Anything else, a sync without space included: after it the file's pages are in doubt.
    other: AtomicBool,
}

impl Failures {
    /// The lack of space, if nothing else has failed: what was durable before is intact.
    pub(crate) fn lack_of_room(&self) -> Option<io::Error> {
        let (kind, code) = self.room.get().filter(|_| !self.other.load(Ordering::Acquire))?;
        Some(code.map_or_else(|| (*kind).into(), io::Error::from_raw_os_error))
    }

    /// Notes the failure of a read or a sync.
    fn of_any<T>(&self, done: io::Result<T>) -> io::Result<T> {
        done.inspect_err(|_| self.other.store(true, Ordering::Release))
    }

    /// Notes the failure of a write.
    fn of_write(&self, done: io::Result<()>) -> io::Result<()> {
        if let Err(error) = &done
            && is_out_of_space(error)
        {
            self.room.get_or_init(|| (error.kind(), error.raw_os_error()));
            return done;
        }
        self.of_any(done)
    }
}

impl Backend {
    fn read_whole(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut left) = (offset, out);
        while !left.is_empty() {
            let read = self.file.read_at(offset, left)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
            left = left.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.failures.of_any(self.file.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.failures.of_any(self.read_whole(offset, out))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.failures.of_write(self.file.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.failures.of_any(self.file.sync_data())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.failures.of_write(write_all_at(&*self.file, offset, data))
    }
}
