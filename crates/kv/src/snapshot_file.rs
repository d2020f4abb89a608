//! The one file of a key-value snapshot.
//!
//! ```text
//! magic "d-eng-kv"   format u32   zero u32   term u64   index u64   records u64   log time u64
//! per record, keys strictly rising:  key length u32   value length u32   expiry u64   key   value
//! SHA-256 of everything before
//! ```
//! The format is 2; in format 1, which is still read, log time and expiries are missing. Log time and expiry
//! are UNIX milliseconds; expiry 0: never. Numbers are little-endian. The file appears under its name only when it is whole and synced.

use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use d_engine_proto::key_value::rules::KvTable;
use d_engine_replica::LogId;
use d_engine_storage::{Fs, StreamReader, StreamWriter};
use sha2::{Digest, Sha256};

use crate::blob::Blob;
use crate::store::{Store, Stored};

/// The file's name in the snapshot directory.
pub(crate) const FILE_NAME: &str = "kv.data";
const MAGIC: &[u8; 8] = b"d-eng-kv";
const FORMAT_VERSION: u32 = 2;
/// The oldest format that is read: without log time and expiries.
const FORMAT_WITHOUT_TIME: u32 = 1;
const HEADER_BYTES: u64 = 40;
const HASH_BYTES: u64 = 32;

/// Why a snapshot was not written or not installed. No state is lost; the file must not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotFileError {
    /// The file system failed. Mend it and take or fetch the snapshot again.
    #[error("snapshot file {path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The failure.
        source: io::Error,
    },
    /// The file is not what it should be. Fetch the snapshot again.
    #[error("snapshot file {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The file was written by a newer program. Upgrade this node.
    #[error("snapshot file {path} has format version {found}, this program reads 1 to {FORMAT_VERSION}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The files are not those that the metadata describe. Fetch the snapshot again.
    #[error("snapshot in {dir} has checksum {found}, its metadata say {expected}")]
    Checksum {
        /// The snapshot's directory.
        dir: PathBuf,
        /// Of the files.
        found: String,
        /// Of the metadata.
        expected: String,
    },
    /// The state is newer than the label: followers would apply entries twice.
    #[error("the state is at {state}, a snapshot of {label} was asked for")]
    Label {
        /// Where the state is.
        state: LogId,
        /// What was asked for.
        label: LogId,
    },
}

/// Writes the store as of `label` into `dir`; whole and synced before it has its name.
pub(crate) fn write(fs: &dyn Fs, dir: &Path, label: LogId, store: &Store) -> Result<(), SnapshotFileError> {
    let path = dir.join(FILE_NAME);
    let unfinished = dir.join(format!("{FILE_NAME}.tmp"));
    let written = write_all(fs, &unfinished, label, store)
        .and_then(|()| fs.rename(&unfinished, &path))
        // The name itself is on disk only after the directory has been synced.
        .and_then(|()| fs.sync_dir(dir));
    written.map_err(|source| SnapshotFileError::Io { path, source })
}

fn write_all(fs: &dyn Fs, path: &Path, label: LogId, store: &Store) -> io::Result<()> {
    let mut out = Hashed::new(StreamWriter::create(fs, path)?);
    out.write_all(MAGIC)?;
    out.write_all(&FORMAT_VERSION.to_le_bytes())?;
    out.write_all(&[0; 4])?;
    out.write_all(&label.term.to_le_bytes())?;
    out.write_all(&label.index.to_le_bytes())?;
    out.write_all(&(store.len() as u64).to_le_bytes())?;
    out.write_all(&KvTable::time_ms(store).to_le_bytes())?;
    for (key, Stored { value, expires_ms }) in store.records() {
        let (key, value) = (key.as_ref(), value.as_ref());
        for part in [key, value] {
            let length = u32::try_from(part.len()).map_err(io::Error::other)?;
            out.write_all(&length.to_le_bytes())?;
        }
        out.write_all(&expires_ms.map_or(0, NonZeroU64::get).to_le_bytes())?;
        out.write_all(key)?;
        out.write_all(value)?;
    }
    let (mut inner, hash) = out.finish();
    inner.write_all(&hash)?;
    inner.finish()
}

/// Reads the whole file from `dir` and checks every part of it.
pub(crate) fn read(fs: &dyn Fs, dir: &Path, label: LogId) -> Result<Store, SnapshotFileError> {
    let path = dir.join(FILE_NAME);
    let failed = |source| SnapshotFileError::Io { path: path.clone(), source };
    let file = StreamReader::open(fs, &path).map_err(failed)?;
    let length = file.len();
    let mut reader =
        Reader { path: &path, left: length.saturating_sub(HASH_BYTES), input: Hashed::new(file) };
    if length < HEADER_BYTES + HASH_BYTES {
        return Err(reader.damaged(format!("it has only {length} bytes")));
    }
    let header = read_header(&mut reader, label)?;
    let store = read_records(&mut reader, &header)?;
    let (mut rest, hash) = reader.input.finish();
    let mut stored = Vec::new();
    rest.read_to_end(&mut stored).map_err(failed)?;
    if stored != hash {
        return Err(SnapshotFileError::Damaged { path, what: "its hash does not match".to_owned() });
    }
    Ok(store)
}

/// What the header says about the rest.
struct Header {
    has_time: bool,
    records: u64,
    time_ms: u64,
}

fn read_header(reader: &mut Reader<'_>, label: LogId) -> Result<Header, SnapshotFileError> {
    if reader.array::<8>()? != *MAGIC {
        return Err(reader.damaged("it is no key-value snapshot".to_owned()));
    }
    let format = reader.u32()?;
    if !(FORMAT_WITHOUT_TIME..=FORMAT_VERSION).contains(&format) {
        return Err(SnapshotFileError::Newer { path: reader.path.to_owned(), found: format });
    }
    reader.u32()?;
    let found = LogId { term: reader.u64()?, index: reader.u64()? };
    if found != label {
        return Err(reader.damaged(format!("it is of {found}, the metadata say {label}")));
    }
    let (has_time, records) = (format > FORMAT_WITHOUT_TIME, reader.u64()?);
    let time_ms = if has_time { reader.u64()? } else { 0 };
    Ok(Header { has_time, records, time_ms })
}

fn read_records(reader: &mut Reader<'_>, header: &Header) -> Result<Store, SnapshotFileError> {
    let mut records: Vec<(Blob, Stored)> = Vec::new();
    for _ in 0..header.records {
        let (key_length, value_length) = (reader.u32()?, reader.u32()?);
        let expires_ms = if header.has_time { NonZeroU64::new(reader.u64()?) } else { None };
        let (key, value) = (reader.bytes(key_length)?, reader.bytes(value_length)?);
        if records.last().is_some_and(|(before, _)| *before >= key) {
            return Err(reader.damaged(format!("record {} is out of order", records.len())));
        }
        records.push((key, Stored { value, expires_ms }));
    }
    if reader.left > 0 {
        return Err(reader.damaged(format!("{} bytes follow the last record", reader.left)));
    }
    Ok(Store::from_records(records, header.time_ms))
}

/// Reads parts of the file, never allocating for more than the file holds.
struct Reader<'a> {
    path: &'a Path,
    left: u64,
    input: Hashed<StreamReader>,
}

impl Reader<'_> {
    fn damaged(&self, what: String) -> SnapshotFileError {
        SnapshotFileError::Damaged { path: self.path.to_owned(), what }
    }

    fn fill(&mut self, target: &mut [u8]) -> Result<(), SnapshotFileError> {
        let length = target.len() as u64;
        if length > self.left {
            return Err(self.damaged(format!("{length} bytes are announced, {} are left", self.left)));
        }
        self.left -= length;
        let path = self.path;
        self.input
            .read_exact(target)
            .map_err(|source| SnapshotFileError::Io { path: path.to_owned(), source })
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

    fn bytes(&mut self, length: u32) -> Result<Blob, SnapshotFileError> {
        if u64::from(length) > self.left {
            return Err(self.damaged(format!("{length} bytes are announced, {} are left", self.left)));
        }
        let mut target = vec![0; length as usize];
        self.fill(&mut target)?;
        Ok(target.into())
    }
}

/// Passes bytes on and hashes them.
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
