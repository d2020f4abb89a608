//! Long files that are written and read from beginning to end, a buffer at a time.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::{Fs, FsFile, OpenMode, read_up_to, write_all_at};

/// A long file is synced each time this many bytes have been written: one large write-back would
/// stall the log's syncs on the same disk.
pub const SYNC_EVERY_BYTES: u64 = 4 << 20;
/// Bytes in memory at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A new file, written from beginning to end in buffers and synced every [`SYNC_EVERY_BYTES`].
///
/// The file may be relied upon only once [`StreamWriter::finish`] has returned. Dropping the writer
/// leaves a partial file.
#[derive(Debug)]
pub struct StreamWriter {
    file: Arc<dyn FsFile>,
    buffer: Vec<u8>,
    /// Bytes written to the file.
    written: u64,
    /// Everything up to this offset is synced.
    synced: u64,
}

impl StreamWriter {
    /// Creates the file. Replaces a file of that name that a crash has left.
    ///
    /// # Errors
    /// An error of the operating system.
    pub fn create(fs: &dyn Fs, path: &Path) -> io::Result<Self> {
        if fs.kind(path).is_ok() {
            fs.remove_file(path)?;
        }
        let file = fs.open(path, OpenMode::CreateNew)?;
        Ok(Self { file, buffer: Vec::with_capacity(BUFFER_BYTES), written: 0, synced: 0 })
    }

    /// Writes the buffer and syncs the file. Its name is durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// An error of the operating system; the file must not be used.
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

    /// Writes the buffer to the file. Syncs every [`SYNC_EVERY_BYTES`], not with each call.
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

/// A file that is read from beginning to end in buffers.
#[derive(Debug)]
pub struct StreamReader {
    file: Arc<dyn FsFile>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were returned already.
    given: usize,
    /// The offset of the next buffer in the file.
    offset: u64,
    len: u64,
}

impl StreamReader {
    /// Opens the file.
    ///
    /// # Errors
    /// `NotFound`, or another error of the operating system.
    pub fn open(fs: &dyn Fs, path: &Path) -> io::Result<Self> {
        let file = fs.open(path, OpenMode::Existing)?;
        let len = file.len()?;
        Ok(Self { file, buffer: Vec::new(), given: 0, offset: 0, len })
    }

    /// Returns the file's length when it was opened, in bytes.
    #[must_use]
    #[allow(
        clippy::len_without_is_empty,
        reason = "no caller needs to know whether a file is empty"
    )]
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
