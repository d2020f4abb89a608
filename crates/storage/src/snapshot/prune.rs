//! Frees space: removes snapshots that are no longer needed, and files that can never become one.

use std::io::ErrorKind;
use std::path::Path;

use d_engine_core::LogId;

use super::directory::{Inner, last_included_in};
use super::error::io_error;
use super::offer::is_partial;
use super::{Health, SnapshotError, SnapshotInfo, SnapshotStore};

impl SnapshotStore {
    /// Removes all but the newest `retained` snapshots, or `keep_min` if that is more. Those in
    /// `never_remove`, those that are held ([`Self::hold`]) and the newest one known to be whole
    /// are kept. Also removes useless files before that one: archives that were damaged when the
    /// directory was opened, and partly received snapshots. Returns what was removed from the list.
    ///
    /// # Errors
    /// The first I/O error. Everything else was removed nevertheless; the next call tries again.
    pub fn prune(
        &self,
        keep_min: usize,
        never_remove: &[LogId],
    ) -> Result<Vec<LogId>, SnapshotError> {
        let inner = &self.inner;
        let mut list = inner.list();
        let whole =
            list.iter().find(|info| info.health == Health::Whole).map(SnapshotInfo::last_included);
        let keep = inner.options.retained.max(keep_min).max(1);
        let usable = || list.iter().filter(|info| info.health != Health::Damaged);
        // The newest one that other nodes accept: the log reaches back to it.
        let for_others = usable().find(|info| self.may_travel(info));
        let log_ids = usable().take(keep).chain(for_others).map(SnapshotInfo::last_included);
        let mut kept: Vec<LogId> =
            log_ids.chain(whole).chain(never_remove.iter().copied()).collect();
        kept.extend(inner.busy().held.iter().copied());
        if whole.is_none() {
            kept.extend(
                list.iter()
                    .filter(|info| info.health == Health::Damaged)
                    .map(SnapshotInfo::last_included),
            );
        }
        let (mut removed, mut failed) = (Vec::new(), None);
        // The oldest first: a crash then leaves the former list without its oldest elements.
        for info in list.iter().rev().filter(|info| !kept.contains(&info.last_included())) {
            match inner.remove(&info.path) {
                Ok(()) => removed.push(info.last_included()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        list.retain(|info| !removed.contains(&info.last_included()));
        drop(list);
        let useless = whole.map_or(Ok(false), |whole| inner.remove_useless(whole));
        if !removed.is_empty() || !matches!(useless, Ok(false)) {
            inner.sync_dir()?;
        }
        failed.or(useless.err()).map_or(Ok(removed), Err)
    }
}

impl Inner {
    /// Removes a file. A file that is already gone counts as removed.
    fn remove(&self, path: &Path) -> Result<(), SnapshotError> {
        match self.fs.remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error("remove", path)),
        }
    }

    /// Removes files that are not in the list and that contain, or were to contain, no more than
    /// `whole` does. Returns whether there were any.
    fn remove_useless(&self, whole: LogId) -> Result<bool, SnapshotError> {
        let partial = self.remove_partial(whole);
        let mut found = matches!(partial, Ok(true));
        let mut failed = partial.err();
        self.damaged().retain(|name| {
            let is_useless = last_included_in(name)
                .is_some_and(|last_included| last_included.index < whole.index);
            if !is_useless {
                return true;
            }
            found = true;
            let removed = self.remove(&self.dir.join(name));
            let stays = removed.is_err();
            failed = failed.take().or(removed.err());
            stays
        });
        failed.map_or(Ok(found), Err)
    }

    /// Removes partly received snapshots that contain no more than `whole`, unless one is being
    /// received at the moment. Returns whether there were any.
    fn remove_partial(&self, whole: LogId) -> Result<bool, SnapshotError> {
        // Only the code that has set this flag clears it.
        if std::mem::replace(&mut self.busy().receiving, true) {
            return Ok(false);
        }
        let removed =
            self.fs.list(&self.dir).map_err(io_error("list", &self.dir)).and_then(|names| {
                let is_before = |name: &str| {
                    last_included_in(name)
                        .is_some_and(|last_included| last_included.index <= whole.index)
                };
                let mut found = false;
                for name in names.iter().filter(|name| is_partial(name) && is_before(name)) {
                    found = true;
                    self.remove(&self.dir.join(name))?;
                }
                Ok(found)
            });
        self.busy().receiving = false;
        removed
    }
}
