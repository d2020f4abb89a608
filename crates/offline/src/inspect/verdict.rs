//! What a start of the node would do with a directory, and what an operator may do next.

use d_engine_core::{LogId, LogIndex};
use d_engine_storage::StorageError;
use d_engine_storage::survey::StartOutcome;

use super::directory::Directory;
use super::snapshots::SnapshotFile;

/// What a start of the node would do, as far as the files tell: a state machine may have reasons of
/// its own.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// A process has the directory open.
    InUse {
        /// The process, as far as its lock file names it.
        holder: String,
    },
    /// It starts.
    Starts,
    /// It starts, and skips the damaged part of the log, because a snapshot contains it.
    StartsAfter {
        /// The last included entry of the snapshot.
        snapshot: LogId,
    },
    /// It waits for a cluster that it is to join: the directory was reserved, and is empty.
    Joins,
    /// It refuses the directory.
    Refuses {
        /// Why.
        reason: String,
        /// What to do: alternatives, the best one first.
        next: Vec<String>,
    },
}

impl Directory {
    /// Returns what a start of the node would do.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if let Some(holder) = self.survey.holder() {
            return Verdict::InUse { holder: holder.to_owned() };
        }
        if self.survey.reserved().is_some() && self.survey.is_empty() {
            return Verdict::Joins;
        }
        match &self.log.start {
            StartOutcome::Refused(error) => {
                Verdict::Refuses { reason: error.to_string(), next: self.next(error) }
            }
            StartOutcome::After(snapshot) => Verdict::StartsAfter { snapshot: *snapshot },
            StartOutcome::Whole => self.entries_before_the_log().unwrap_or(Verdict::Starts),
        }
    }

    /// A log that begins after the end of every intact snapshot lacks the entries between them.
    fn entries_before_the_log(&self) -> Option<Verdict> {
        let base = self.log.base.filter(|base| base.index > LogIndex::ZERO)?;
        let intact = self.snapshots.iter().filter(|it| it.state.may_be_used());
        let newest = intact.filter_map(SnapshotFile::id).max();
        if newest.is_some_and(|newest| newest.index >= base.index) {
            return None;
        }
        let which = newest.map_or_else(
            || "there is no intact snapshot".to_owned(),
            |newest| format!("the newest intact snapshot ends at entry {}", newest.index),
        );
        Some(Verdict::Refuses {
            reason: format!(
                "the log begins after entry {}, and {which}; a state machine that keeps its own \
                 files may start, any other one cannot be rebuilt",
                base.index
            ),
            next: vec![self.fetch(), self.copy_a_snapshot(base.index), self.replace()],
        })
    }

    fn next(&self, error: &StorageError) -> Vec<String> {
        match error {
            StorageError::UnsupportedFormat { .. } => {
                vec!["start the program version that wrote this directory".to_owned()]
            }
            StorageError::Damaged { .. } => {
                let copied = self.log.covered_by.map(|index| self.copy_a_snapshot(index));
                let mended = self.log.continues_after_damage.then(|| self.repair());
                let first = mended.into_iter().chain(copied);
                first.chain([self.put_back(), self.replace()]).collect()
            }
            StorageError::DamagedFile { .. } => vec![self.put_back(), self.replace()],
            _ => Vec::new(),
        }
    }

    fn copy_a_snapshot(&self, index: LogIndex) -> String {
        format!(
            "copy the newest snapshots/snap-T-I.snap of another node, with an I of {index} or \
             more, into {}, and start the node",
            self.survey.dir().join(d_engine_storage::snapshot::SNAPSHOT_DIR).display()
        )
    }

    fn fetch(&self) -> String {
        format!(
            "`d-engine repair --data-dir {} --from HOST:PORT`, with the client address of another \
             member, then start the node",
            self.survey.dir().display()
        )
    }

    fn repair(&self) -> String {
        format!("`d-engine repair --data-dir {}`, then start the node", self.survey.dir().display())
    }

    fn put_back(&self) -> String {
        "put back a copy of this directory that was taken after the node's last stop, never an \
         older one"
            .to_owned()
    }

    fn replace(&self) -> String {
        let node = self.survey.owner().map_or_else(|| "N".to_owned(), |it| it.node.to_string());
        format!(
            "let a new node on an empty directory vote in its place: `replaces = {node}` in its \
             configuration (docs/members.md, \"Replacing a dead node\")"
        )
    }
}
