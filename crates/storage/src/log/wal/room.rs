//! Handles a disk that is full or nearly full.
//!
//! Zeros ahead of the log's end are for speed and are left out if there is no space for them. A
//! group that does not fit waits, after all files kept for reuse have been removed. Terms and votes
//! have a reserve of zeros after the log's end.

use super::FileLog;
use crate::StorageError;
use crate::log::latch::io_error;

/// Bytes written between two checks of the free space.
const LOOK_EVERY_BYTES: u64 = 1 << 20;

impl FileLog {
    /// While a group waits for space, nothing more can be queued.
    pub(super) fn check_waiting(&self) -> Result<(), StorageError> {
        if !self.room.waits {
            return Ok(());
        }
        Err(StorageError::Order(
            "records wait for space on the disk; nothing can be appended before they are synced"
                .into(),
        ))
    }

    /// Writes `log.meta` if it is due.
    pub(super) fn store_due_record(&mut self) -> Result<(), StorageError> {
        if !self.room.record_due {
            return Ok(());
        }
        self.record.opened = self.current.number;
        self.record.filled = self.current.synced_to;
        self.store_record()?;
        self.room.record_due = false;
        Ok(())
    }

    /// Runs `work`, and repeats it as long as there is no space for it and a file can be removed.
    pub(super) fn retry_while_space_can_be_freed(
        &mut self,
        work: impl Fn(&mut Self) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        loop {
            match work(self) {
                Err(error @ StorageError::NoRoom { .. }) => {
                    if !self.give_something_up()? {
                        return Err(error);
                    }
                }
                done => return done,
            }
        }
    }

    /// Removes one file that is kept for reuse. Returns whether there was one.
    fn give_something_up(&mut self) -> Result<bool, StorageError> {
        self.room.is_tight = true;
        let path = match self.prepared.take() {
            Some(segment) => segment.path,
            None => match self.spares.give_up() {
                Some(spare) => {
                    self.parts.files.forget(&spare.file);
                    self.parts.files.path(spare.file.number)
                }
                None => {
                    self.room.free_bytes = self.free_bytes();
                    return Ok(false);
                }
            },
        };
        self.parts.fs.remove_file(&path).map_err(io_error("remove", &path))?;
        let dir = &self.parts.dir;
        self.parts.fs.sync_dir(dir).map_err(io_error("sync", dir))?;
        Ok(true)
    }

    /// Does a bounded part of the work that makes later syncs fast: zeros up to the end of the
    /// current segment, then the next segment. Does none of it if it would use up the free space.
    pub(super) fn prepare(&mut self) -> Result<(), StorageError> {
        let options = &self.parts.options;
        let full = options.segment_bytes + options.reserve_bytes;
        let needed = options.prepare_bytes + options.segment_bytes;
        self.room.free_bytes = self.free_bytes();
        if self.prepared.as_ref().is_some_and(|segment| segment.written_to >= full) {
            return Ok(());
        }
        if self.room.is_tight || self.room.free_bytes.is_some_and(|free| free < needed) {
            return Ok(());
        }
        match self.prepare_piece() {
            Err(StorageError::NoRoom { .. }) => {
                self.room.is_tight = true;
                if self.prepared.is_some() {
                    self.give_something_up()?;
                }
                Ok(())
            }
            prepared => prepared,
        }
    }

    fn prepare_piece(&mut self) -> Result<(), StorageError> {
        let end = self.parts.options.segment_bytes + self.parts.options.reserve_bytes;
        let segment = if self.current.written_to < end {
            &mut self.current
        } else {
            if self.prepared.is_none() {
                self.prepared = Some(self.create_next()?);
            }
            match &mut self.prepared {
                Some(segment) if segment.written_to < end => segment,
                _ => return Ok(()),
            }
        };
        segment.zero_fill(end.min(segment.written_to + self.parts.options.prepare_bytes))?;
        segment.file.sync_all().map_err(io_error("sync", &segment.path))?;
        segment.synced_to = segment.written_to;
        if self.current.synced_to >= end
            && self.record.filled < end
            && self.record.opened == self.current.number
        {
            self.room.record_due = true;
            self.store_due_record()?;
        }
        Ok(())
    }

    /// Checks the free space each time [`LOOK_EVERY_BYTES`] have been written.
    pub(super) fn look_at_free_bytes(&mut self, written: u64) {
        self.room.unseen += written;
        if self.room.unseen >= LOOK_EVERY_BYTES {
            self.room.unseen = 0;
            self.room.free_bytes = self.free_bytes();
        }
    }

    /// Returns the bytes that can still be written in the log's directory; `None` if unknown.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        self.parts.fs.free_bytes(&self.parts.dir).ok().flatten()
    }

    /// Records that a purge has freed space, or will free it once its last reader is done.
    pub(super) fn has_purged(&mut self) {
        self.room.is_tight = false;
        self.room.free_bytes = self.free_bytes();
    }
}
