//! "removed nodes never disturb": a candidate outside the committed membership changes neither the
//! term nor the vote nor the role of a member that has heard a leader within the shortest election
//! timeout (Raft thesis, section 4.2.3).
//!
//! "a leader outside gives way": a leader that is no voter of the committed configuration in force
//! ends its leadership within two longest election timeouts.

use std::collections::BTreeMap;
use std::time::Duration;

use d_engine_core::{Instant, NodeId, RaftCore, RoleKind, Term};
use d_engine_replica::{Event, PeerMessage};

use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;

/// The shortest and the longest election timeout of the nodes.
const ELECTION_TIMEOUT: (Duration, Duration) =
    (Duration::from_millis(500), Duration::from_millis(1_000));

/// What an event may disturb, and what it was before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Before {
    /// Who campaigns by this event.
    candidate: Option<NodeId>,
    /// Who claims to lead by this event.
    leader: Option<NodeId>,
    is_deadline: bool,
    state: (Term, Option<NodeId>, RoleKind),
}

impl Before {
    pub(crate) fn of(event: &Event, core: &RaftCore) -> Self {
        let (mut candidate, mut leader) = (None, None);
        if let Event::Peer { from, message } = event {
            match message {
                PeerMessage::PreVote { .. } | PeerMessage::RequestVote { transfer: false, .. } => {
                    candidate = Some(*from);
                }
                PeerMessage::Append { .. } | PeerMessage::Heartbeat { .. } => leader = Some(*from),
                _ => {}
            }
        }
        let is_deadline = matches!(event, Event::Deadline);
        Self { candidate, leader, is_deadline, state: state(core) }
    }
}

fn state(core: &RaftCore) -> (Term, Option<NodeId>, RoleKind) {
    (core.term(), core.vote(), core.role())
}

/// What the nodes have heard.
#[derive(Debug, Default)]
pub(crate) struct Disturbance {
    /// When each node last heard a leader, by its own clock.
    heard: BTreeMap<u64, Instant>,
    /// Since when a leader is no voter, by its own clock.
    outside: BTreeMap<u64, (Term, Instant)>,
}

impl Disturbance {
    /// Forgets what a process has heard.
    pub(crate) fn on_restart(&mut self, node: u64) {
        self.heard.remove(&node);
        self.outside.remove(&node);
    }

    /// Checks a node that has handled an event.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check(
        &mut self,
        node: u64,
        core: &RaftCore,
        (before, clock): (Before, Instant),
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        if before.leader.is_some() && core.leader() == before.leader {
            self.heard.insert(node, clock);
        }
        if let Some(candidate) = before.candidate.filter(|_| state(core) != before.state) {
            self.check_candidate(node, core, (candidate, before), clock, memberships)?;
        }
        self.check_leader(node, core, before, clock)
    }

    fn check_candidate(
        &self,
        node: u64,
        core: &RaftCore,
        (candidate, before): (NodeId, Before),
        clock: Instant,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let heard = self.heard.get(&node).is_some_and(|at| clock.since(*at) < ELECTION_TIMEOUT.0);
        let Some((_, members)) = memberships.committed().last() else { return Ok(()) };
        let is_member = |node: u64| members.members().iter().any(|member| member.node == node);
        match heard && is_member(node) && members.has_removed(candidate.get()) {
            true => Rule::NoDisturbance.broken_by(
                node,
                format_args!(
                    "node {candidate}, which was removed, moved node {node} from {:?} to {:?}, \
                     which had just heard its leader",
                    before.state,
                    state(core)
                ),
            ),
            false => Ok(()),
        }
    }

    fn check_leader(
        &mut self,
        node: u64,
        core: &RaftCore,
        before: Before,
        clock: Instant,
    ) -> Result<(), Violation> {
        let (_, is_committed) = core.configuration_entry();
        let is_outside = core.role() == RoleKind::Leader
            && is_committed
            && !core.configuration().is_voter(node_id(node));
        if !is_outside {
            self.outside.remove(&node);
            return Ok(());
        }
        let (term, since) = *self.outside.entry(node).or_insert((core.term(), clock));
        if term != core.term() {
            self.outside.insert(node, (core.term(), clock));
        }
        // Not before the node has looked at its deadlines: it may have been paused.
        match before.is_deadline && clock.since(since) > ELECTION_TIMEOUT.1 * 2 {
            true => Rule::LeaderOutside.broken_by(
                node,
                format_args!(
                    "node {node} leads term {} since {:?} without a vote in {:?}",
                    core.term(),
                    clock.since(since),
                    core.configuration()
                ),
            ),
            false => Ok(()),
        }
    }
}
