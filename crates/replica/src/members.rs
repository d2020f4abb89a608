//! The memberships in the log: addresses for leader hints, incarnations for the transport. They
//! follow the core's configuration entry by entry, truncation included.

use d_engine_core::{LogIndex, NodeId};
use d_engine_storage::{Incarnation, LogSuffix, Membership};

/// The memberships in the log with the indexes of their entries, and the one before them.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    history: Vec<(LogIndex, Known)>,
    initial: Known,
    /// The members' addresses from this node's own configuration. This node uses them instead of
    /// those in the log, which may have been written under another configuration.
    addresses: Membership,
}

/// A membership as it is in the log, and as this node uses it.
#[derive(Debug, Clone)]
struct Known {
    logged: Membership,
    used: Membership,
}

impl Known {
    fn new(logged: Membership, addresses: &Membership) -> Self {
        Self { used: logged.with_addresses_of(addresses), logged }
    }
}

impl Members {
    pub(crate) fn new(initial: &Membership, addresses: &Membership) -> Self {
        let (initial, addresses) = (Known::new(initial.clone(), addresses), addresses.clone());
        Self { history: Vec::new(), initial, addresses }
    }

    /// The membership in force, the last one appended, with this node's own addresses.
    pub(crate) fn current(&self) -> &Membership {
        &self.known().used
    }

    /// The membership in force as it is in the log: what a leader changes.
    pub(crate) fn logged(&self) -> &Membership {
        &self.known().logged
    }

    fn known(&self) -> &Known {
        self.history.last().map_or(&self.initial, |(_, known)| known)
    }

    pub(crate) fn push(&mut self, index: LogIndex, membership: Membership) {
        self.truncate_from(index);
        self.history.push((index, Known::new(membership, &self.addresses)));
    }

    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        self.history.retain(|(at, _)| *at < index);
    }

    /// The log begins after `base`: of the memberships up to there only the last one is kept.
    pub(crate) fn purge_to(&mut self, base: LogIndex) {
        let covered = self.history.partition_point(|(at, _)| *at <= base);
        if let Some((_, last)) = self.history.drain(..covered).next_back() {
            self.initial = last;
        }
    }

    /// A snapshot replaces the log up to `last_included`.
    pub(crate) fn install(
        &mut self,
        last_included: LogIndex,
        membership: &Membership,
        suffix: LogSuffix,
    ) {
        self.history.retain(|(at, _)| suffix == LogSuffix::Keep && *at > last_included);
        self.initial = Known::new(membership.clone(), &self.addresses);
    }

    /// The membership with every incarnation bound that is in `seen` and not in the log; `None` if
    /// there is none to bind.
    pub(crate) fn with_bound<'a>(
        &self,
        seen: impl Iterator<Item = (&'a NodeId, &'a Incarnation)>,
    ) -> Option<Membership> {
        if self.logged().is_joint() {
            // It waits: a joint configuration is followed by one of its two sets only.
            return None;
        }
        let is_unbound = |node: NodeId| {
            self.logged().member(node).is_some_and(|member| member.incarnation.is_none())
        };
        let mut bound = None;
        for (node, incarnation) in seen.filter(|(node, _)| is_unbound(**node)) {
            bound =
                Some(bound.as_ref().unwrap_or(self.logged()).with_incarnation(*node, *incarnation));
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

    /// Three members, of which the first `bound` are bound to incarnations.
    fn members(bound: u64) -> Membership {
        let member = |number: u64| Member {
            node: number,
            peer_addr: format!("peer:{number}"),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: (number <= bound)
                .then_some(Incarnation([u8::try_from(number).unwrap(); 16])),
        };
        Membership::new((1..=3).map(member)).unwrap()
    }

    fn bound(members: &Members) -> usize {
        members.current().members().iter().filter(|member| member.incarnation.is_some()).count()
    }

    /// Row 51: an incarnation stays bound after the entry that bound it leaves the log.
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
        installed.install(at(7), &members(3), LogSuffix::Drop);
        assert_eq!(bound(&installed), 3, "as in the snapshot");
        installed.push(at(8), members(2));
        installed.install(at(7), &members(3), LogSuffix::Keep);
        assert_eq!(bound(&installed), 2, "the suffix is kept and is newer");
        installed.install(at(9), &members(1), LogSuffix::Keep);
        assert_eq!(bound(&installed), 1, "no entry follows it");

        let seen: BTreeMap<NodeId, Incarnation> = [(node(3), Incarnation([9; 16]))].into();
        let named = log.with_bound(seen.iter());
        assert!(named.is_none(), "another incarnation does not replace one that is bound");
    }

    /// A leader changes what is in the log; its own configuration says only where it dials.
    #[test]
    fn this_nodes_addresses_are_used_and_never_written_into_the_log() {
        let mut moved = members(0).members().to_vec();
        moved[1].peer_addr = "moved:2".to_owned();
        let mut log = Members::new(&members(0), &Membership::new(moved).unwrap());
        log.push(at(3), members(1));
        let address = |membership: &Membership| {
            membership.member(node(2)).map(|member| member.peer_addr.clone())
        };
        assert_eq!(address(log.current()).as_deref(), Some("moved:2"));
        assert_eq!(address(log.logged()).as_deref(), Some("peer:2"));
        let seen: BTreeMap<NodeId, Incarnation> = [(node(2), Incarnation([9; 16]))].into();
        let bound = log.with_bound(seen.iter()).unwrap();
        assert_eq!(address(&bound).as_deref(), Some("peer:2"), "what a leader proposes");
    }
}
