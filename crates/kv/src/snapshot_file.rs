//! The file of a key-value snapshot, written and read as a stream. The format is the same for every
//! machine, so that a node with its data in memory and one with its data on disk can send each
//! other snapshots.
//!
//! ```text
//! magic "d-eng-kv"   format u32   zero u32   term u64   index u64   records u64   log time u64
//! per record, keys strictly rising:  key length u32   value length u32   expiry u64   key   value
//! SHA-256 of everything before
//! ```
//! The format version is 2. Format 1, which is still read, has no log time and no expiries. Log
//! time and expiries are UNIX milliseconds; expiry 0 means never. Numbers are little-endian. The
//! file gets its name only when it is complete and synced.

use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use d_engine_fs::{Fs, StreamReader, StreamWriter};
use d_engine_state_machine::{LogId, SnapshotMetadata, snapshot_checksum_in};
use sha2::{Digest, Sha256};

/// The file's name in the snapshot directory.
pub const FILE_NAME: &str = "kv.data";
const MAGIC: &[u8; 8] = b"d-eng-kv";
const FORMAT_VERSION: u32 = 2;
/// The oldest format that is read; it has no log time and no expiries.
const FORMAT_WITHOUT_TIME: u32 = 1;
const HEADER_BYTES: u64 = 40;
/// Log time, after the header of the older format.
const TIME_BYTES: u64 = 8;
const RECORD_HEAD_BYTES: u64 = 16;
const HASH_BYTES: u64 = 32;

/// Why a snapshot was not written or not installed. No state is lost, but the file must not be
/// used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// The file system failed. Fix it and take or fetch the snapshot again.
    #[error("snapshot file {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The I/O error.
        source: io::Error,
    },
    /// The file is damaged. Fetch the snapshot again.
    #[error("snapshot file {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file was written by a newer program. Upgrade this node.
    #[error(
        "snapshot file {path} has format version {found}, this program reads 1 to {FORMAT_VERSION}"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The files do not match the metadata. Fetch the snapshot again.
    #[error("snapshot in {dir} has checksum {found}, but its metadata say {expected}")]
    Checksum {
        /// The snapshot's directory.
        dir: PathBuf,
        /// The checksum of the files.
        found: String,
        /// The checksum in the metadata.
        expected: String,
    },
    /// The state is not at the requested last included entry: followers would apply entries twice.
    #[error("the state is at {state}, but a snapshot at {last_included} was requested")]
    OtherLastIncluded {
        /// The last applied entry of the state.
        state: LogId,
        /// The requested last included entry.
        last_included: LogId,
    },
}

/// Checks that the files in `dir` match the metadata. Reads them once.
///
/// # Errors
/// [`SnapshotFileError::Checksum`] with both checksums, or [`SnapshotFileError::Io`].
pub fn check_files(
    fs: &dyn Fs,
    meta: &SnapshotMetadata,
    dir: &Path,
) -> Result<(), SnapshotFileError> {
    let found = snapshot_checksum_in(fs, dir)
        .map_err(|source| SnapshotFileError::Io { path: dir.to_owned(), source })?;
    if found == meta.checksum {
        return Ok(());
    }
    let (found, expected) = (hex(&found), hex(&meta.checksum));
    Err(SnapshotFileError::Checksum { dir: dir.to_owned(), found, expected })
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").unwrap_or_default();
        text
    })
}

/// Returns the length of a record in the file, in bytes.
#[must_use]
pub fn record_bytes(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> u64 {
    RECORD_HEAD_BYTES + key.as_ref().len() as u64 + value.as_ref().len() as u64
}

/// Returns the length of a file whose records have `records` bytes.
#[must_use]
pub fn file_bytes(records: u64) -> u64 {
    records.saturating_add(HEADER_BYTES + TIME_BYTES + HASH_BYTES)
}

/// The head of the file, before its records.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotHead {
    /// The last included entry.
    pub last_included: LogId,
    /// Number of records.
    pub records: u64,
    /// Log time in UNIX milliseconds.
    pub time_ms: u64,
}

/// A record of the file, valid until the next one is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotRecord<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
    /// Its expiry, in UNIX milliseconds of log time; `None`: never.
    pub expires_ms: Option<NonZeroU64>,
}

/// Writes the file. If it is dropped before [`SnapshotFileWriter::finish`], it leaves a temporary
/// file, which the next writer replaces.
pub struct SnapshotFileWriter<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    left: u64,
    out: Hashed<StreamWriter>,
}

impl<'a> SnapshotFileWriter<'a> {
    /// Creates the temporary file in `dir` and writes the head.
    ///
    /// # Errors
    /// [`SnapshotFileError::Io`].
    pub fn create(
        fs: &'a dyn Fs,
        dir: &'a Path,
        head: &SnapshotHead,
    ) -> Result<Self, SnapshotFileError> {
        let begin = || {
            let mut out = Hashed::new(StreamWriter::create(fs, &dir.join(unfinished_name()))?);
            out.write_all(MAGIC)?;
            out.write_all(&FORMAT_VERSION.to_le_bytes())?;
            out.write_all(&[0; 4])?;
            let (term, index) = (head.last_included.term.get(), head.last_included.index.get());
            for number in [term, index, head.records, head.time_ms] {
                out.write_all(&number.to_le_bytes())?;
            }
            Ok(out)
        };
        let out = begin().map_err(|source| failed_in(dir, source))?;
        Ok(Self { fs, dir, left: head.records, out })
    }

    /// Adds a record; keys must be strictly rising.
    ///
    /// # Errors
    /// [`SnapshotFileError::Io`], also if the head announced fewer records.
    pub fn write(&mut self, record: &SnapshotRecord<'_>) -> Result<(), SnapshotFileError> {
        self.try_write(record).map_err(|source| failed_in(self.dir, source))
    }

    fn try_write(&mut self, record: &SnapshotRecord<'_>) -> io::Result<()> {
        let Some(left) = self.left.checked_sub(1) else {
            return Err(io::Error::other("there are more records than were announced"));
        };
        self.left = left;
        for part in [record.key, record.value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            self.out.write_all(&length.to_le_bytes())?;
        }
        self.out.write_all(&record.expires_ms.map_or(0, NonZeroU64::get).to_le_bytes())?;
        self.out.write_all(record.key)?;
        self.out.write_all(record.value)
    }

    /// Completes and syncs the file, then renames it to its final name.
    ///
    /// # Errors
    /// [`SnapshotFileError::Io`], also if the head announced more records.
    pub fn finish(self) -> Result<(), SnapshotFileError> {
        let (fs, dir) = (self.fs, self.dir);
        let finish = || {
            if self.left > 0 {
                return Err(io::Error::other("there are fewer records than were announced"));
            }
            let (mut inner, hash) = self.out.finish();
            inner.write_all(&hash)?;
            inner.finish()?;
            fs.rename(&dir.join(unfinished_name()), &dir.join(FILE_NAME))?;
            // The name is durable only after the directory is synced.
            fs.sync_dir(dir)
        };
        finish().map_err(|source| failed_in(dir, source))
    }
}

fn unfinished_name() -> String {
    format!("{FILE_NAME}.tmp")
}

fn failed_in(dir: &Path, source: io::Error) -> SnapshotFileError {
    SnapshotFileError::Io { path: dir.join(FILE_NAME), source }
}

/// Reads the file and checks every part of it; holds one record in memory.
///
/// Whether the file is complete is known only once [`SnapshotFileReader::next`] has returned
/// `None`. Until then, nothing that was read may become visible.
pub struct SnapshotFileReader {
    path: PathBuf,
    head: SnapshotHead,
    has_time: bool,
    read: u64,
    /// Bytes before the hash that are not read yet.
    left: u64,
    input: Option<Hashed<StreamReader>>,
    key: Vec<u8>,
    key_before: Vec<u8>,
    value: Vec<u8>,
}

impl SnapshotFileReader {
    /// Opens the file in `dir`, whose last included entry must be `last_included`.
    ///
    /// # Errors
    /// See [`SnapshotFileError`].
    pub fn open(fs: &dyn Fs, dir: &Path, last_included: LogId) -> Result<Self, SnapshotFileError> {
        let path = dir.join(FILE_NAME);
        let file = StreamReader::open(fs, &path).map_err(|source| failed_in(dir, source))?;
        let length = file.len();
        let mut reader = Self {
            path,
            head: SnapshotHead { last_included, records: 0, time_ms: 0 },
            has_time: false,
            read: 0,
            left: length.saturating_sub(HASH_BYTES),
            input: Some(Hashed::new(file)),
            key: Vec::new(),
            key_before: Vec::new(),
            value: Vec::new(),
        };
        if length < HEADER_BYTES + HASH_BYTES {
            return Err(reader.damaged(format!("it has only {length} bytes")));
        }
        reader.read_head(last_included)?;
        Ok(reader)
    }

    /// Returns the head of the file.
    #[must_use]
    pub fn head(&self) -> &SnapshotHead {
        &self.head
    }

    /// Returns the number of bytes of records that are not read yet.
    #[must_use]
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Returns the next record; `None` once all are read and the file is verified to be complete.
    ///
    /// # Errors
    /// See [`SnapshotFileError`]; the file must not be used.
    #[allow(clippy::should_implement_trait, reason = "an iterator cannot lend its buffers")]
    pub fn next(&mut self) -> Result<Option<SnapshotRecord<'_>>, SnapshotFileError> {
        if self.read == self.head.records {
            return self.check_end().map(|()| None);
        }
        let (key_length, value_length) = (self.u32()?, self.u32()?);
        let expires_ms = if self.has_time { NonZeroU64::new(self.u64()?) } else { None };
        std::mem::swap(&mut self.key, &mut self.key_before);
        let mut key = std::mem::take(&mut self.key);
        self.bytes(key_length, &mut key)?;
        self.key = key;
        if self.read > 0 && self.key_before >= self.key {
            return Err(self.damaged(format!("record {} is out of order", self.read)));
        }
        let mut value = std::mem::take(&mut self.value);
        self.bytes(value_length, &mut value)?;
        self.value = value;
        self.read += 1;
        Ok(Some(SnapshotRecord { key: &self.key, value: &self.value, expires_ms }))
    }

    fn read_head(&mut self, last_included: LogId) -> Result<(), SnapshotFileError> {
        if self.array::<8>()? != *MAGIC {
            return Err(self.damaged("it is not a key-value snapshot".to_owned()));
        }
        let format = self.u32()?;
        if !(FORMAT_WITHOUT_TIME..=FORMAT_VERSION).contains(&format) {
            return Err(SnapshotFileError::Newer { path: self.path.clone(), found: format });
        }
        self.u32()?;
        let found = LogId::of(self.u64()?, self.u64()?);
        if found != last_included {
            return Err(self.damaged(format!(
                "its last entry is {found}, but the metadata say {last_included}"
            )));
        }
        self.has_time = format > FORMAT_WITHOUT_TIME;
        self.head.records = self.u64()?;
        self.head.time_ms = if self.has_time { self.u64()? } else { 0 };
        Ok(())
    }

    fn check_end(&mut self) -> Result<(), SnapshotFileError> {
        if self.left > 0 {
            return Err(self.damaged(format!("{} bytes follow the last record", self.left)));
        }
        // If the input is gone, this check was made before.
        let Some(input) = self.input.take() else { return Ok(()) };
        let (mut rest, hash) = input.finish();
        let mut stored = Vec::new();
        rest.read_to_end(&mut stored)
            .map_err(|source| SnapshotFileError::Io { path: self.path.clone(), source })?;
        if stored != hash {
            Err(self.damaged("its hash does not match".to_owned()))
        } else {
            Ok(())
        }
    }

    fn damaged(&self, what: String) -> SnapshotFileError {
        SnapshotFileError::Damaged { path: self.path.clone(), what }
    }

    fn check_left(&self, length: u64) -> Result<(), SnapshotFileError> {
        if length <= self.left {
            return Ok(());
        }
        Err(self.damaged(format!("{length} bytes are announced, but {} are left", self.left)))
    }

    fn fill(&mut self, target: &mut [u8]) -> Result<(), SnapshotFileError> {
        let length = target.len() as u64;
        self.check_left(length)?;
        self.left -= length;
        let Some(input) = &mut self.input else {
            return Err(self.damaged("it ends before its records do".to_owned()));
        };
        let path = &self.path;
        input
            .read_exact(target)
            .map_err(|source| SnapshotFileError::Io { path: path.clone(), source })
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotFileError> {
        let mut target = [0; N];
        self.fill(&mut target)?;
        Ok(target)
    }

    fn u32(&mut self) -> Result<u32, SnapshotFileError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, SnapshotFileError> {
        self.array().map(u64::from_le_bytes)
    }

    /// Never allocates more than the rest of the file.
    fn bytes(&mut self, length: u32, target: &mut Vec<u8>) -> Result<(), SnapshotFileError> {
        self.check_left(u64::from(length))?;
        target.clear();
        target.resize(length as usize, 0);
        self.fill(target)
    }
}

/// Passes bytes through and hashes them.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new() }
    }

    fn finish(self) -> (T, [u8; 32]) {
        (self.inner, self.hash.finalize().into())
    }
}

impl<T: Write> Hashed<T> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<T: Read> Hashed<T> {
    fn read_exact(&mut self, target: &mut [u8]) -> io::Result<()> {
        self.inner.read_exact(target)?;
        self.hash.update(&*target);
        Ok(())
    }
}
