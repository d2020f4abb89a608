//! Data directories that are bound to their nodes stay bound. Whatever a snapshot, a purge, an
//! install or a start does to the log, a node that has committed a binding knows it. Otherwise a
//! wiped directory could join again under its old node id, and entries that the node had
//! acknowledged could be lost.

use std::collections::BTreeSet;

use d_engine_core::LogIndex;
use d_engine_replica::Replica;

use crate::monitors::violation::{Rule, Violation};

/// For some commit indexes, the nodes whose directories are bound in the log up to there.
#[derive(Debug, Default)]
pub(crate) struct BoundDirectories {
    known: Vec<(LogIndex, BTreeSet<u64>)>,
}

impl BoundDirectories {
    /// Checks a node that has handled an event or has just started.
    ///
    /// # Errors
    /// A committed binding is missing.
    pub(crate) fn check(&mut self, node: u64, replica: &Replica) -> Result<(), Violation> {
        let log = replica.core().log();
        let members = replica.membership().members();
        let must = self.known.iter().rev().find(|(index, _)| *index <= log.committed);
        // A member that was removed is not bound any more, and its id is never given again.
        let unbound = members.iter().filter(|member| member.incarnation.is_none());
        let unbound: Vec<u64> = unbound.map(|member| member.node).collect();
        if let Some((index, before)) = must
            && let Some(lost) = unbound.iter().find(|member| before.contains(member))
        {
            return Rule::BoundDirectories.broken_by(
                node,
                format_args!(
                    "node {node} with {log:?} knows no binding of node {lost}, which is committed \
                     up to {index}"
                ),
            );
        }
        let bound = members.iter().filter(|member| member.incarnation.is_some());
        let bound: BTreeSet<u64> = bound.map(|member| member.node).collect();
        let most = self.known.last();
        let is_more =
            most.is_none_or(|(index, most)| *index < log.committed && !bound.is_subset(most));
        // With the whole log committed, every binding in force is committed.
        if is_more && log.committed == log.last.index {
            let known = most.map(|(_, most)| most.clone()).unwrap_or_default();
            self.known.push((log.committed, known.union(&bound).copied().collect()));
        }
        Ok(())
    }
}
