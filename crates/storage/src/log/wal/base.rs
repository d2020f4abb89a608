//! Moves the start of a log: purges what a snapshot contains, and replaces a log with an installed
//! snapshot.
//!
//! Both are one replacement of `log.meta`. The segments are not touched before that is durable.
//! Afterwards nothing that it excludes is ever read as log again.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{GroupId, LogId};

use super::FileLog;
use crate::log::frame::Position;
use crate::log::index::{FileLogReader, GroupIndex};
use crate::log::record::BaseFacts;
use crate::{LogReader, LogSuffix, StorageError};

impl FileLog {
    /// [`crate::LogStore::purge`].
    pub(super) fn forget(&mut self, group: GroupId, through: LogId) -> Result<(), StorageError> {
        let needed = {
            let map = self.map.read();
            let Some(known) = map.groups.get(&group) else {
                return Err(StorageError::Order(format!("group {group} has no entries to purge")));
            };
            if through.index <= known.base.index {
                return Ok(());
            }
            let queued = self.queue.tails.get(&group).map(|(_, lowest)| *lowest);
            if !known.holds(through) || queued.is_some_and(|lowest| lowest <= through.index) {
                return Err(StorageError::Order(format!(
                    "group {group} cannot be purged up to {through}, which is not a synced entry; \
                     the last synced one has index {}",
                    known.last()
                )));
            }
            known.slot(through.index.next()).map(|slot| slot.segment)
        };
        let facts = self.facts_at(group, through)?;
        match facts {
            Some(facts) => drop(self.record.facts.insert(group, facts)),
            None => drop(self.record.facts.remove(&group)),
        }
        self.move_base(group, through, needed, |known| known.purge(through))
    }

    /// [`crate::LogStore::install`].
    pub(super) fn restart_at(
        &mut self,
        group: GroupId,
        base: LogId,
        suffix: LogSuffix,
    ) -> Result<(), StorageError> {
        let refuse = |why: String| {
            Err(StorageError::Order(format!(
                "snapshot {base} of group {group} cannot be installed: {why}"
            )))
        };
        if !self.buffer.is_empty() {
            return refuse("records are queued; sync them first".to_owned());
        }
        let (held, old) = {
            let map = self.map.read();
            let known = map.groups.get(&group);
            (
                known.is_some_and(|known| known.holds(base)),
                known.map(|known| known.base).unwrap_or_default(),
            )
        };
        if base == old {
            return Ok(());
        }
        if base.index <= old.index {
            return refuse(format!("the log already begins after {old}; keep the existing state"));
        }
        match (suffix, held) {
            (LogSuffix::Keep, true) => self.forget(group, base),
            (LogSuffix::Keep, false) => refuse(
                "the log does not contain that entry; the entries after it must be dropped"
                    .to_owned(),
            ),
            // The entries after it may have been acknowledged.
            (LogSuffix::Drop, true) => {
                refuse("the log contains that entry; the entries after it must be kept".to_owned())
            }
            (LogSuffix::Drop, false) => {
                // An index cannot say what is dropped: old entries may have higher indexes than
                // those that will be appended. The position in the log can.
                self.record.starts.insert(group, self.durable);
                self.record.facts.remove(&group);
                self.move_base(group, base, None, |known| known.restart(base))
            }
        }
    }

    /// Returns what is known of the entry `through`, which the log contains: its log time and the
    /// membership as of it. `None` if the log begins after a received snapshot and only that
    /// snapshot knows the membership.
    fn facts_at(&self, group: GroupId, through: LogId) -> Result<Option<BaseFacts>, StorageError> {
        let reader =
            FileLogReader { map: Arc::clone(&self.map), files: Arc::clone(&self.parts.files) };
        let entry = match reader.read(group, through.index, through.index, 0) {
            // A snapshot contains the purged entries, and its header has the same facts.
            Err(StorageError::Damaged { .. }) => return Ok(None),
            read => read?,
        };
        let time_ms = entry.first().map_or(0, |entry| entry.time_ms);
        let in_log = self.memberships.get(&group);
        let in_log = in_log.and_then(|known| known.range(..=through.index).next_back());
        let known = self.record.facts.get(&group).map(|facts| facts.membership.clone());
        let begins =
            self.map.read().groups.get(&group).is_none_or(|known| known.base == LogId::ZERO);
        let initial = begins.then(Bytes::new);
        let membership = in_log.map(|(_, payload)| payload.clone()).or(known).or(initial);
        Ok(membership.map(|membership| BaseFacts { time_ms, membership }))
    }

    /// Makes `base` the entry before the first one of `group`: durably, then in memory by `change`.
    /// After that, the files of segments that are no longer needed are reused. `needed` is the
    /// oldest segment that an entry of the group still needs.
    fn move_base(
        &mut self,
        group: GroupId,
        base: LogId,
        needed: Option<u64>,
        change: impl FnOnce(&mut GroupIndex),
    ) -> Result<(), StorageError> {
        let oldest = {
            let map = self.map.read();
            let others = map.groups.iter().filter(|(id, _)| **id != group);
            let others =
                others.filter_map(|(_, other)| other.slots.front()).map(|slot| slot.segment);
            others.chain(needed).min().unwrap_or(self.current.number).min(self.current.number)
        };
        self.record.bases.insert(group, base);
        self.record.first = self.record.first.max(oldest);
        let first = self.record.first;
        self.record.starts.retain(|_, start| start.segment >= first);
        if self.record.intact_from.segment < first {
            self.record.intact_from = Position::default();
        }
        self.retry_while_space_can_be_freed(|log| log.store_record())?;
        let mut map = self.map.write();
        change(map.groups.entry(group).or_default());
        let kept = map.files.split_off(&first);
        let purged = std::mem::replace(&mut map.files, kept);
        map.ends = map.ends.split_off(&first);
        drop(map);
        self.sealed = self.sealed.split_off(&first);
        if let Some(memberships) = self.memberships.get_mut(&group) {
            let behind = memberships.split_off(&base.index.next());
            *memberships = behind;
        }
        self.retire(purged.into_values(), Vec::new())?;
        self.has_purged();
        Ok(())
    }
}
