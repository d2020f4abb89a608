//! What makes room: snapshots that are no longer needed, and what is left of those that nobody can use.

use std::io::ErrorKind;
use std::path::Path;

use d_engine_core::LogId;

use super::directory::{Inner, label_in};
use super::error::io_error;
use super::receive::is_partial;
use super::{Health, SnapshotError, SnapshotInfo, SnapshotStore};

impl SnapshotStore {
    /// Removes all but the newest `retained` snapshots, or `keep_min` if that is more. Those in
    /// `never_remove` and those that are held ([`Self::hold`]) stay, and so does the newest one known to be whole. What lies
    /// before that one goes as well when it is of no use: archives that were damaged when the directory was opened, and
    /// what was received of a transfer. Returns what was removed from the list.
    ///
    /// # Errors
    /// The first I/O error. Everything else was removed all the same; the next call tries again.
    pub fn prune(&self, keep_min: usize, never_remove: &[LogId]) -> Result<Vec<LogId>, SnapshotError> {
        let inner = &self.inner;
        let mut list = inner.list();
        let whole = list.iter().find(|info| info.health == Health::Whole).map(SnapshotInfo::label);
        let keep = inner.options.retained.max(keep_min).max(1);
        let usable = || list.iter().filter(|info| info.health != Health::Damaged);
        // One that other nodes take: the log reaches back to it.
        let for_others = usable().find(|info| self.may_travel(info));
        let labels = usable().take(keep).chain(for_others).map(SnapshotInfo::label);
        let mut kept: Vec<LogId> = labels.chain(whole).chain(never_remove.iter().copied()).collect();
        if !cfg!(mutant = "held-snapshot-pruned") {
            kept.extend(inner.busy().held.iter().copied());
        }
        if whole.is_none() {
            kept.extend(list.iter().filter(|info| info.health == Health::Damaged).map(SnapshotInfo::label));
        }
        let (mut removed, mut failed) = (Vec::new(), None);
        // The oldest first: whatever a crash leaves is what was there, without its oldest.
        for info in list.iter().rev().filter(|info| !kept.contains(&info.label())) {
            match inner.remove(&info.path) {
                Ok(()) => removed.push(info.label()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        list.retain(|info| !removed.contains(&info.label()));
        drop(list);
        let useless = whole.map_or(Ok(false), |whole| inner.remove_useless(whole));
        if !removed.is_empty() || !matches!(useless, Ok(false)) {
            inner.sync_dir()?;
        }
        failed.or(useless.err()).map_or(Ok(removed), Err)
    }
}

impl Inner {
    /// What somebody else has removed is removed.
    fn remove(&self, path: &Path) -> Result<(), SnapshotError> {
        match self.fs.remove_file(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(io_error("remove", path)),
        }
    }

    /// Removes what is not in the list and was to become, or had been, a snapshot of what `whole` holds. Says whether
    /// there was anything.
    fn remove_useless(&self, whole: LogId) -> Result<bool, SnapshotError> {
        let partial = self.remove_partial(whole);
        let mut found = matches!(partial, Ok(true));
        let mut failed = partial.err();
        self.damaged().retain(|name| {
            let is_useless = label_in(name).is_some_and(|label| label.index < whole.index);
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

    /// Removes what was received of snapshots of what `whole` holds, unless one is being received just now.
    fn remove_partial(&self, whole: LogId) -> Result<bool, SnapshotError> {
        // Whoever has set it takes it back, nobody else.
        if std::mem::replace(&mut self.busy().receiving, true) {
            return Ok(false);
        }
        let removed = self.fs.list(&self.dir).map_err(io_error("list", &self.dir)).and_then(|names| {
            let is_before = |name: &str| label_in(name).is_some_and(|label| label.index <= whole.index);
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
