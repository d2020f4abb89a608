//! Committed entries, and the rules about them.
//!
//! - "committed on a durable quorum": the disks of a quorum hold it, including those of crashed
//!   nodes.
//! - "commit-term rule": counting commits only entries of the leader's own term (paper, section
//!   5.4.2).
//! - "committed is immutable": one entry for each committed index.
//! - "snapshots are committed": the log begins after a snapshot of committed entries.
//! - "leader completeness": a new leader holds all committed entries (paper, figure 3).

use std::collections::BTreeMap;

use d_engine_core::{Configuration, LogId, LogIndex, NodeId, RaftCore, RoleKind, Term};

use crate::monitors::disks::Disks;
use crate::monitors::violation::{Rule, Violation};

/// The entries that some node has committed.
#[derive(Debug, Default)]
pub(crate) struct Committed {
    /// Their terms, from index 1.
    terms: Vec<u64>,
    /// For each of them, the term of the leader that committed it.
    by: Vec<Term>,
    /// The configuration in force at each node after its last event. It decided what the node
    /// commits in the next one, at whose end another one may be in force.
    in_force: BTreeMap<u64, Configuration>,
}

impl Committed {
    /// Returns the number of committed entries.
    pub(crate) fn len(&self) -> u64 {
        self.terms.len() as u64
    }

    /// Returns the term of the committed entry at this index.
    pub(crate) fn term_at(&self, index: LogIndex) -> Option<u64> {
        let position = index.get().checked_sub(1)?;
        self.terms.get(usize::try_from(position).ok()?).copied()
    }

    /// Whether the entry with this log id is committed.
    pub(crate) fn contains(&self, id: LogId) -> bool {
        self.term_at(id.index) == Some(id.term.get())
    }

    /// Checks a node that has become the leader of its term.
    ///
    /// # Errors
    /// It lacks a committed entry.
    pub(crate) fn check_completeness(&self, node: u64, core: &RaftCore) -> Result<(), Violation> {
        for (position, (committed, by)) in self.terms.iter().zip(&self.by).enumerate() {
            // A candidate may win an election with a vote that was delayed until a later term had a
            // leader. Such a leader need not hold what the later term has committed, and will
            // commit nothing itself.
            if *by >= core.term() {
                break;
            }
            let index = LogIndex::new(position as u64 + 1);
            if index < core.log().base.index {
                continue;
            }
            let held = core.term_at(index).map(Term::get);
            if held != Some(*committed) {
                return Rule::LeaderCompleteness.broken_by(
                    node,
                    format_args!(
                        "node {node} leads term {} and has {held:?} at index {index}, where term \
                         {committed} was committed",
                        core.term()
                    ),
                );
            }
        }
        Ok(())
    }

    /// Checks what a node has committed in a step, before which its commit index was `before`.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_step(
        &mut self,
        node: u64,
        core: &RaftCore,
        before: LogIndex,
        disks: &Disks,
    ) -> Result<(), Violation> {
        let log = core.log();
        // The entries in a snapshot were committed before it was taken.
        let mut index = before.max(log.base.index.previous());
        if index.get() > self.len() {
            return Rule::SnapshotsAreCommitted.broken_by(
                node,
                format_args!("the log of node {node} begins after {:?}, not committed", log.base),
            );
        }
        while index < log.committed {
            index = index.next();
            let term = core.term_at(index).map_or(0, Term::get);
            match self.term_at(index) {
                Some(committed) if committed == term => {}
                Some(committed) => {
                    return Rule::CommittedIsImmutable.broken_by(
                        node,
                        format_args!(
                            "node {node} commits term {term} at index {index}, where term \
                             {committed} was committed before"
                        ),
                    );
                }
                None => self.first_commit(node, core, index, term, disks)?,
            }
        }
        if self.in_force.get(&node) != Some(core.configuration()) {
            self.in_force.insert(node, core.configuration().clone());
        }
        let rises = before < log.committed && core.role() == RoleKind::Leader;
        if rises && core.term_at(log.committed) != Some(core.term()) {
            return Rule::CommitTerm.broken_by(
                node,
                format_args!(
                    "leader {node} of term {} commits up to index {}, an entry of another term",
                    core.term(),
                    log.committed
                ),
            );
        }
        Ok(())
    }

    /// Forgets what decided at a node whose process has ended.
    pub(crate) fn on_restart(&mut self, node: u64) {
        self.in_force.remove(&node);
    }

    fn first_commit(
        &mut self,
        node: u64,
        core: &RaftCore,
        index: LogIndex,
        term: u64,
        disks: &Disks,
    ) -> Result<(), Violation> {
        let holds = |voter: NodeId| disks.holds(voter.get(), index, term);
        let before = self.in_force.get(&node);
        if !before.unwrap_or(core.configuration()).has_quorum(holds) {
            let on = disks.that_hold(index, term);
            return Rule::CommittedOnDurableQuorum.broken_by(
                node,
                format_args!(
                    "node {node} commits index {index} of term {term}, but only the disks of nodes \
                     {on:?} hold it"
                ),
            );
        }
        self.terms.push(term);
        self.by.push(core.term());
        Ok(())
    }
}
