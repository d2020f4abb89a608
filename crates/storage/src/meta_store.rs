//! Small records beside the log, each a file of its own and replaced atomically.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::fs::{Fs, OpenMode, read_file, write_all_at};
use crate::log::frame::Decoder;
use crate::log::latch::{FsLatch, io_error, room_error};
use crate::log::segment::is_zero;
use crate::promise::Repaired;
use crate::succession::{Origin, Retired};
use crate::{MetaStore, StorageError};

/// Version of the envelope around every record.
const FORMAT_VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"D-ENGMET";
const HEADER_LEN: usize = 20;
const SUFFIX: &str = ".meta";
/// The ending of a second copy's name.
const COPY_SUFFIX: &str = ".2";
pub(crate) const TEMPORARY_SUFFIX: &str = ".meta.tmp";

/// The record with the directory's owner.
pub(crate) const IDENTITY: &str = "identity";
/// The record of a directory that is reserved for a node that joins: its incarnation.
pub(crate) const JOIN: &str = "join";
/// The record with the beginning of the log.
pub(crate) const LOG: &str = "log";
/// The record of a directory that was made by force from another one.
pub(crate) const ORIGIN: &str = "origin";
/// The record of a directory that another one has replaced by force.
pub(crate) const RETIRED: &str = "retired";
/// The record of a directory whose log was repaired.
pub(crate) const REPAIR: &str = "repair";
/// Records that [`MetaStore`] neither reads nor writes.
const OWN: [&str; 6] = [IDENTITY, JOIN, LOG, ORIGIN, RETIRED, REPAIR];

/// The records of a data directory, in files `<name>.meta`.
#[derive(Clone, Debug)]
pub(crate) struct FileMetaStore {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    latch: Arc<FsLatch>,
}

impl FileMetaStore {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: &Path, latch: Arc<FsLatch>) -> Self {
        Self { fs, dir: dir.to_owned(), latch }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}"))
    }

    /// Whether a file name is that of a finished record of a node; a reservation is none.
    pub(crate) fn is_record(file_name: &str) -> bool {
        file_name.ends_with(SUFFIX) && file_name.strip_suffix(SUFFIX) != Some(JOIN)
    }

    /// Returns the record's name in a file name, if it is not one of the store's own records.
    pub(crate) fn name_of_other(file_name: &str) -> Option<&str> {
        file_name.strip_suffix(SUFFIX).filter(|name| !OWN.contains(name))
    }

    /// Returns the path of a record's second copy.
    pub(crate) fn copy_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}{SUFFIX}{COPY_SUFFIX}"))
    }

    /// Reads the record. The file's name and length are not trusted: only the checksum counts.
    pub(crate) fn read(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        self.read_from(self.path(name), name)
    }

    /// As [`Self::read`], for the second copy.
    pub(crate) fn read_copy(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        self.read_from(self.copy_path(name), name)
    }

    /// Returns where the directory comes from, if it was made by force from another one.
    pub(crate) fn origin(&self) -> Result<Option<Origin>, StorageError> {
        self.read_as(ORIGIN, |stored| Origin::decode(stored))
    }

    /// Returns by what the directory was replaced, if it was.
    pub(crate) fn retired(&self) -> Result<Option<Retired>, StorageError> {
        self.read_as(RETIRED, |stored| Retired::decode(stored))
    }

    /// Returns what the directory may have acknowledged before its log was repaired. If the record
    /// does not verify, the directory must not be used: the node could vote against what it has
    /// acknowledged.
    pub(crate) fn repaired(&self) -> Result<Option<Repaired>, StorageError> {
        self.read_as(REPAIR, Repaired::decode)
    }

    fn read_as<T>(
        &self,
        name: &str,
        decode: impl FnOnce(&Bytes) -> Option<T>,
    ) -> Result<Option<T>, StorageError> {
        let Some(stored) = self.read(name)? else { return Ok(None) };
        decode(&stored).map(Some).ok_or_else(|| StorageError::DamagedFile {
            path: self.path(name),
            what: format!("it verifies, but is not the content of {name}{SUFFIX}"),
        })
    }

    fn read_from(&self, path: PathBuf, name: &str) -> Result<Option<Bytes>, StorageError> {
        let content = match read_file(&*self.fs, &path) {
            Ok(content) => content,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        decode(name, &content).map(Some).map_err(|fault| fault_error(path, fault))
    }

    /// Replaces the record. At any moment the file contains the whole old record or the whole new
    /// one.
    pub(crate) fn write(&self, name: &str, record: &[u8]) -> Result<(), StorageError> {
        self.write_to(&self.path(name), name, record)
    }

    /// Removes what a crash has left of an earlier write of the record.
    pub(crate) fn remove_temporary(&self, name: &str) -> Result<(), StorageError> {
        let temporary = self.dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
        match self.fs.remove_file(&temporary) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error("remove", &temporary)),
        }
    }

    /// As [`Self::write`], for the second copy.
    pub(crate) fn write_copy(&self, name: &str, record: &[u8]) -> Result<(), StorageError> {
        self.write_to(&self.copy_path(name), name, record)
    }

    /// As [`Self::write`], for one of the copies.
    pub(crate) fn write_to(
        &self,
        path: &Path,
        name: &str,
        record: &[u8],
    ) -> Result<(), StorageError> {
        let temporary = self.dir.join(format!("{name}{TEMPORARY_SUFFIX}"));
        self.latch.guard(|| {
            let file = self
                .fs
                .open(&temporary, OpenMode::CreateNew)
                .map_err(room_error("create", &temporary))?;
            if let Err(error) = write_all_at(&*file, 0, &encode(name, record)) {
                // The old record is still there. Half a new one is useless and occupies space.
                self.fs.remove_file(&temporary).ok();
                return Err(room_error("write", &temporary)(error));
            }
            file.sync_all().map_err(io_error("sync", &temporary))?;
            self.fs.rename(&temporary, path).map_err(io_error("rename", &temporary))?;
            self.fs.sync_dir(&self.dir).map_err(io_error("sync", &self.dir))
        })
    }
}

impl MetaStore for FileMetaStore {
    fn load(&self, name: &str) -> Result<Option<Bytes>, StorageError> {
        check_name(name)?;
        self.read(name)
    }

    fn store(&mut self, name: &str, record: &[u8]) -> Result<(), StorageError> {
        check_name(name)?;
        self.write(name, record)
    }
}

fn check_name(name: &str) -> Result<(), StorageError> {
    let fits =
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if !fits || OWN.contains(&name) {
        return Err(StorageError::Order(format!(
            "{name:?} cannot be the name of a record; use lower-case letters and dashes, and no \
             name that the store itself uses"
        )));
    }
    Ok(())
}

/// Why a record cannot be read.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum MetaFault {
    Damaged(&'static str),
    /// Another version of the format.
    Version(u32),
}

pub(crate) fn fault_error(path: PathBuf, fault: MetaFault) -> StorageError {
    match fault {
        MetaFault::Damaged(what) => StorageError::DamagedFile { path, what: what.to_owned() },
        MetaFault::Version(found) => {
            StorageError::UnsupportedFormat { path, found, supported: FORMAT_VERSION }
        }
    }
}

/// As [`decode`], for a file that is padded with zeros.
pub(crate) fn decode_padded(name: &str, content: &[u8]) -> Result<Bytes, MetaFault> {
    let mut len = Decoder(content.get(12..).unwrap_or_default());
    let end = HEADER_LEN.saturating_add(len.u32().unwrap_or_default() as usize);
    match content.split_at_checked(end) {
        Some((record, padding)) if is_zero(padding) => decode(name, record),
        Some(_) => Err(MetaFault::Damaged("the bytes after the record are not zero")),
        None => Err(MetaFault::Damaged("the file is cut off")),
    }
}

pub(crate) fn encode(name: &str, record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_LEN + record.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(record.len() as u32).to_le_bytes());
    let checksum = checksum(name, &bytes, record);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(record);
    bytes
}

/// Covers the name as well, so that a record copied over another one is noticed.
fn checksum(name: &str, header: &[u8], record: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(name.as_bytes()), header), record)
}

fn decode(name: &str, content: &[u8]) -> Result<Bytes, MetaFault> {
    const SHORT: MetaFault = MetaFault::Damaged("the file is cut off");
    let mut rest = Decoder(content);
    if rest.array() != Some(MAGIC) {
        return Err(MetaFault::Damaged("it does not begin like a record of d-engine"));
    }
    let version = rest.u32().ok_or(SHORT)?;
    let len = rest.u32().ok_or(SHORT)?;
    let found = rest.u32().ok_or(SHORT)?;
    let header = content.get(..HEADER_LEN - 4).ok_or(SHORT)?;
    if rest.0.len() != len as usize || found != checksum(name, header, rest.0) {
        return Err(MetaFault::Damaged("the checksum does not match"));
    }
    if version != FORMAT_VERSION {
        return Err(MetaFault::Version(version));
    }
    Ok(Bytes::copy_from_slice(rest.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{MetaFault, decode, encode};

    #[test]
    fn a_record_under_another_name_is_damaged() {
        let stored = encode("purge", b"content");
        assert_eq!(decode("purge", &stored).unwrap(), "content");
        assert!(decode("install", &stored).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let stored = encode("purge", b"content");
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode("purge", &flipped).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut stored = encode("purge", b"content");
        stored[8] = 2;
        let crc = super::checksum("purge", &stored[..16], b"content");
        stored[16..20].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode("purge", &stored), Err(MetaFault::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(content in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut with_magic = super::MAGIC.to_vec();
            with_magic.extend_from_slice(&content);
            prop_assert!(decode("purge", &content).is_err());
            prop_assert!(decode("purge", &with_magic).is_err());
        }
    }
}
