//! Long files written and read from front to back, a buffer at a time.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::fs::{Fs, FsFile, OpenMode, read_up_to, write_all_at};

/// A long file is synced each time so much of it has been written: one large write-back would stall the log's
/// syncs on the same disk.
pub const SYNC_EVERY_BYTES: u64 = 4 << 20;
/// How much is in memory at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A new file, written from front to back in buffers and synced every [`SYNC_EVERY_BYTES`].
///
/// Nothing is promised before [`StreamWriter::finish`] has returned; dropping the writer leaves a part of a file.
#[derive(Debug)]
pub struct StreamWriter {
    file: Arc<dyn FsFile>,
    buffer: Vec<u8>,
    /// Length of what was written to the file.
    written: u64,
    /// Up to here everything was synced.
    synced: u64,
}

impl StreamWriter {
    /// Creates the file, in the place of a file of that name that a crash has left.
    ///
    /// # Errors
    /// The system's error.
    pub fn create(fs: &dyn Fs, path: &Path) -> io::Result<Self> {
        if fs.kind(path).is_ok() {
            fs.remove_file(path)?;
        }
        let file = fs.open(path, OpenMode::CreateNew)?;
        Ok(Self { file, buffer: Vec::with_capacity(BUFFER_BYTES), written: 0, synced: 0 })
    }

    /// Writes what is in the buffer, and syncs the file. Its name is durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// The system's error; the file must not be used.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()?;
        self.file.sync_all()
    }
}

impl Write for StreamWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        let taken = bytes.get(..BUFFER_BYTES).unwrap_or(bytes);
        self.buffer.extend_from_slice(taken);
        Ok(taken.len())
    }

    /// Hands the buffer to the file. What has gathered is synced from time to time, not with every call.
    fn flush(&mut self) -> io::Result<()> {
        write_all_at(&*self.file, self.written, &self.buffer)?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        if self.written - self.synced >= SYNC_EVERY_BYTES {
            self.file.sync_data()?;
            self.synced = self.written;
        }
        Ok(())
    }
}

/// A file read from front to back in buffers.
#[derive(Debug)]
pub struct StreamReader {
    file: Arc<dyn FsFile>,
    buffer: Vec<u8>,
    /// What of the buffer was given out.
    given: usize,
    /// Where the next buffer begins in the file.
    offset: u64,
    len: u64,
}

impl StreamReader {
    /// Opens the file.
    ///
    /// # Errors
    /// `NotFound`, or the system's error.
    pub fn open(fs: &dyn Fs, path: &Path) -> io::Result<Self> {
        let file = fs.open(path, OpenMode::Existing)?;
        let len = file.len()?;
        Ok(Self { file, buffer: Vec::new(), given: 0, offset: 0, len })
    }

    /// The file's length when it was opened.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "nobody asks whether a file is empty")]
    pub fn len(&self) -> u64 {
        self.len
    }
}

impl Read for StreamReader {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.given == self.buffer.len() {
            self.buffer.resize(BUFFER_BYTES, 0);
            let read = read_up_to(&*self.file, self.offset, &mut self.buffer);
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            self.given = 0;
            self.offset += read? as u64;
        }
        let ready = self.buffer.get(self.given..).unwrap_or_default();
        let (taken, _) = ready.split_at(ready.len().min(target.len()));
        if let Some(target) = target.get_mut(..taken.len()) {
            target.copy_from_slice(taken);
        }
        self.given += taken.len();
        Ok(taken.len())
    }
}
