//! The memberships in the log: addresses for hints, incarnations for the transport. Follows the
//! core's configuration entry by entry, truncation included.

use d_engine_core::{LogIndex, NodeId};
use d_engine_storage::{Incarnation, Membership};

/// Every membership in the log with the index of its entry; the first is the initial one.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    history: Vec<(LogIndex, Membership)>,
    initial: Membership,
    /// Where this node's configuration finds the members: that, not what was written into the log when another
    /// configuration held.
    addresses: Membership,
}

impl Members {
    pub(crate) fn new(initial: &Membership, addresses: &Membership) -> Self {
        let initial = initial.with_addresses_of(addresses);
        Self { history: Vec::new(), initial, addresses: addresses.clone() }
    }

    /// The membership in force: the last one appended.
    pub(crate) fn current(&self) -> &Membership {
        self.history.last().map_or(&self.initial, |(_, membership)| membership)
    }

    pub(crate) fn push(&mut self, index: LogIndex, membership: Membership) {
        self.truncate_from(index);
        self.history.push((index, membership.with_addresses_of(&self.addresses)));
    }

    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        self.history.retain(|(at, _)| *at < index);
    }

    /// The log begins behind `base`: of the memberships up to there only the last one counts.
    pub(crate) fn purge_to(&mut self, base: LogIndex) {
        let covered = self.history.partition_point(|(at, _)| *at <= base);
        if let Some((_, last)) = self.history.drain(..covered).next_back()
            && !cfg!(mutant = "bindings-purged")
        {
            self.initial = last;
        }
    }

    /// A snapshot takes the place of the log up to `label`.
    pub(crate) fn install(&mut self, label: LogIndex, membership: &Membership, keeps_suffix: bool) {
        self.history.retain(|(at, _)| keeps_suffix && *at > label);
        self.initial = membership.with_addresses_of(&self.addresses);
    }

    /// The membership with every incarnation bound that `seen` knows and the log does not; `None`
    /// when there is nothing to bind.
    pub(crate) fn with_bound<'a>(
        &self,
        seen: impl Iterator<Item = (&'a NodeId, &'a Incarnation)>,
    ) -> Option<Membership> {
        let is_unbound =
            |node: NodeId| self.current().member(node).is_some_and(|member| member.incarnation.is_none());
        let mut bound = None;
        for (node, incarnation) in seen.filter(|(node, _)| is_unbound(**node)) {
            bound = Some(bound.as_ref().unwrap_or(self.current()).with_incarnation(*node, *incarnation));
        }
        bound
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use d_engine_storage::{Member, MemberRole};

    use super::*;

    fn node(number: u64) -> NodeId {
        NodeId::new(number).unwrap()
    }

    fn at(index: u64) -> LogIndex {
        LogIndex::new(index)
    }

    /// Three members, of which the first `bound` are bound to directories.
    fn members(bound: u64) -> Membership {
        let member = |number: u64| Member {
            node: number,
            peer_addr: format!("peer:{number}"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: (number <= bound).then_some(Incarnation([1; 16])),
        };
        Membership::new((1..=3).map(member)).unwrap()
    }

    fn bound(members: &Members) -> usize {
        members.current().members().iter().filter(|member| member.incarnation.is_some()).count()
    }

    /// Row 51: a directory that was bound stays bound when the entry that said so leaves the log.
    #[test]
    fn bound_directories_outlive_a_purge_and_an_install() {
        let mut log = Members::new(&members(0), &members(0));
        log.push(at(3), members(1));
        log.push(at(5), members(3));
        log.push(at(9), members(3));
        log.purge_to(at(5));
        log.truncate_from(at(9));
        assert_eq!(bound(&log), 3, "the entry at 5 was purged, and the one at 9 was superseded");

        let mut installed = Members::new(&members(0), &members(0));
        installed.push(at(3), members(1));
        installed.install(at(7), &members(3), false);
        assert_eq!(bound(&installed), 3, "as the snapshot says");
        installed.push(at(8), members(2));
        installed.install(at(7), &members(3), true);
        assert_eq!(bound(&installed), 2, "the suffix stays, and is newer");
        installed.install(at(9), &members(1), true);
        assert_eq!(bound(&installed), 1, "nothing behind it");

        let seen: BTreeMap<NodeId, Incarnation> = [(node(3), Incarnation([9; 16]))].into();
        let named = log.with_bound(seen.iter());
        assert!(named.is_none(), "another directory does not take the place of one that is bound");
    }
}
