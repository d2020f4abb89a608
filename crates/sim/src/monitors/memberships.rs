//! The rules about changes of the members.
//!
//! - "one membership": the core's configuration and the members with their addresses are two views
//!   of the same entry, at every node after every event.
//! - "legal steps": the committed memberships follow each other by legal steps; in particular no
//!   joint configuration is skipped, and none is left before it is committed.
//! - "keeps up before it votes": the disk of a node that is to vote holds all that was committed
//!   two shortest election timeouts before.

use std::collections::{BTreeMap, VecDeque};

use d_engine_core::{EntryKind, LogId, LogIndex, NodeId, RaftCore, RoleKind};
use d_engine_replica::Replica;
use d_engine_storage::{LogEntry, Membership};

use crate::monitors::committed::Committed;
use crate::monitors::disks::Disks;
use crate::monitors::violation::{Rule, Violation};
use crate::time::MS;

/// What was committed this long ago must be on the disk of a new voter: the length of two rounds,
/// each shorter than the shortest election timeout, on a clock that runs slow by half.
const KNOWN_AFTER: u64 = 3 * 500 * MS;

/// The memberships that leaders have written.
#[derive(Debug, Default)]
pub(crate) struct Memberships {
    written: BTreeMap<LogId, Membership>,
    /// The entry with the configuration in force at each node, and the one before it.
    in_force: BTreeMap<u64, (LogId, LogId)>,
    /// The committed memberships that were checked, and up to where.
    committed: Vec<(LogId, Membership)>,
    checked: u64,
    /// When how much was committed.
    progress: VecDeque<(u64, u64)>,
}

impl Memberships {
    /// The cluster is born with these members.
    pub(crate) fn born(&mut self, membership: Membership) {
        self.committed = vec![(LogId::ZERO, membership)];
    }

    /// What a leader wrote as this entry.
    pub(crate) fn written(&self, entry: LogId) -> Option<&Membership> {
        self.written.get(&entry)
    }

    /// The committed memberships with their entries, the one at the cluster's birth first.
    pub(crate) fn committed(&self) -> &[(LogId, Membership)] {
        &self.committed
    }

    /// The last committed membership in a log up to this index.
    pub(crate) fn committed_at(&self, index: LogIndex) -> Option<&Membership> {
        let before = self.committed.iter().rev().find(|(entry, _)| entry.index <= index);
        before.map(|(_, membership)| membership)
    }

    /// Checks a node that has handled an event.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_step(
        &mut self,
        node: u64,
        replica: &Replica,
        committed: &Committed,
        now: u64,
    ) -> Result<(), Violation> {
        if replica.membership().configuration() != *replica.core().configuration() {
            return Rule::OneMembership.broken_by(
                node,
                format_args!(
                    "node {node} decides by {:?} and knows the members {:?}",
                    replica.core().configuration(),
                    replica.membership()
                ),
            );
        }
        let (entry, _) = replica.core().configuration_entry();
        let (last, before) = self.in_force.entry(node).or_insert((entry, entry));
        if *last != entry {
            (*last, *before) = (entry, *last);
        }
        self.check_sequence(committed)?;
        if self.progress.back().is_none_or(|(_, len)| *len < committed.len()) {
            self.progress.push_back((now, committed.len()));
        }
        while self.progress.get(1).is_some_and(|(at, _)| at + KNOWN_AFTER <= now) {
            self.progress.pop_front();
        }
        Ok(())
    }

    fn check_sequence(&mut self, committed: &Committed) -> Result<(), Violation> {
        if committed.len() == self.checked {
            return Ok(());
        }
        let newly = self.written.iter().filter(|(id, _)| {
            id.index.get() > self.checked
                && id.index.get() <= committed.len()
                && committed.contains(**id)
        });
        let mut newly: Vec<(LogId, &Membership)> = newly.map(|(id, next)| (*id, next)).collect();
        newly.sort_by_key(|(id, _)| id.index);
        for (id, next) in newly {
            if let Some((_, before)) = self.committed.last() {
                let step = before.configuration().step_to(&next.configuration());
                if step.is_none() || next.id().version != before.id().version + 1 {
                    return Rule::LegalSteps.broken(format_args!(
                        "the committed membership {before:?} became {next:?} at {id}"
                    ));
                }
            }
            self.committed.push((id, next.clone()));
        }
        self.checked = committed.len();
        Ok(())
    }

    /// Checks an entry that a node writes into its log.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_write(
        &mut self,
        node: u64,
        core: &RaftCore,
        entry: &LogEntry,
        (committed, disks): (&Committed, &Disks),
        now: u64,
    ) -> Result<(), Violation> {
        if entry.kind != EntryKind::Membership || core.role() != RoleKind::Leader {
            return Ok(());
        }
        let Ok(membership) = Membership::decode(&entry.data) else {
            return Rule::OneMembership
                .broken_by(node, format_args!("node {node} writes an undecodable membership"));
        };
        let configuration = membership.configuration();
        self.check_left(node, &membership, committed)?;
        let known = self.progress.front().filter(|(at, _)| at + KNOWN_AFTER <= now);
        let (outgoing, known) = (configuration.outgoing(), known.map_or(0, |(_, len)| *len));
        let new = |voter: &&NodeId| configuration.is_joint() && !outgoing.contains(voter);
        for voter in configuration.voters().iter().filter(new) {
            if disks.last_of(voter.get()) < known {
                return Rule::KeepsUpBeforeItVotes.broken_by(
                    node,
                    format_args!(
                        "node {voter} is to vote, but its disk ends at {}, while {known} was \
                         committed {} ms ago",
                        disks.last_of(voter.get()),
                        KNOWN_AFTER / MS
                    ),
                );
            }
        }
        self.written.insert(entry.id, membership);
        Ok(())
    }

    /// A leader leaves a joint configuration for its new voters only once it is committed.
    fn check_left(
        &self,
        node: u64,
        next: &Membership,
        committed: &Committed,
    ) -> Result<(), Violation> {
        let Some((_, before)) = self.in_force.get(&node) else { return Ok(()) };
        let Some(joint) = self.written.get(before).filter(|it| it.is_joint()) else {
            return Ok(());
        };
        let leaves = next.configuration().voters() == joint.configuration().voters();
        match leaves && !committed.contains(*before) {
            true => Rule::LegalSteps.broken_by(
                node,
                format_args!("node {node} leaves {joint:?} of {before}, which is not committed"),
            ),
            false => Ok(()),
        }
    }
}
