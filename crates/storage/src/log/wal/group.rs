//! Writes what is queued: one write group, one write, one sync.

use d_engine_core::{GroupId, HardState};

use super::FileLog;
use crate::StorageError;
use crate::fs::write_all_at;
use crate::log::frame::{GroupBuffer, GroupHeader, Position};
use crate::log::index::Slot;
use crate::log::latch::{io_error, room_error};
use crate::log::segment::OpenSegment;
use crate::log::segment_files::SegmentFile;

/// How much of the zeros after the log's end a group may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// All but the reserve, which must remain once the group is written.
    DiskSpace,
    /// All, including the reserve.
    Reserve,
}

impl FileLog {
    /// Writes what is queued as one group and syncs it; from then on it counts. If there is no
    /// space for it, files kept for reuse are removed to make some.
    pub(super) fn write_queued(&mut self) -> Result<(), StorageError> {
        let written = self.retry_while_space_can_be_freed(Self::write_group);
        self.room.waits = matches!(written, Err(StorageError::NoRoom { .. }));
        written?;
        self.retry_while_space_can_be_freed(Self::store_due_record)
    }

    /// Writes what is queued, or else a group that contains only the durable watermark; then
    /// prepares zeros and the next segment. Unless a group waits for space, no file kept for reuse
    /// is removed for this.
    pub(super) fn rest(&mut self) -> Result<(), StorageError> {
        self.store_due_record()?;
        if self.room.waits {
            self.write_queued()?;
        } else if !self.rests || !self.buffer.is_empty() {
            let written = self.write_group();
            self.rests &= written.is_ok();
            written?;
            self.store_due_record()?;
        }
        self.prepare()
    }

    /// As [`Self::write_queued`], with a single attempt.
    pub(super) fn write_group(&mut self) -> Result<(), StorageError> {
        let from = match self.queue.entries.is_empty() && !self.queue.hard_states.is_empty() {
            true => Use::Reserve,
            false => Use::DiskSpace,
        };
        let len = self.buffer.padded_len(self.current.alignment.bytes()) as u64;
        if !self.current.is_unused() && self.current.end + len > self.parts.options.segment_bytes {
            match self.roll() {
                // The segment then grows beyond its size.
                Err(StorageError::NoRoom { .. }) if from == Use::Reserve => {}
                rolled => rolled?,
            }
        }
        if self.current.is_unused() && self.room.opened_in != self.current.number {
            // A segment begins with the hard states, so that earlier segments can be removed.
            for (group, state) in &self.hard_states {
                if !self.queue.hard_states.contains_key(group) {
                    self.buffer.push_hard_state(*group, state);
                }
            }
            self.room.opened_in = self.current.number;
        }
        self.rests = self.buffer.is_empty();
        let at = self.current.position();
        self.put_group(from)?;
        self.publish(at);
        if self.current.number != self.record.opened {
            // Until now only the segment itself says that it belongs to the log.
            self.room.record_due = true;
        }
        Ok(())
    }

    /// Writes the buffer after the last group and syncs it. If it does not fit, the call can be
    /// repeated with the same or other bytes in the same place, because nothing has been promised.
    fn put_group(&mut self, from: Use) -> Result<(), StorageError> {
        let at = self.current.position();
        let header = GroupHeader {
            incarnation: self.parts.identity.incarnation,
            at,
            epoch: self.current.epoch,
            sequence: self.next_sequence,
            body_len: 0,
            records: 0,
            watermark: self.durable,
        };
        let alignment = self.current.alignment.bytes();
        let bytes = self.buffer.finish(header, alignment);
        let (len, end) = (bytes.len() as u64, at.offset + bytes.len() as u64);
        write_all_at(&*self.current.file, at.offset, bytes)
            .map_err(room_error("write", &self.current.path))?;
        let reserved = end + self.parts.options.reserve_bytes;
        if from == Use::DiskSpace && reserved > self.current.written_to {
            // Grow in strides: the groups up to the next stride overwrite zeros, which needs no
            // change of the file's metadata and therefore syncs faster.
            self.current.written_to = self.current.written_to.max(end);
            let full = self.parts.options.segment_bytes + self.parts.options.reserve_bytes;
            let stride = (reserved + self.parts.options.grow_bytes).min(full).max(reserved);
            let grown = self.current.zero_fill(stride.next_multiple_of(alignment as u64));
            if !matches!(&grown, Err(StorageError::NoRoom { .. }) if self.current.written_to >= reserved)
            {
                grown?;
            }
        }
        self.current.file.sync_data().map_err(io_error("sync", &self.current.path))?;
        self.current.written_to = self.current.written_to.max(end);
        self.current.synced_to = self.current.written_to;
        self.stats.bytes_written += len;
        self.current.end = end;
        self.next_sequence += 1;
        self.durable = self.current.position();
        self.stats.groups += 1;
        self.stats.syncs += 1;
        self.look_at_free_bytes(len);
        Ok(())
    }

    /// [`crate::LogStore::store_hard_state`].
    pub(super) fn write_hard_state(
        &mut self,
        group: GroupId,
        state: HardState,
    ) -> Result<(), StorageError> {
        let stored =
            self.map.read().groups.get(&group).map(|known| known.last()).unwrap_or_default();
        let state = HardState { commit: state.commit.min(stored), ..state };
        if !self.buffer.is_empty() && !self.room.waits {
            // The queue does not wait for space, so the hard state is written with it.
            self.buffer.push_hard_state(group, &state);
            self.queue.hard_states.insert(group, state);
            return self.write_queued();
        }
        let waiting = std::mem::replace(&mut self.buffer, GroupBuffer::new());
        let queue = std::mem::take(&mut self.queue);
        let waits = std::mem::replace(&mut self.room.waits, false);
        self.room.opened_in = 0;
        self.buffer.push_hard_state(group, &state);
        self.queue.hard_states.insert(group, state);
        let written = self.write_queued();
        (self.buffer, self.queue, self.room.waits) = (waiting, queue, waits);
        written?;
        if !self.buffer.is_empty() {
            // The waiting records contain an older hard state and will be written after this one.
            // The last one counts, so it is appended again.
            self.buffer.push_hard_state(group, &state);
            self.queue.hard_states.insert(group, state);
        }
        Ok(())
    }

    /// Publishes the synced group at `at` to the readers and empties the queue.
    fn publish(&mut self, at: Position) {
        let mut map = self.map.write();
        for entry in &self.queue.entries {
            let (offset, len, chain) = self.buffer.span(entry.record);
            let slot = Slot {
                term: entry.id.term,
                segment: at.segment,
                offset: at.offset + offset,
                len,
                chain,
            };
            map.groups.entry(entry.group).or_default().put(entry.id.index, slot);
        }
        map.ends.insert(at.segment, self.current.end);
        drop(map);
        self.stats.entries += self.queue.entries.len() as u64;
        self.hard_states.append(&mut self.queue.hard_states);
        self.queue.entries.clear();
        self.queue.tails.clear();
        self.buffer.clear();
    }

    /// Continues in the prepared segment as it is, or in a new one; never waits for zeros.
    fn roll(&mut self) -> Result<(), StorageError> {
        let (number, end) = (self.current.number, self.current.end);
        self.current = match self.prepared.take() {
            Some(segment) => segment,
            None => self.create_next()?,
        };
        self.sealed.insert(number, end);
        let file = SegmentFile::new(self.current.number);
        self.parts.files.keep(&file, &self.current.file);
        self.map.write().files.insert(self.current.number, file);
        Ok(())
    }

    pub(super) fn create_next(&mut self) -> Result<OpenSegment, StorageError> {
        self.parts.check_lock()?;
        let header = self.parts.header(self.next_number, self.record.epoch);
        self.next_number += 1;
        let (fs, dir) = (&*self.parts.fs, &self.parts.dir);
        match self.spares.take(&self.parts.files) {
            Some(spare) => {
                self.stats.recycled += 1;
                OpenSegment::recycle(fs, dir, &self.parts.files, spare, header)
            }
            None => OpenSegment::create(fs, dir, header, self.parts.options.reserve_bytes),
        }
    }
}
