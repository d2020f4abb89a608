//! What the disks of the nodes must hold, and the rules about it.
//!
//! - "recovery": a restart finds what was synced, plus at most whole writes that were not.
//! - "restore": a start changes the log only to finish an install that was interrupted.
//!
//! A log that was purged, or that begins after an installed snapshot, counts as holding everything
//! before: the purge or install has checked that the snapshot is durable.

use std::collections::BTreeMap;

use d_engine_core::{HardState, LogId, LogIndex, PersistId, Term};
use d_engine_replica::{Install, PersistJob};
use d_engine_storage::{LogSuffix, RecoveredLog};

use crate::monitors::violation::{Rule, Violation};

/// What a node's disk must hold after a power loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// Log id of the entry before the first one.
    pub(crate) base: LogId,
    /// Terms of the entries after the base.
    pub(crate) terms: Vec<u64>,
}

impl Disk {
    fn of(recovered: &RecoveredLog) -> Self {
        Self {
            hard_state: recovered.hard_state,
            base: recovered.base,
            terms: recovered.entries.iter().map(|head| head.id.term.get()).collect(),
        }
    }

    fn write(&mut self, job: &PersistJob) {
        if let Some(hard_state) = job.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(first) = job.entries.first() {
            let kept = first.id.index.previous().get().saturating_sub(self.base.index.get());
            self.terms.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            self.terms.extend(job.entries.iter().map(|entry| entry.id.term.get()));
        }
    }

    fn purge(&mut self, through: LogId) {
        if through.index <= self.base.index {
            // The purge was requested before a snapshot took the place of the log.
            return;
        }
        let gone = through.index.get().saturating_sub(self.base.index.get());
        self.terms.drain(..usize::try_from(gone).unwrap_or(usize::MAX).min(self.terms.len()));
        self.base = through;
    }

    fn install(&mut self, install: Install) {
        self.purge(install.base);
        if install.suffix == LogSuffix::Drop {
            self.terms.clear();
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.base.index.get() + self.terms.len() as u64
    }

    pub(crate) fn term_at(&self, index: LogIndex) -> Option<u64> {
        let Some(position) = index.get().checked_sub(self.base.index.get() + 1) else {
            return (index == self.base.index).then_some(self.base.term.get());
        };
        self.terms.get(usize::try_from(position).ok()?).copied()
    }

    /// Whether the disk holds the entry. Purged entries count: a snapshot contains them.
    pub(crate) fn holds(&self, index: LogIndex, term: u64) -> bool {
        index < self.base.index || self.term_at(index) == Some(term)
    }

    fn same(&self, other: &Self) -> bool {
        // The commit index in the hard state is a hint and may be out of date.
        (self.base, &self.terms) == (other.base, &other.terms)
            && self.hard_state.term == other.hard_state.term
            && self.hard_state.vote == other.hard_state.vote
    }
}

/// The work that a node's log has begun and has not reported as durable.
#[derive(Debug, Default)]
struct Begun {
    jobs: Vec<PersistJob>,
    purge: Option<LogId>,
}

impl Begun {
    /// Returns the states that a crash may leave instead of `disk`, the most advanced one last.
    fn states(&self, disk: &Disk) -> Vec<Disk> {
        let purged = self.purge.map(|through| {
            let mut purged = disk.clone();
            purged.purge(through);
            purged
        });
        let mut states = Vec::new();
        for mut disk in [Some(disk.clone()), purged].into_iter().flatten() {
            states.push(disk.clone());
            for (place, job) in self.jobs.iter().enumerate() {
                // Without space for entries, the newest term and vote are stored ahead of them.
                let ahead = self.jobs.iter().skip(place).filter_map(|job| job.hard_state);
                states.extend(ahead.map(|hard_state| Disk { hard_state, ..disk.clone() }));
                disk.write(job);
                states.push(disk.clone());
                if let Some(install) = job.install {
                    disk.install(install);
                    states.push(disk.clone());
                }
            }
        }
        states
    }
}

/// The disks of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    durable: BTreeMap<u64, Disk>,
    begun: BTreeMap<u64, Begun>,
    /// What a node had before its log was damaged and mended. Until its log has reached the last
    /// entry of it, the node votes as if it had all of it.
    claims: BTreeMap<u64, Disk>,
}

impl Disks {
    /// Records that a write has begun. Until it is reported as durable, any number of its steps may
    /// survive a crash.
    pub(crate) fn on_write_begun(&mut self, node: u64, jobs: &[PersistJob]) {
        self.begun.entry(node).or_default().jobs.extend_from_slice(jobs);
    }

    /// Records that the log is about to be purged.
    pub(crate) fn on_purge_begun(&mut self, node: u64, through: LogId) {
        self.begun.entry(node).or_default().purge = Some(through);
    }

    /// Records that the log has reported everything up to this write as durable.
    pub(crate) fn on_stored(&mut self, node: u64, through: PersistId) {
        let begun = self.begun.entry(node).or_default();
        let disk = self.durable.entry(node).or_default();
        while let Some(job) = begun.jobs.first().filter(|job| job.id <= through) {
            disk.write(job);
            job.install.into_iter().for_each(|install| disk.install(install));
            begun.jobs.remove(0);
        }
    }

    /// Records that the log has reported the newest term and vote up to this write as durable,
    /// ahead of the entries, which wait for free disk space.
    pub(crate) fn on_hard_state_stored(&mut self, node: u64, through: PersistId) {
        let begun = self.begun.entry(node).or_default();
        let disk = self.durable.entry(node).or_default();
        for job in begun.jobs.iter_mut().filter(|job| job.id <= through) {
            disk.hard_state = job.hard_state.take().unwrap_or(disk.hard_state);
        }
    }

    /// Records that the log has reported the purge as durable.
    pub(crate) fn on_purged(&mut self, node: u64, through: LogId) {
        self.begun.entry(node).or_default().purge = None;
        self.durable.entry(node).or_default().purge(through);
    }

    /// Records that the node's log was mended: what it has lost, it still claims in votes.
    pub(crate) fn on_mended(&mut self, node: u64, mended: &RecoveredLog) {
        let whole = std::mem::replace(self.durable.entry(node).or_default(), Disk::of(mended));
        // An earlier claim that is not fulfilled reaches further.
        if self.claim_of(node).is_none_or(|claim| last_id(claim) < last_id(&whole)) {
            self.claims.insert(node, whole);
        }
    }

    /// What the node has lost and claims.
    fn claim_of(&self, node: u64) -> Option<&Disk> {
        let held = self.durable.get(&node).map(last_id)?;
        self.claims.get(&node).filter(|claim| held < last_id(claim))
    }

    /// Whether the node claims the entry in votes.
    fn claims(&self, node: u64, index: LogIndex, term: u64) -> bool {
        self.claim_of(node).is_some_and(|claim| claim.holds(index, term))
    }

    /// Returns what the node's disk holds; a node that has never run has an empty one.
    pub(crate) fn of(&mut self, node: u64) -> &Disk {
        self.durable.entry(node).or_default()
    }

    /// Returns the last index on the disk of `node`.
    pub(crate) fn last_of(&self, node: u64) -> u64 {
        self.durable.get(&node).map_or(0, Disk::last)
    }

    /// Returns the term on the disk of `node`.
    pub(crate) fn term_of(&self, node: u64) -> Option<Term> {
        self.durable.get(&node).map(|disk| disk.hard_state.term)
    }

    /// Returns term and index of the last entry on the disk of `node`.
    pub(crate) fn last_id_of(&self, node: u64) -> Option<(u64, u64)> {
        self.durable.get(&node).map(last_id)
    }

    /// Whether the node's disk holds the entry.
    pub(crate) fn holds(&self, node: u64, index: LogIndex, term: u64) -> bool {
        self.durable.get(&node).is_some_and(|disk| disk.holds(index, term))
            || self.claims(node, index, term)
    }

    /// Whether the entry itself is in the node's log.
    pub(crate) fn logs(&self, node: u64, index: LogIndex, term: u64) -> bool {
        self.durable.get(&node).is_some_and(|disk| disk.term_at(index) == Some(term))
    }

    /// Returns the nodes whose disks hold the entry.
    pub(crate) fn that_hold(&self, index: LogIndex, term: u64) -> Vec<u64> {
        let holding = self.durable.keys().filter(|node| self.holds(**node, index, term));
        holding.copied().collect()
    }

    /// Returns the highest index after which the node's log may begin.
    pub(crate) fn base_max(&mut self, node: u64) -> u64 {
        let disk = self.of(node).clone();
        let maybe = self.begun.get(&node).map(|begun| begun.states(&disk)).unwrap_or_default();
        maybe.iter().chain([&disk]).map(|disk| disk.base.index.get()).max().unwrap_or(0)
    }

    /// Checks the log that a node has recovered. `snapshots` are those that survive a power loss:
    /// an earlier start, which crashed itself, may have finished an install that a crash had
    /// interrupted. Returns whether a write that had begun is missing.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_recovered(
        &mut self,
        node: u64,
        recovered: &RecoveredLog,
        snapshots: &[LogId],
    ) -> Result<bool, Violation> {
        let found = Disk::of(recovered);
        let stored = self.of(node).clone();
        let maybe = self.begun.remove(&node).map(|begun| begun.states(&stored)).unwrap_or_default();
        let may_be = |state: &Disk| found.same(state) || is_begun_anew(&found, state, snapshots);
        if !may_be(&stored) && !maybe.iter().any(may_be) {
            return Rule::Recovery.broken_by(
                node,
                format_args!(
                    "node {node} recovered {:?} and {} entries after {:?}, but {:?} and {} entries \
                     after {:?} were durable (and {} later states are possible)",
                    found.hard_state,
                    found.terms.len(),
                    found.base,
                    stored.hard_state,
                    stored.terms.len(),
                    stored.base,
                    maybe.len(),
                ),
            );
        }
        let lost = maybe.last().is_some_and(|begun| !found.same(begun));
        self.durable.insert(node, found);
        Ok(lost)
    }

    /// Checks a start that may have finished an interrupted install. Returns whether it did.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_restored(
        &mut self,
        node: u64,
        restored: &RecoveredLog,
        is_committed: impl Fn(LogId) -> bool,
    ) -> Result<bool, Violation> {
        let (found, before) = (Disk::of(restored), self.of(node).clone());
        if found.same(&before) {
            return Ok(false);
        }
        if !is_committed(found.base) || !is_begun_anew(&found, &before, &[found.base]) {
            return Rule::Restore.broken_by(
                node,
                format_args!("the start of node {node} changed {before:?} to {found:?}"),
            );
        }
        self.durable.insert(node, found);
        Ok(true)
    }
}

/// Term and index of the last entry.
fn last_id(disk: &Disk) -> (u64, u64) {
    (disk.terms.last().copied().unwrap_or(disk.base.term.get()), disk.last())
}

/// Whether `found` is the state of `before` after an install of one of `snapshots`, which the log
/// did not hold: the log then begins after the snapshot and is empty. The state after the first
/// step of the install is accepted too; that step writes the term of the snapshot's last entry.
fn is_begun_anew(found: &Disk, before: &Disk, snapshots: &[LogId]) -> bool {
    let raised = |last_included: &LogId| before.hard_state.term < last_included.term;
    let has_state_for = |last_included: &LogId| match raised(last_included) {
        true => found.hard_state.term == last_included.term && found.hard_state.vote.is_none(),
        false => {
            (found.hard_state.term, found.hard_state.vote)
                == (before.hard_state.term, before.hard_state.vote)
        }
    };
    snapshots.iter().any(|last_included| {
        let is_log_before =
            (found.base, &found.terms) == (before.base, &before.terms) && raised(last_included);
        let is_log_after = found.base == *last_included
            && found.terms.is_empty()
            && last_included.index >= before.base.index
            && before.term_at(last_included.index) != Some(last_included.term.get());
        has_state_for(last_included) && (is_log_before || is_log_after)
    })
}
