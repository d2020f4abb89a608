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
        if let Some((_, last)) = self.history.drain(..covered).next_back() {
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
