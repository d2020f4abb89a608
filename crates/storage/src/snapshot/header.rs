//! The header of an archive, byte by byte as `docs/file-format.md` draws it.

use std::path::Path;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId, LogIndex, MAX_ACCEPTED_TIME_MS, Term};

use super::error::damaged;
use super::{SnapshotError, SnapshotFile};
use crate::fs::tree::{MAX_FILES, MAX_NAME_BYTES, conflict, fault_of};
use crate::log::frame::Decoder;
use crate::{ClusterId, Membership};

/// Version of the archive that this program writes.
pub(super) const FORMAT_VERSION: u32 = 1;
/// Version of the data that the engine itself stores in an archive: membership and envelope state.
pub const ENGINE_FORMAT: u32 = 1;
/// Longest name of a state machine, in bytes.
const MACHINE_NAME_BYTES_MAX: usize = 255;
/// Largest header, in bytes. A header is read as a whole.
pub(super) const MAX_HEADER_BYTES: u32 = 64 << 20;
/// Largest chunk, in bytes. A chunk is read as a whole.
pub(super) const MAX_CHUNK_BYTES: u32 = 4 << 20;
/// Length of magic, version and header length: enough to know how much to read.
pub(super) const PRELUDE_LEN: usize = 16;

const MAGIC: [u8; 8] = *b"D-ENGSNP";
/// Length of all fields of fixed length, without the checksum at the end.
const FIXED_LEN: usize = 136;

/// The compression of an archive's content, chunk by chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Compression {
    /// No compression. The default.
    #[default]
    None,
    /// Zstandard (RFC 8878), each chunk a frame of its own. A chunk that would not become shorter
    /// is stored uncompressed.
    Zstd,
}

impl Compression {
    const fn number(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Zstd => 1,
        }
    }
}

/// The facts about a snapshot, from the node that has taken it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotFacts {
    /// Log id of the last included entry.
    pub last_included: LogId,
    /// Log time at the last included entry, in UNIX milliseconds.
    pub time_ms: u64,
    /// The membership as of the last committed membership entry up to the last included entry.
    pub membership: Membership,
    /// State of the engine besides that of the state machine (client sessions), opaque here; may be
    /// empty.
    pub envelope: Bytes,
    /// The name of the state machine, at most 255 bytes; empty if unknown.
    pub machine: String,
    /// The version of the state machine's data, chosen by its author.
    pub user_format: u32,
    /// The highest version of a command whose effect is in the state.
    pub command_version: u32,
    /// The checksum that the state machine returned: `snapshot_checksum` over its files.
    pub checksum: [u8; 32],
}

/// The verified header of an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The Raft group.
    pub group: GroupId,
    /// The facts from the node that took the snapshot.
    pub facts: SnapshotFacts,
    /// The version of the engine's data: [`ENGINE_FORMAT`] of the program that wrote it.
    pub engine_format: u32,
    /// The compression of the content.
    pub compression: Compression,
    /// The length of the chunks that the content is cut into; the last one may be shorter.
    pub chunk_bytes: u32,
    /// The files, in byte order of their names.
    pub files: Vec<SnapshotFile>,
}

impl SnapshotHeader {
    /// Returns the bytes of all files together.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.len))
    }

    /// Returns the number of chunks.
    pub(super) fn chunks(&self) -> u64 {
        self.content_bytes().div_ceil(self.chunk_bytes.max(1).into())
    }

    /// Returns the header's bytes, its checksum last. `path` is for the error.
    ///
    /// # Errors
    /// [`SnapshotError::Name`] and [`SnapshotError::TooLarge`]: a header that no reader would
    /// accept is not written.
    pub(super) fn encode(&self, path: &Path) -> Result<Bytes, SnapshotError> {
        check_files(path, &self.files)?;
        let membership = self.facts.membership.encode();
        let names: usize = self.files.iter().map(|file| 10 + file.name.len()).sum();
        let machine = self.facts.machine.len();
        if machine > MACHINE_NAME_BYTES_MAX {
            let limit = MACHINE_NAME_BYTES_MAX as u64;
            return Err(too_large(
                path,
                "the state machine's name in bytes",
                machine as u64,
                limit,
            ));
        }
        let len = FIXED_LEN + membership.len() + self.facts.envelope.len() + machine + names + 4;
        if len > MAX_HEADER_BYTES as usize {
            return Err(too_large(path, "the header", len as u64, MAX_HEADER_BYTES.into()));
        }
        Ok(self.encode_unchecked(&membership, len))
    }

    fn encode_unchecked(&self, membership: &[u8], len: usize) -> Bytes {
        let facts = &self.facts;
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes.extend_from_slice(&(len as u32).to_le_bytes());
        bytes.extend_from_slice(&self.cluster.0);
        for number in [
            self.group.get(),
            facts.last_included.term.get(),
            facts.last_included.index.get(),
            facts.time_ms,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&facts.checksum);
        for number in [
            self.engine_format,
            facts.user_format,
            self.compression.number(),
            self.chunk_bytes,
            membership.len() as u32,
            facts.envelope.len() as u32,
            self.files.len() as u32,
            facts.machine.len() as u32,
            facts.command_version,
            0,
        ] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(membership);
        bytes.extend_from_slice(&facts.envelope);
        bytes.extend_from_slice(facts.machine.as_bytes());
        for file in &self.files {
            bytes.extend_from_slice(&(file.name.len() as u16).to_le_bytes());
            bytes.extend_from_slice(&file.len.to_le_bytes());
            bytes.extend_from_slice(file.name.as_bytes());
        }
        let checksum = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        Bytes::from(bytes)
    }

    /// Returns the length of the header that begins with `prelude`. Compare it with the file's
    /// length before reading it. `path` is for the error.
    pub(super) fn len_of(path: &Path, prelude: &[u8]) -> Result<usize, SnapshotError> {
        let mut rest = Decoder(prelude);
        if rest.array() != Some(MAGIC) {
            return Err(damaged(path, 0, "no snapshot archive begins here"));
        }
        let (Some(_), Some(len)) = (rest.u32(), rest.u32()) else {
            return Err(damaged(path, 0, "the header is cut off"));
        };
        if !(PRELUDE_LEN as u32 + 4..=MAX_HEADER_BYTES).contains(&len) {
            return Err(damaged(path, 12, format!("the header cannot have {len} bytes")));
        }
        Ok(len as usize)
    }

    /// Reads a whole header. `path` is for the error.
    ///
    /// # Errors
    /// [`SnapshotError::Damaged`], [`SnapshotError::UnsupportedFormat`], [`SnapshotError::Name`].
    pub(super) fn decode(path: &Path, bytes: &Bytes) -> Result<Self, SnapshotError> {
        let len = Self::len_of(path, bytes)?;
        let cut_off = || damaged(path, bytes.len() as u64, "the header is cut off");
        let (fields, checksum) = bytes.split_last_chunk::<4>().ok_or_else(cut_off)?;
        if len != bytes.len() {
            return Err(damaged(
                path,
                12,
                format!("the header has {} bytes, not {len}", bytes.len()),
            ));
        }
        let (expected, found) = (u32::from_le_bytes(*checksum), crc32c::crc32c(fields));
        if expected != found {
            let what = format!("the header has checksum {found:08x}, not {expected:08x}");
            return Err(damaged(path, fields.len() as u64, what));
        }
        let mut rest = Decoder(fields.get(MAGIC.len()..).unwrap_or_default());
        let version = rest.u32().ok_or_else(cut_off)?;
        if version != FORMAT_VERSION {
            return Err(unsupported(path, "the archive", version, FORMAT_VERSION));
        }
        let header = Fields { rest, all: bytes, path }.read()?;
        check_files(path, &header.files)?;
        Ok(header)
    }
}

/// The remaining fields of a header whose checksum matches.
struct Fields<'a> {
    rest: Decoder<'a>,
    all: &'a Bytes,
    path: &'a Path,
}

impl Fields<'_> {
    fn need<T>(&self, value: Option<T>, what: &str) -> Result<T, SnapshotError> {
        let offset = self.all.len().saturating_sub(self.rest.0.len() + 4) as u64;
        value.ok_or_else(|| damaged(self.path, offset, format!("it has no valid {what}")))
    }

    fn u32(&mut self, what: &str) -> Result<u32, SnapshotError> {
        let value = self.rest.u32();
        self.need(value, what)
    }

    fn u64(&mut self, what: &str) -> Result<u64, SnapshotError> {
        let value = self.rest.u64();
        self.need(value, what)
    }

    fn take(&mut self, len: u32, what: &str) -> Result<Bytes, SnapshotError> {
        let split = self.rest.0.split_at_checked(len as usize);
        let (taken, rest) = self.need(split, what)?;
        self.rest.0 = rest;
        Ok(self.all.slice_ref(taken))
    }

    fn read(mut self) -> Result<SnapshotHeader, SnapshotError> {
        self.u32("length")?;
        let cluster = self.rest.array();
        let cluster = ClusterId(self.need(cluster, "cluster")?);
        let group = GroupId::new(self.u64("group")?);
        let group = self.need(group, "group")?;
        let last_included = LogId::new(
            Term::new(self.u64("last included entry")?),
            LogIndex::new(self.u64("last included entry")?),
        );
        let time_ms = self.u64("log time")?;
        self.need(
            (time_ms <= MAX_ACCEPTED_TIME_MS).then_some(()),
            "log time before the year 10000",
        )?;
        let checksum = self.rest.array();
        let checksum = self.need(checksum, "checksum")?;
        let (engine_format, user_format) =
            (self.u32("format version")?, self.u32("format version")?);
        // This is checked before any of the engine's data is read, because its layout may differ.
        if engine_format > ENGINE_FORMAT {
            return Err(unsupported(self.path, "the engine's data", engine_format, ENGINE_FORMAT));
        }
        let compression = match self.u32("compression")? {
            0 => Compression::None,
            1 => Compression::Zstd,
            number => {
                let path = self.path.to_owned();
                return Err(SnapshotError::Compressed { path, number });
            }
        };
        let chunk_bytes = self.u32("chunk length")?;
        self.need(
            (1..=MAX_CHUNK_BYTES).contains(&chunk_bytes).then_some(()),
            "chunk length of at most 4 MiB",
        )?;
        let (membership, envelope) = (self.u32("membership")?, self.u32("envelope")?);
        let count = self.u32("number of files")? as usize;
        let machine = self.u32("state machine name")?;
        let command_version = self.u32("command version")?;
        let reserved = self.u32("reserved field")?;
        self.need((reserved == 0).then_some(()), "reserved field, which must be zero")?;
        if count > MAX_FILES {
            return Err(too_large(
                self.path,
                "the number of files",
                count as u64,
                MAX_FILES as u64,
            ));
        }
        let membership = Membership::decode(&self.take(membership, "membership")?);
        let membership = self.need(membership.ok(), "membership that this program reads")?;
        let envelope = self.take(envelope, "envelope")?;
        let machine = self.take(machine, "state machine name")?;
        let machine =
            std::str::from_utf8(&machine).ok().filter(|name| name.len() <= MACHINE_NAME_BYTES_MAX);
        let machine = self.need(machine.map(str::to_owned), "state machine name")?;
        let files = self.files(count)?;
        self.need(self.rest.0.is_empty().then_some(()), "end at the stated length")?;
        let facts = SnapshotFacts {
            last_included,
            time_ms,
            membership,
            envelope,
            machine,
            user_format,
            command_version,
            checksum,
        };
        Ok(SnapshotHeader { cluster, group, facts, engine_format, compression, chunk_bytes, files })
    }

    fn files(&mut self, count: usize) -> Result<Vec<SnapshotFile>, SnapshotError> {
        let mut files = Vec::new();
        for _ in 0..count {
            let name_len = self.rest.u16();
            let name_len = self.need(name_len, "file name length")?;
            let len = self.u64("file length")?;
            let name = self.take(name_len.into(), "file name")?;
            let name = std::str::from_utf8(&name).ok().map(str::to_owned);
            files.push(SnapshotFile { name: self.need(name, "file name in UTF-8")?, len });
        }
        Ok(files)
    }
}

/// Checks the table of files, by the same rules for what is written and what is read.
fn check_files(path: &Path, files: &[SnapshotFile]) -> Result<(), SnapshotError> {
    if files.len() > MAX_FILES {
        return Err(too_large(path, "the number of files", files.len() as u64, MAX_FILES as u64));
    }
    let refuse = |name: &str, what| {
        let name = name.chars().take(MAX_NAME_BYTES).collect();
        Err(SnapshotError::Name { path: path.to_owned(), name, what })
    };
    let mut sum = 0_u64;
    for file in files {
        if let Some(what) = fault_of(&file.name) {
            return refuse(&file.name, what);
        }
        // This leaves space for headers and chunk frames in a file's length.
        sum = sum
            .checked_add(file.len)
            .filter(|sum| *sum < 1 << 60)
            .ok_or_else(|| too_large(path, "the length of all files", u64::MAX, 1 << 60))?;
    }
    match conflict(files.iter().map(|file| file.name.as_str())) {
        Some((name, what)) => refuse(name, what),
        None => Ok(()),
    }
}

fn unsupported(path: &Path, what: &'static str, found: u32, supported: u32) -> SnapshotError {
    SnapshotError::UnsupportedFormat { path: path.to_owned(), what, found, supported }
}

fn too_large(path: &Path, what: &'static str, found: u64, limit: u64) -> SnapshotError {
    SnapshotError::TooLarge { path: path.to_owned(), what, found, limit }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
