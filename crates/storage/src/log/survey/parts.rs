//! Which segment files make up the log: the chain of recovery (`recover.rs`), continued after a
//! segment whose beginning is damaged.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::report::Owner;
use super::tail::find_header;
use crate::StorageError;
use crate::fs::{Fs, FsFile, OpenMode};
use crate::log::frame::{Fault, GROUP_HEADER_LEN, GroupHeader, Position};
use crate::log::group_reader::{belongs, is_bad_sector, read_bytes, read_group};
use crate::log::latch::io_error;
use crate::log::record::LogRecord;
use crate::log::segment::{Alignment, SMALLEST_ALIGNMENT, SegmentHeader};
use crate::log::segment_name::{file_name, number_of};

/// A segment of the log.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) number: u64,
    pub(super) begin: Begin,
    /// Its end according to the next segment; `None` if that does not say, or for the newest one.
    pub(super) extent: Option<u64>,
    /// The first group names no segment before this one.
    pub(super) chain_is_broken: bool,
}

/// How a segment file begins.
#[derive(Clone, Debug)]
pub(super) enum Begin {
    /// With its header.
    Header(SegmentHeader),
    /// With bytes that do not verify. The layout is that of the groups that were found in it.
    Damaged(SegmentHeader),
    /// The file is missing.
    Missing,
    /// It is not part of this log, or cannot be read by this program.
    Foreign { what: String, error: Option<StorageError> },
}

/// What is known of a segment file before it is read.
struct Look {
    begin: Begin,
    /// The watermark of its first group, if the header of that group verifies.
    watermark: Option<Position>,
}

/// The segment files of a directory.
pub(super) struct Parts {
    pub(super) owner: Option<Owner>,
    pub(super) parts: Vec<Part>,
    /// Files that hold no part of the log.
    pub(super) unused: Vec<String>,
}

struct Finder<'a> {
    fs: &'a dyn Fs,
    dir: &'a Path,
    owner: Option<Owner>,
    record: &'a LogRecord,
    record_is_lost: bool,
    looks: BTreeMap<u64, Look>,
}

impl Parts {
    pub(super) fn find(
        fs: &dyn Fs,
        dir: &Path,
        owner: Option<Owner>,
        record: &LogRecord,
        record_is_lost: bool,
    ) -> Result<Self, StorageError> {
        let names = match fs.list(dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
            listed => listed.map_err(io_error("list", dir))?,
        };
        let numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        let owner = match owner {
            Some(owner) => Some(owner),
            None => owner_in_segments(fs, dir, &numbers)?,
        };
        let looks = BTreeMap::new();
        let mut finder = Finder { fs, dir, owner, record, record_is_lost, looks };
        for number in numbers.iter().copied().filter(|number| *number >= record.first) {
            let look = finder.look(number)?;
            finder.looks.insert(number, look);
        }
        let parts = finder.chain()?;
        let is_used = |number: &u64| parts.iter().any(|part| part.number == *number);
        let unused = numbers.iter().filter(|number| !is_used(number)).map(|it| file_name(*it));
        Ok(Self { owner, unused: unused.collect(), parts })
    }
}

/// Returns the owner that the newest segment with a header names.
fn owner_in_segments(
    fs: &dyn Fs,
    dir: &Path,
    numbers: &[u64],
) -> Result<Option<Owner>, StorageError> {
    for number in numbers.iter().rev() {
        let Some((file, path)) = open(fs, dir, *number)? else { continue };
        let block = read(&*file, &path, Alignment::Page.bytes())?;
        if let Ok(SegmentHeader { cluster, node, incarnation, .. }) = SegmentHeader::decode(&block)
        {
            return Ok(Some(Owner { cluster, node, incarnation }));
        }
    }
    Ok(None)
}

/// An open segment file and its path.
type Opened = (Arc<dyn FsFile>, PathBuf);

/// Opens a segment file, if it exists.
pub(super) fn open(fs: &dyn Fs, dir: &Path, number: u64) -> Result<Option<Opened>, StorageError> {
    let path = dir.join(file_name(number));
    match fs.open(&path, OpenMode::ReadOnly) {
        Ok(file) => Ok(Some((file, path))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("open", &path)(error)),
    }
}

/// Reads the beginning of a file. A sector that cannot be read is damage like one with other
/// content: then there are no bytes.
fn read(file: &dyn FsFile, path: &Path, len: usize) -> Result<bytes::Bytes, StorageError> {
    match read_bytes(file, 0, len) {
        Err(error) if is_bad_sector(&error) => Ok(bytes::Bytes::new()),
        read => read.map_err(io_error("read", path)),
    }
}

impl Finder<'_> {
    fn look(&self, number: u64) -> Result<Look, StorageError> {
        let missing = Look { begin: Begin::Missing, watermark: None };
        let Some((file, path)) = open(self.fs, self.dir, number)? else { return Ok(missing) };
        let block = read(&*file, &path, Alignment::Page.bytes() + GROUP_HEADER_LEN)?;
        let foreign = |what: String, error| {
            Ok(Look { begin: Begin::Foreign { what, error }, watermark: None })
        };
        let header = match SegmentHeader::decode(&block) {
            Ok(header) => header,
            Err(Fault::Version(found)) => {
                let supported = crate::log::frame::FORMAT_VERSION.into();
                let error = StorageError::UnsupportedFormat { path, found, supported };
                return foreign(error.to_string(), Some(error));
            }
            Err(_) => {
                let Some(layout) = self.layout(&*file, &path, number)? else {
                    let what = "the segment's header does not verify, and nothing else says whose \
                                directory this is";
                    return foreign(what.to_owned(), None);
                };
                return Ok(Look { begin: Begin::Damaged(layout), watermark: None });
            }
        };
        if self.owner.is_some_and(|owner| header.cluster != owner.cluster) {
            return foreign("the segment belongs to another cluster".to_owned(), None);
        }
        let is_ours = |it: Owner| it.incarnation == header.incarnation && it.node == header.node;
        if !self.owner.is_none_or(is_ours) {
            return foreign("the segment belongs to another data directory".to_owned(), None);
        }
        if header.number != number {
            // The file of a purged segment, renamed for reuse: the new segment was not begun.
            let is_purged = header.number < self.record.first;
            let renamed = file_name(header.number);
            return match is_purged {
                true => Ok(missing),
                false => foreign(format!("the file was renamed: its header says {renamed}"), None),
            };
        }
        let start = header.alignment.bytes();
        let group = GroupHeader::decode(block.get(start..).unwrap_or_default());
        let group = group.ok().filter(|(group, _)| belongs(group, &header, start as u64));
        Ok(Look {
            begin: Begin::Header(header),
            watermark: group.map(|(group, _)| group.watermark),
        })
    }

    /// Returns how the groups lie in a file whose header is lost: the alignment is that of a page,
    /// unless a group begins elsewhere. `None` if the owner of the groups is unknown.
    fn layout(
        &self,
        file: &dyn FsFile,
        path: &Path,
        number: u64,
    ) -> Result<Option<SegmentHeader>, StorageError> {
        let Some(Owner { cluster, node, incarnation }) = self.owner else { return Ok(None) };
        let mut layout = SegmentHeader {
            alignment: Alignment::Sector,
            number,
            epoch: 0,
            cluster,
            incarnation,
            node,
            recycled: true,
        };
        let page = Alignment::Page.bytes() as u64;
        let mut between = |at: u64, _: &GroupHeader| !at.is_multiple_of(page);
        let found = find_header(file, path, &layout, SMALLEST_ALIGNMENT as u64, &mut between)?;
        if found.is_none() {
            layout.alignment = Alignment::Page;
        }
        Ok(Some(layout))
    }

    /// Whether the segment begins with a header and a whole group.
    fn is_begun(&self, number: u64) -> Result<bool, StorageError> {
        let Some(Look { begin: Begin::Header(header), watermark: Some(_) }) =
            self.looks.get(&number)
        else {
            return Ok(false);
        };
        let Some((file, path)) = open(self.fs, self.dir, number)? else { return Ok(false) };
        match read_group(&*file, header, header.alignment.bytes() as u64, u64::MAX >> 1) {
            Err(error) if is_bad_sector(&error) => Ok(false),
            read => Ok(read.map_err(io_error("read", &path))?.is_ok()),
        }
    }

    /// Whether groups lie in the file that are part of a log which goes on after segment `head`.
    fn continues_after(&self, number: u64, head: u64) -> Result<bool, StorageError> {
        let Some(Look { begin: Begin::Header(layout) | Begin::Damaged(layout), .. }) =
            self.looks.get(&number)
        else {
            return Ok(false);
        };
        let Some((file, path)) = open(self.fs, self.dir, number)? else { return Ok(false) };
        let from = layout.alignment.bytes() as u64;
        let mut is_after = |_: u64, group: &GroupHeader| group.watermark.segment > head;
        Ok(find_header(&*file, &path, layout, from, &mut is_after)?.is_some())
    }

    /// Returns the newest segment of the log.
    fn newest(&self) -> Result<Option<u64>, StorageError> {
        let mut head = None;
        for number in self.looks.keys().rev() {
            if self.is_begun(*number)? {
                head = Some(*number);
                break;
            }
        }
        let known = head.unwrap_or_default();
        for number in self.looks.keys().rev().take_while(|number| **number > known) {
            if *number != self.record.opened && self.continues_after(*number, known)? {
                return Ok(Some(*number));
            }
        }
        let opened = Some(self.record.opened).filter(|opened| *opened > known);
        Ok(opened.or(head))
    }

    fn chain(&self) -> Result<Vec<Part>, StorageError> {
        let mut parts = Vec::new();
        let (mut current, mut extent) = (self.newest()?, None);
        while let Some(number) = current {
            let look = self.looks.get(&number);
            let begin = look.map_or(Begin::Missing, |look| look.begin.clone());
            let watermark = look.and_then(|look| look.watermark);
            let chain_is_broken = watermark.is_some_and(|before| before.segment >= number);
            parts.push(Part { number, begin, extent, chain_is_broken });
            (current, extent) = match watermark.filter(|_| !chain_is_broken) {
                Some(before) if before.segment < self.record.first.max(1) => (None, None),
                // Without `log.meta`, a segment that is missing may have been purged.
                Some(before)
                    if self.record_is_lost && !self.looks.contains_key(&before.segment) =>
                {
                    (None, None)
                }
                Some(before) => (Some(before.segment), Some(before.offset)),
                None => (self.begun_before(number)?, None),
            };
        }
        parts.reverse();
        Ok(parts)
    }

    /// Returns the next older segment that begins as it should.
    fn begun_before(&self, number: u64) -> Result<Option<u64>, StorageError> {
        for (older, _) in self.looks.range(..number).rev() {
            if self.is_begun(*older)? {
                return Ok(Some(*older));
            }
        }
        Ok(None)
    }
}
