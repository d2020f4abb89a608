//! The memberships in the log: addresses for leader hints, incarnations for the transport. They
//! follow the core's configuration entry by entry, truncation included.

use std::collections::BTreeMap;

use d_engine_core::{LogIndex, NodeId};
use d_engine_storage::{Incarnation, LogSuffix, Membership};

use crate::admission::Admission;

/// The memberships in the log with the indexes of their entries, and the one before them.
#[derive(Debug, Clone)]
pub(crate) struct Members {
    history: Vec<(LogIndex, Known)>,
    initial: Known,
    /// The addresses of nodes that no membership in the log has any more. A leader still needs them
    /// until such a node knows that it has left.
    former: BTreeMap<NodeId, String>,
    /// The members at the cluster's birth, as stored.
    birth: Membership,
    /// Their addresses from this node's configuration. This node uses them as long as the log
    /// names no other address than the one at the birth: the members may have moved since.
    addresses: Membership,
}

/// A membership as it is in the log, and as this node uses it.
#[derive(Debug, Clone)]
struct Known {
    logged: Membership,
    used: Membership,
}

impl Members {
    /// `first` is the membership before the first entry of the log, `birth` the one at the
    /// cluster's birth.
    pub(crate) fn new(first: &Membership, birth: &Membership) -> Self {
        let initial = Known { logged: first.clone(), used: first.clone() };
        let (birth, addresses) = (birth.clone(), birth.clone());
        Self { history: Vec::new(), initial, former: BTreeMap::new(), birth, addresses }
    }

    /// Sets the addresses from this node's configuration.
    pub(crate) fn use_addresses(&mut self, addresses: &Membership) {
        self.addresses = addresses.clone();
        let Self { history, initial, birth, addresses, .. } = self;
        for known in history.iter_mut().map(|(_, known)| known).chain([initial]) {
            known.used = known.logged.with_moved(birth, addresses);
        }
    }

    fn known_as(&self, logged: Membership) -> Known {
        Known { used: logged.with_moved(&self.birth, &self.addresses), logged }
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

    /// The last membership that is committed, as it is in the log.
    pub(crate) fn committed(&self, commit: LogIndex) -> &Membership {
        self.in_play(commit).next().map_or(&self.initial.logged, |known| &known.logged)
    }

    /// What the transport needs to judge its peers.
    pub(crate) fn admission(&self, commit: LogIndex) -> Admission {
        Admission::new(self.in_play(commit).map(|known| &known.logged))
    }

    /// The memberships from the last committed one on, in the order of the log.
    fn in_play(&self, commit: LogIndex) -> impl Iterator<Item = &Known> {
        let committed = self.history.partition_point(|(at, _)| *at <= commit);
        let first = if committed == 0 { Some(&self.initial) } else { None };
        let later = self.history.iter().skip(committed.saturating_sub(1)).map(|(_, known)| known);
        first.into_iter().chain(later)
    }

    /// The address of a node that is or was a member, as this node uses it.
    pub(crate) fn peer_addr(&self, node: NodeId) -> Option<&str> {
        let memberships = self.history.iter().map(|(_, known)| known).rev().chain([&self.initial]);
        let known = memberships.filter_map(|known| known.used.member(node)).next();
        let known = known.map(|member| &member.peer_addr).or_else(|| self.former.get(&node));
        known.map(String::as_str)
    }

    /// Keeps the addresses of the members that `initial` is about to lose.
    fn remember_initial(&mut self) {
        for member in self.initial.used.members() {
            if let Some(node) = NodeId::new(member.node) {
                self.former.insert(node, member.peer_addr.clone());
            }
        }
    }

    /// Forgets a node that has left.
    pub(crate) fn forget_former(&mut self, node: NodeId) {
        self.former.remove(&node);
    }

    /// Forgets the nodes that have left, but for those that are still needed.
    pub(crate) fn forget_former_but(&mut self, needed: &[NodeId]) {
        self.former.retain(|node, _| needed.contains(node));
    }

    pub(crate) fn push(&mut self, index: LogIndex, membership: Membership) {
        self.truncate_from(index);
        self.history.push((index, self.known_as(membership)));
    }

    pub(crate) fn truncate_from(&mut self, index: LogIndex) {
        self.history.retain(|(at, _)| *at < index);
    }

    /// The log begins after `base`: of the memberships up to there only the last one is kept.
    pub(crate) fn purge_to(&mut self, base: LogIndex) {
        let covered = self.history.partition_point(|(at, _)| *at <= base);
        for (_, next) in self.history.drain(..covered).collect::<Vec<_>>() {
            self.remember_initial();
            self.initial = next;
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
        self.remember_initial();
        self.initial = self.known_as(membership.clone());
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
    use d_engine_storage::{Member, MemberChange, MemberRole};

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
        let mut log = Members::new(&members(0), &members(0));
        log.use_addresses(&Membership::new(moved).unwrap());
        log.push(at(3), members(1));
        let address = |membership: &Membership| {
            membership.member(node(2)).map(|member| member.peer_addr.clone())
        };
        assert_eq!(address(log.current()).as_deref(), Some("moved:2"));
        assert_eq!(address(log.logged()).as_deref(), Some("peer:2"));
        let seen: BTreeMap<NodeId, Incarnation> = [(node(2), Incarnation([9; 16]))].into();
        let bound = log.with_bound(seen.iter()).unwrap();
        assert_eq!(address(&bound).as_deref(), Some("peer:2"), "what a leader proposes");
        let update = MemberChange::UpdateAddress {
            node: 2,
            peer_addr: Some("newer:2".to_owned()),
            client_addr: None,
        };
        log.push(at(4), log.logged().edited(&update).unwrap().unwrap());
        assert_eq!(address(log.current()).as_deref(), Some("newer:2"), "the log is newer");
        assert_eq!(log.peer_addr(node(2)), Some("newer:2"));
    }

    /// A leader that purges its log still has to tell a node that it has left.
    #[test]
    fn the_address_of_a_node_that_has_left_outlives_a_purge() {
        let mut log = Members::new(&members(3), &members(3));
        let without = members(3).edited(&MemberChange::Remove(3)).unwrap().unwrap();
        let without =
            without.joint(|_| false, d_engine_storage::Leavers::Go).unwrap().after_joint();
        assert!(without.member(node(3)).is_none());
        log.push(at(3), without);
        log.purge_to(at(5));
        assert_eq!(log.peer_addr(node(3)), Some("peer:3"));
        log.forget_former_but(&[node(2)]);
        assert_eq!(log.peer_addr(node(3)), None);
    }

    #[test]
    fn the_committed_membership_is_the_last_one_up_to_the_commit_index() {
        let mut log = Members::new(&members(0), &members(0));
        log.push(at(3), members(1));
        log.push(at(5), members(2));
        let committed = |commit| {
            let bound = log.committed(at(commit)).members().iter();
            bound.filter(|member| member.incarnation.is_some()).count()
        };
        let found = [0, 2, 3, 4, 5, 9].map(committed);
        assert_eq!(found, [0, 0, 1, 1, 2, 2]);
        let in_play = |commit| log.in_play(at(commit)).count();
        assert_eq!([0, 3, 4, 5].map(in_play), [3, 2, 2, 1]);
    }
}
