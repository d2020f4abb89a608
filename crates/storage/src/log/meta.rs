//! The `log` record: two copies, written in place one after the other.
//!
//! In place, because a purge must be able to write it on a full disk and without a free file
//! handle. Two copies, because a power loss during a write leaves one copy half-written, and the
//! other is then whole. The same keeps a flipped bit in one copy from stopping the node.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::StorageError;
use crate::fs::{Fs, FsFile, OpenMode, read_whole, write_all_at};
use crate::log::latch::{FsLatch, io_error, room_error};
use crate::log::record::LogRecord;
use crate::meta_store::{self, MetaFault};

/// The names of the copies. The first is named like any other record.
pub(crate) const COPIES: [&str; 2] = ["log.meta", "log.meta.2"];
const TEMPORARY: &str = "log.meta.tmp";
/// The length of a copy is a multiple of this, so that it can be overwritten without growing.
const BLOCK: usize = 4096;

/// The two copies, opened.
#[derive(Debug)]
pub(crate) struct LogMeta {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    latch: Arc<FsLatch>,
    files: [Option<Arc<dyn FsFile>>; 2],
    /// The copy that is written first: never the only one that is whole.
    first: usize,
    sequence: u64,
    /// Copies that were damaged or missing, while the other one was whole.
    pub(crate) mended: Vec<PathBuf>,
}

/// The result of reading one copy.
enum Copy {
    Missing,
    Damaged(MetaFault),
    Whole(u64, LogRecord),
}

impl LogMeta {
    /// Reads both copies. The newer one that verifies counts. A directory without any has no record
    /// yet.
    pub(crate) fn open(
        fs: Arc<dyn Fs>,
        dir: &Path,
        latch: Arc<FsLatch>,
    ) -> Result<(Self, LogRecord), StorageError> {
        let mut meta = Self {
            fs,
            dir: dir.to_owned(),
            latch,
            files: [None, None],
            first: 0,
            sequence: 0,
            mended: Vec::new(),
        };
        let copies = [meta.read(0)?, meta.read(1)?];
        let mut newest = None;
        for (number, copy) in copies.iter().enumerate() {
            if let Copy::Whole(sequence, record) = copy
                && (newest.is_none() || *sequence > meta.sequence)
            {
                (meta.sequence, meta.first) = (*sequence, 1 - number);
                newest = Some(record.clone());
            }
        }
        if let Some(record) = newest {
            let unusable = |(number, copy): (usize, &Copy)| {
                (!matches!(copy, Copy::Whole(..))).then(|| meta.path(number))
            };
            meta.mended = copies.iter().enumerate().filter_map(unusable).collect();
            return Ok((meta, record));
        }
        for (number, copy) in copies.into_iter().enumerate() {
            if let Copy::Damaged(fault) = copy {
                return Err(meta_store::fault_error(meta.path(number), fault));
            }
        }
        Ok((meta, LogRecord::default()))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.dir.join(COPIES[number % 2])
    }

    fn read(&mut self, number: usize) -> Result<Copy, StorageError> {
        let path = self.path(number);
        let file = match self.fs.open(&path, OpenMode::Existing) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Copy::Missing),
            Err(error) => return Err(io_error("open", &path)(error)),
        };
        let content = read_whole(&*file);
        self.files[number] = Some(file);
        let Ok(content) = content else {
            return Ok(Copy::Damaged(MetaFault::Damaged("it cannot be read")));
        };
        if !content.len().is_multiple_of(BLOCK) {
            return Ok(Copy::Damaged(MetaFault::Damaged("the file is cut off")));
        }
        let stored = match meta_store::decode_padded(meta_store::LOG, &content) {
            Ok(stored) => stored,
            Err(fault @ MetaFault::Version(_)) => return Err(meta_store::fault_error(path, fault)),
            Err(fault) => return Ok(Copy::Damaged(fault)),
        };
        let not_a_record = MetaFault::Damaged("it verifies, but is not a record of the log");
        let (sequence, record) = stored.split_first_chunk::<8>().unzip();
        let record = record.and_then(LogRecord::decode);
        Ok(match (sequence, record) {
            (Some(sequence), Some(record)) => Copy::Whole(u64::from_le_bytes(*sequence), record),
            _ => Copy::Damaged(not_a_record),
        })
    }

    /// Writes `record` into both copies. Durable when the call returns.
    pub(crate) fn store(&mut self, record: &LogRecord) -> Result<(), StorageError> {
        let latch = Arc::clone(&self.latch);
        latch.guard(|| {
            let sequence = self.sequence + 1;
            let content = [&sequence.to_le_bytes()[..], &record.encode()].concat();
            let mut bytes = meta_store::encode(meta_store::LOG, &content);
            bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
            for number in [self.first, 1 - self.first] {
                self.write(number, &bytes)?;
                self.sequence = sequence;
                self.first = 1 - number;
            }
            Ok(())
        })
    }

    fn write(&mut self, number: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let path = self.path(number);
        let Some(file) = &self.files[number] else { return self.create(number, bytes) };
        write_all_at(&**file, 0, bytes).map_err(room_error("write", &path))?;
        let len = file.len().map_err(io_error("read the length of", &path))?;
        if len > bytes.len() as u64 {
            file.set_len(bytes.len() as u64).map_err(io_error("truncate", &path))?;
        }
        file.sync_all().map_err(io_error("sync", &path))
    }

    /// Creates a copy that does not exist yet, or no longer. It is complete before it gets its
    /// name.
    fn create(&mut self, number: usize, bytes: &[u8]) -> Result<(), StorageError> {
        let (temporary, path) = (self.dir.join(TEMPORARY), self.path(number));
        let file = self
            .fs
            .open(&temporary, OpenMode::CreateNew)
            .map_err(room_error("create", &temporary))?;
        if let Err(error) = write_all_at(&*file, 0, bytes) {
            self.fs.remove_file(&temporary).map_err(io_error("remove", &temporary))?;
            return Err(room_error("write", &temporary)(error));
        }
        file.sync_all().map_err(io_error("sync", &temporary))?;
        self.fs.rename(&temporary, &path).map_err(io_error("rename", &temporary))?;
        self.fs.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))?;
        self.files[number] = Some(file);
        Ok(())
    }
}
