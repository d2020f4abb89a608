//! Lets the database do its I/O through the engine's `Fs` trait, so that tests can cut its power.

use std::io;
use std::sync::Arc;

use d_engine_fs::{FsFile, write_all_at};

/// One open file.
#[derive(Debug)]
pub(crate) struct Backend(pub(crate) Arc<dyn FsFile>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let (mut offset, mut left) = (offset, out);
        while !left.is_empty() {
            let read = self.0.read_at(offset, left)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += read as u64;
            left = left.get_mut(read..).unwrap_or_default();
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        write_all_at(&*self.0, offset, data)
    }
}
