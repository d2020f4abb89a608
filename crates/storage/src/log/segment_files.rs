//! The files of segments, opened when they are read.
//!
//! A log may have hundreds of segments, and file handles are limited: at most [`HANDLES_MAX`] are
//! kept open for reading. The least recently used handle is closed for a new one.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use d_engine_locks::Unpoisoned;

use crate::fs::{Fs, FsFile, OpenMode, is_out_of_space};
use crate::log::segment_name::file_name;

/// The most segments that are kept open for reading.
pub(crate) const HANDLES_MAX: usize = 16;

/// The file of one segment, open or not. While a reader holds a reference, it may read the segment:
/// the file is not reused for another one.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    pub(crate) number: u64,
    /// Whether the file has been removed or belongs to another segment now.
    is_gone: AtomicBool,
}

impl SegmentFile {
    pub(crate) fn new(number: u64) -> Arc<Self> {
        Arc::new(Self { number, is_gone: AtomicBool::new(false) })
    }
}

/// An open segment.
type Opened = (Arc<SegmentFile>, Arc<dyn FsFile>);

/// The open handles.
#[derive(Debug)]
pub(crate) struct SegmentFiles {
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    /// Ordered by use; the last element was used most recently.
    open: Mutex<VecDeque<Opened>>,
}

impl SegmentFiles {
    pub(crate) fn new(fs: Arc<dyn Fs>, dir: PathBuf) -> Self {
        Self { fs, dir, open: Mutex::default() }
    }

    /// Returns the path of segment `number`.
    pub(crate) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number))
    }

    /// Returns an open handle on the segment's file. If the process has no handle left, closes
    /// others for it.
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
        // The lock is not held here, so that other reads continue while a slow disk opens the file.
        let handle = loop {
            match self.fs.open(&self.path(segment.number), OpenMode::Existing) {
                Err(error) if is_out_of_space(&error) => {
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
        // A handle on a removed file would keep its space occupied.
        if segment.is_gone.load(Ordering::Relaxed) {
            return;
        }
        open.push_back((Arc::clone(segment), Arc::clone(handle)));
        if open.len() > HANDLES_MAX {
            open.pop_front();
        }
    }

    /// Closes the handle of a file that is about to be removed or reused for another segment.
    pub(crate) fn forget(&self, segment: &Arc<SegmentFile>) {
        let mut open = self.lock();
        segment.is_gone.store(true, Ordering::Relaxed);
        open.retain(|(known, _)| !Arc::ptr_eq(known, segment));
    }

    /// Whether no reader uses the segment or is about to. `segment` must be the caller's only
    /// reference.
    pub(crate) fn is_unread(&self, segment: &Arc<SegmentFile>) -> bool {
        let open = self.lock();
        let kept = open.iter().filter(|(known, _)| Arc::ptr_eq(known, segment)).count();
        Arc::strong_count(segment) == 1 + kept
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Opened>> {
        self.open.lock().unpoisoned()
    }
}
