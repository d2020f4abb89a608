//! The files of segments, opened when they are read.
//!
//! A log may have hundreds of segments, and a process has few file handles: no more than [`HANDLES_MAX`] are
//! kept open for reading. The handle that was used longest ago gives its place to a new one.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fs::{Fs, FsFile, OpenMode};
use crate::fs_latch::is_want_of_room;
use crate::segment::file_name;

/// How many segments are kept open for reading at most.
pub(crate) const HANDLES_MAX: usize = 16;

/// The file of one segment, open or not. Whoever holds one may read the segment: its file is not used for
/// another segment meanwhile.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) number: u64,
    /// The file has been removed, or belongs to another segment now.
    is_gone: AtomicBool,
}

impl SegmentFile {
    pub(crate) fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, is_gone: AtomicBool::new(false) })
    }
}

/// An open segment.
type Opened = (Arc<SegmentFile>, Arc<dyn FsFile>);

/// The handles that are open.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// The one that was used last is the last one.
    open: Mutex<VecDeque<Opened>>,
}

impl SegmentFiles {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: PathBuf) -> Self {
        Self { fs, dir, open: Mutex::default() }
    }

    /// Where segment `number` lies.
    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// An open handle on the segment's file. When the process has no handle left, others are closed for it.
    pub(crate) fn handle(&self, segment: &Arc<SegmentFile>) -> io::Result<Arc<dyn FsFile>> {
        {
            let mut open = self.lock();
            if let Some(at) = open.iter().position(|(known, _)| Arc::ptr_eq(known, segment))
                && let Some(found) = open.remove(at)
            {
                let handle = Arc::clone(&found.1);
                open.push_back(found);
                return Ok(handle);
            }
        }
        // Not under the lock: others go on reading while a slow disk opens the file.
        let handle = loop {
            match self.fs.open(&self.path(segment.number), OpenMode::Existing) {
                Err(error) if is_want_of_room(&error) => {
                    if self.lock().pop_front().is_none() {
                        return Err(error);
                    }
                }
                opened => break opened?,
            }
        };
        self.keep(segment, &handle);
        Ok(handle)
    }

    /// Keeps a handle that is open already.
    pub(crate) fn keep(&self, segment: &Arc<SegmentFile>, handle: &Arc<dyn FsFile>) {
        let mut open = self.lock();
        // A handle on a file that was removed would hold its space.
        if segment.is_gone.load(Ordering::Relaxed) {
            return;
        }
        open.push_back((Arc::clone(segment), Arc::clone(handle)));
        if open.len() > HANDLES_MAX {
            open.pop_front();
        }
    }

    /// The file is about to be removed, or to become another segment's.
    pub(crate) fn forget(&self, segment: &Arc<SegmentFile>) {
        let mut open = self.lock();
        segment.is_gone.store(true, Ordering::Relaxed);
        open.retain(|(known, _)| !Arc::ptr_eq(known, segment));
    }

    /// Whether nobody reads the segment or may be about to. `segment` must be the caller's only reference.
    pub(crate) fn is_unread(&self, segment: &Arc<SegmentFile>) -> bool {
        let open = self.lock();
        let kept = open.iter().filter(|(known, _)| Arc::ptr_eq(known, segment)).count();
        Arc::strong_count(segment) == 1 + kept
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Opened>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
