//! Which node leads which term.
//!
//! - "election safety": at most one leader per term (paper, figure 3).
//! - "whom one follows": the leader that a node follows was elected in that term.

use std::collections::BTreeMap;

use d_engine_core::{NodeId, RaftCore, RoleKind, Term};

use crate::monitors::violation::{Rule, Violation};

/// The leaders that were seen.
#[derive(Debug, Default)]
pub(crate) struct Leaders {
    by_term: BTreeMap<Term, u64>,
    /// The last term that each running node has led.
    leading: BTreeMap<u64, Term>,
}

impl Leaders {
    /// Returns the leader of `term`, if one was seen.
    pub(crate) fn of(&self, term: Term) -> Option<u64> {
        self.by_term.get(&term).copied()
    }

    /// Records that a process has ended.
    pub(crate) fn on_restart(&mut self, node: u64) {
        self.leading.remove(&node);
    }

    /// Checks a node that has handled an event. Returns whether it has just become the leader of
    /// its term.
    ///
    /// # Errors
    /// The term has another leader.
    pub(crate) fn check_election(&mut self, node: u64, core: &RaftCore) -> Result<bool, Violation> {
        let term = core.term();
        if core.role() != RoleKind::Leader {
            return Ok(false);
        }
        let leader = *self.by_term.entry(term).or_insert(node);
        if leader != node {
            return Rule::ElectionSafety
                .broken_by(node, format_args!("nodes {leader} and {node} both lead term {term}"));
        }
        Ok(self.leading.insert(node, term) != Some(term))
    }

    /// Checks whom a node follows.
    ///
    /// # Errors
    /// It follows a node that was not elected in its term.
    pub(crate) fn check_followed(&self, node: u64, core: &RaftCore) -> Result<(), Violation> {
        let (term, follows) = (core.term(), core.leader().map(NodeId::get));
        if follows.is_some() && follows != self.of(term) {
            return Rule::LeaderFollowed.broken_by(
                node,
                format_args!(
                    "node {node} follows {follows:?} in term {term}, whose leader is {:?}",
                    self.of(term)
                ),
            );
        }
        Ok(())
    }
}
