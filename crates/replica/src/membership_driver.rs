//! Changes of the membership at a leader. A request is written into the log as an intent; each step
//! after that follows from the state alone, so that any later leader takes it too.
//!
//! Which steps are legal, and when, is decided by the core (`protocol/membership.rs` there).

use std::fmt;
use std::time::Duration;

use d_engine_core::{Instant, MembershipStep, NodeId, Now, QuorumRisk, Rejected, VoterSet};
use d_engine_storage::{ChangeError, ConfigId, Leavers, MemberChange, Membership};

use crate::admission::{Admission, removed_by};
use crate::error::{LeaderHint, StopReason};
use crate::event::Jobs;
use crate::replica::{Payload, Replica};

/// Called exactly once: with the name of the membership that contains the intent, once its entry is
/// in the leader's log (not yet committed), or with the reason why nothing was changed. Must not
/// block.
pub type ChangeResponder = Box<dyn FnOnce(Result<ConfigId, ChangeMembersError>) + Send>;

/// A caller's request to change the members of a cluster.
pub struct ChangeMembers {
    /// The goal.
    pub change: MemberChange,
    /// The membership on which the caller's decision is based; `None` accepts any.
    pub expected: Option<ConfigId>,
    /// Whether to make the change even if too few voters may answer afterwards.
    pub risk: QuorumRisk,
    /// Receives the outcome.
    pub responder: ChangeResponder,
}

/// Why the members of a cluster are not changed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ChangeMembersError {
    /// Only the leader changes the membership. Ask the one that is named, or retry.
    NotLeader {
        /// The leader, if it is known.
        leader: Option<LeaderHint>,
    },
    /// The leader transfers its leadership, or an earlier change is not committed yet. Retry after
    /// a heartbeat interval.
    Busy(ConfigId),
    /// The request is refused; [`ChangeError`] says why and what to do.
    Refused(ChangeError),
    /// Too few voters answer to commit the change. Bring them back or replace them first, or
    /// accept the risk.
    WouldLoseQuorum(MissingVoters),
    /// The leader refuses the request, after a check of its own or as the answer to another node.
    RefusedByLeader {
        /// Why, and what to do.
        reason: String,
        /// What a program may want to distinguish.
        because: RefusedBecause,
    },
    /// Too many such requests wait at this node. Retry a little later.
    TooMany,
    /// The caller's time is up. Repeat the request to wait for it: a change that is made already
    /// is not made again.
    NotDone {
        /// What the change waits for.
        waits_for: String,
        /// Whether the change is in a leader's log and goes on; `None` if that is not known.
        is_written: Option<bool>,
    },
    /// The node has stopped. Restart it or ask another one.
    Stopped {
        /// Why.
        reason: StopReason,
    },
}

impl ChangeMembersError {
    /// What a program may want to distinguish, if this is a refusal.
    #[must_use]
    pub fn refused_because(&self) -> RefusedBecause {
        match self {
            Self::Refused(ChangeError::Stale { .. }) => RefusedBecause::Stale,
            Self::WouldLoseQuorum(_) => RefusedBecause::WouldLoseQuorum,
            Self::RefusedByLeader { because, .. } => *because,
            _ => RefusedBecause::Rule,
        }
    }
}

/// The refusals of a change that a program may want to distinguish.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RefusedBecause {
    /// The change breaks a rule; the reason says which one.
    Rule,
    /// The caller expected another configuration. List the members and decide again.
    Stale,
    /// Too few voters may answer afterwards. Bring them back, or accept the risk.
    WouldLoseQuorum,
}

impl fmt::Display for ChangeMembersError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader { leader: Some(leader) } => {
                write!(f, "this node is not the leader; retry at node {}", leader.node)
            }
            Self::NotLeader { leader: None } => {
                f.write_str("no leader is known; retry, or check which members answer")
            }
            Self::Busy(id) => ChangeError::Busy(*id).fmt(f),
            Self::Refused(error) => error.fmt(f),
            Self::WouldLoseQuorum(missing) => write!(
                f,
                "the change would not be committed: {missing}; bring them back or replace them \
                 first, or accept the risk"
            ),
            Self::NotDone { waits_for, is_written } => write!(
                f,
                "the change is not done yet{}; it waits for this: {waits_for}; repeat the request \
                 to wait for it",
                match is_written {
                    Some(true) => " and goes on",
                    Some(false) => ", and nothing is written",
                    None => " and may go on",
                }
            ),
            Self::RefusedByLeader { reason, .. } => f.write_str(reason),
            Self::TooMany => {
                f.write_str("too many requests to change the members wait at this node; retry")
            }
            Self::Stopped { reason } => write!(f, "the node has stopped: {reason}"),
        }
    }
}

/// A set of voters of which too few answer and keep up with the log to commit a change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MissingVoters {
    /// Which set it is.
    pub set: VoterSet,
    /// Its voters.
    pub voters: Vec<NodeId>,
    /// Those that do not answer or do not keep up with the log.
    pub missing: Vec<NodeId>,
}

impl fmt::Display for MissingVoters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.set {
            VoterSet::Outgoing => "now",
            VoterSet::Incoming => "after the change",
        };
        let ids =
            |nodes: &[NodeId]| nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ");
        let needed = self.voters.len() / 2 + 1;
        write!(
            f,
            "it needs {needed} of the nodes that vote {when} ({}), and these do not answer or do \
             not keep up with the log: {}",
            ids(&self.voters),
            ids(&self.missing)
        )
    }
}

impl std::error::Error for ChangeMembersError {}

/// Where a peer is dialled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PeerAddresses<'a> {
    /// The address in the log.
    pub known: &'a str,
    /// The one that the peer named last, if it is another one: for when it is not reached there.
    pub moved_to: Option<&'a str>,
}

/// The longest wait after a rollback.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// What a leader remembers of the changes that it drives; it is lost with the leadership.
#[derive(Debug)]
pub(crate) struct MembershipDriver {
    /// When intents are tried again: at most once in a heartbeat interval, and later after every
    /// rollback, because commands do not commit until a joint configuration is rolled back.
    next_try: Option<Instant>,
    /// The wait after the last rollback.
    wait: Duration,
    /// A caller has accepted that the intents may cost the quorum.
    risk: QuorumRisk,
    /// The voters of which too few answer, so that the intents wait.
    pub(crate) lacks: Option<MissingVoters>,
}

impl Default for MembershipDriver {
    fn default() -> Self {
        Self { next_try: None, wait: Duration::ZERO, risk: QuorumRisk::Refuse, lacks: None }
    }
}

impl MembershipDriver {
    /// A joint configuration was left for its new voters.
    fn left(&mut self) {
        self.wait = Duration::ZERO;
    }

    /// A joint configuration was rolled back: the next attempt waits twice as long as the last one,
    /// at least `least`.
    fn rolled_back(&mut self, now: Instant, least: Duration) {
        self.wait = self.wait.saturating_mul(2).max(least).min(WAIT_MAX);
        self.next_try = Some(now.plus(self.wait));
    }
}

impl Replica {
    /// Takes the step that is due, if there is one. Called after every event.
    pub(crate) fn drive_membership(&mut self, now: Now, jobs: &mut Jobs) {
        if !self.core.leads_with_commit() {
            self.membership_driver = MembershipDriver::default();
            return;
        }
        let current = self.members.logged();
        let due = match self.core.membership_step_due(now.monotonic) {
            Some(MembershipStep::LeaveJoint) => {
                self.membership_driver.left();
                current.after_joint()
            }
            Some(MembershipStep::RollBack) => {
                let least = self.config.core.election_timeout_max.saturating_mul(2);
                self.membership_driver.rolled_back(now.monotonic, least);
                current.before_joint()
            }
            _ => {
                self.carry_out_intents(now, jobs);
                return;
            }
        };
        self.propose_membership(now, due, QuorumRisk::Refuse, jobs).ok();
    }

    /// Enters a joint configuration with all members that are ready; if too few voters answer for
    /// that, only with those that join. Otherwise binds the directories of connected nodes.
    fn carry_out_intents(&mut self, now: Now, jobs: &mut Jobs) {
        let current = self.members.logged();
        if current.is_joint() || !self.core.configuration_entry().1 {
            return;
        }
        if !current.has_intents() {
            (self.membership_driver.risk, self.membership_driver.lacks) =
                (QuorumRisk::Refuse, None);
        }
        let interval = self.config.core.heartbeat_interval;
        let next_try = &mut self.membership_driver.next_try;
        if current.has_intents() && next_try.is_none_or(|at| now.monotonic >= at) {
            *next_try = Some(now.monotonic.plus(interval));
            let keeps_up = |node: NodeId| self.core.is_promotable(node, now.monotonic);
            let all = current.joint(keeps_up, Leavers::Go);
            let joining = current.joint(keeps_up, Leavers::Stay);
            let risk = self.membership_driver.risk;
            self.membership_driver.lacks = None;
            for next in all.into_iter().chain(joining) {
                let configuration = next.configuration();
                match self.propose_membership(now, next, risk, jobs) {
                    Ok(_) => return,
                    Err(Rejected::WouldLoseQuorum(set)) => {
                        let missing = self.missing_voters(now, set, &configuration);
                        self.membership_driver.lacks = Some(missing);
                    }
                    Err(_) => {}
                }
            }
        }
        if let Some(bound) = self.members.with_bound(self.incarnations.iter()) {
            self.propose_membership(now, bound, QuorumRisk::Refuse, jobs).ok();
            return;
        }
        self.write_addresses(now, jobs);
    }

    /// Writes the new address of a member that has moved.
    fn write_addresses(&mut self, now: Now, jobs: &mut Jobs) {
        if self.moved.is_empty() {
            return;
        }
        self.moved.forget_known(self.members.logged());
        let update = self.moved.updates(self.members.logged()).next();
        if let Some(update) = update {
            self.propose_membership(now, update, QuorumRisk::Refuse, jobs).ok();
        }
    }

    /// Appends `next` under the name that follows the one in force.
    fn propose_membership(
        &mut self,
        now: Now,
        next: Membership,
        risk: QuorumRisk,
        jobs: &mut Jobs,
    ) -> Result<ConfigId, Rejected> {
        let next = next.following(self.members.logged(), self.core.term().get());
        let id = next.id();
        let configuration = Box::new(next.configuration());
        let encoded = next.encode();
        if let Err(error) = Membership::decode(&encoded) {
            // Every node would refuse the entry.
            tracing::error!(node = %self.node, %error, "a change of the members is impossible");
            return Err(Rejected::IllegalStep);
        }
        let bytes = u32::try_from(encoded.len()).unwrap_or(u32::MAX);
        let input = d_engine_core::Input::ProposeMembership { configuration, bytes, risk };
        self.try_step(now, input, Payload::Membership(next), jobs)?;
        Ok(id)
    }

    /// Writes the intent of a request into the log.
    pub(crate) fn on_change_members(&mut self, now: Now, request: ChangeMembers, jobs: &mut Jobs) {
        let ChangeMembers { change, expected, risk, responder } = request;
        responder(self.change_members(now, &change, expected, risk, jobs));
    }

    fn change_members(
        &mut self,
        now: Now,
        change: &MemberChange,
        expected: Option<ConfigId>,
        risk: QuorumRisk,
        jobs: &mut Jobs,
    ) -> Result<ConfigId, ChangeMembersError> {
        let current = self.members.logged();
        let id = current.id();
        if !self.core.leads_with_commit() {
            return Err(match self.core.leader() {
                Some(leader) if leader == self.node => ChangeMembersError::Busy(id),
                _ => ChangeMembersError::NotLeader { leader: self.leader_hint() },
            });
        }
        let edited = current.edited(change);
        if let Err(busy @ ChangeError::Busy(_)) = edited {
            return Err(ChangeMembersError::Refused(busy));
        }
        if edited == Ok(None) {
            // Also if the caller repeats the request that has led from `expected` to here.
            if risk == QuorumRisk::Accept && current.has_intents() {
                let driver = &mut self.membership_driver;
                (driver.next_try, driver.risk) = (None, risk);
            }
            return Ok(id);
        }
        if let Some(expected) = expected.filter(|expected| *expected != id) {
            let stale = ChangeError::Stale { expected, current: id };
            return Err(ChangeMembersError::Refused(stale));
        }
        let Some(next) = edited.map_err(ChangeMembersError::Refused)? else { return Ok(id) };
        // A voter that stops voting waits for nobody, so the quorum can be judged now.
        let stops_voting = matches!(change, MemberChange::Remove(_) | MemberChange::Demote(_));
        let joint = next.joint(|_| false, Leavers::Go).filter(|_| stops_voting);
        if let Some(joint) = joint {
            let joint = joint.configuration();
            let judged = self.core.judge_joint(now.monotonic, &joint, risk);
            judged.map_err(|rejected| match rejected {
                Rejected::WouldLoseQuorum(set) => {
                    ChangeMembersError::WouldLoseQuorum(self.missing_voters(now, set, &joint))
                }
                rejected => self.change_error(rejected),
            })?;
        }
        let written = self.propose_membership(now, next, QuorumRisk::Refuse, jobs);
        let id = written.map_err(|rejected| self.change_error(rejected))?;
        let driver = &mut self.membership_driver;
        driver.next_try = None;
        if risk == QuorumRisk::Accept {
            driver.risk = risk;
        }
        Ok(id)
    }

    fn missing_voters(
        &self,
        now: Now,
        set: VoterSet,
        joint: &d_engine_core::Configuration,
    ) -> MissingVoters {
        let voters = match set {
            VoterSet::Outgoing => joint.outgoing(),
            VoterSet::Incoming => joint.voters(),
        };
        let missing = self.core.behind(now.monotonic, voters.iter().copied()).collect();
        MissingVoters { set, voters: voters.to_vec(), missing }
    }

    fn change_error(&self, rejected: Rejected) -> ChangeMembersError {
        match rejected {
            Rejected::NotLeader { .. } => {
                ChangeMembersError::NotLeader { leader: self.leader_hint() }
            }
            _ => ChangeMembersError::Busy(self.members.logged().id()),
        }
    }

    /// Reports a new committed membership, and finds out whether it has removed this node.
    pub(crate) fn note_committed_members(&mut self, jobs: &mut Jobs) {
        let committed = self.members.committed(self.core.log().committed);
        let id = committed.id();
        if id == self.committed_members {
            return;
        }
        let removed = removed_by(committed, self.node, self.born);
        self.moved.forget_known(self.members.logged());
        self.members.forget_former_but(&self.core.reach());
        self.committed_members = id;
        jobs.status_changed = true;
        if let Some(by) = removed {
            self.on_removed_by(by, jobs);
        }
    }

    /// A member may know earlier than this node that this node was removed.
    pub(crate) fn on_removed_by(&mut self, by: ConfigId, jobs: &mut Jobs) {
        let is_news = by > self.born && by >= self.committed_members && self.removed.is_none();
        if !is_news {
            return;
        }
        tracing::warn!(node = %self.node, configuration = %by, "this node was removed");
        self.removed = Some(by);
        jobs.status_changed = true;
    }

    /// The committed configuration that has removed this node, if one has. The node takes no part
    /// any more; stop it, and do not start it again on its data directory.
    #[must_use]
    pub fn removed(&self) -> Option<ConfigId> {
        self.removed
    }

    /// The last committed membership, as it is in the log.
    #[must_use]
    pub fn committed_membership(&self) -> &Membership {
        self.members.committed(self.core.log().committed)
    }

    /// What the transport needs to judge its peers.
    #[must_use]
    pub fn admission(&self) -> Admission {
        self.members.admission(self.core.log().committed)
    }

    /// The other nodes with which this one keeps a connection, with their addresses: the members of
    /// every configuration that may decide something, and at a leader also those that have just
    /// left.
    ///
    /// Also the leader that this node follows: while a leader that was removed hands over, its
    /// followers know of the removal first.
    pub fn peers(&self) -> impl Iterator<Item = (NodeId, PeerAddresses<'_>)> {
        let reach = self.core.reach();
        let leader = self.core.leader().filter(|leader| !reach.contains(leader));
        let others = reach.into_iter().chain(leader).filter(|node| *node != self.node);
        others.filter_map(|node| {
            let moved_to = self.moved.peer_addr(node);
            Some((node, PeerAddresses { known: self.members.peer_addr(node)?, moved_to }))
        })
    }

    /// Forgets nodes that are no members any more.
    pub(crate) fn forget(&mut self, dropped: &[NodeId], jobs: &mut Jobs) {
        for node in dropped {
            self.incarnations.remove(node);
            self.members.forget_former(*node);
            self.snapshots.holds.forget(*node);
            self.loads.forget(*node);
        }
        jobs.snapshots.retain(|order| !dropped.contains(&order.to));
        jobs.dropped.extend_from_slice(dropped);
        jobs.status_changed |= !dropped.is_empty();
    }

    /// The members and the core's configuration are two views of the same entry.
    pub(crate) fn check_members(&self) {
        debug_assert_eq!(
            self.members.logged().configuration(),
            *self.core.configuration(),
            "the members of node {} and its configuration differ",
            self.node
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Commands do not commit while a joint configuration waits, so attempts become rarer.
    #[test]
    fn each_rollback_doubles_the_wait_before_the_next_attempt() {
        let (now, least) = (Instant::from_nanos(7), Duration::from_secs(2));
        let mut driver = MembershipDriver::default();
        for seconds in [2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            driver.rolled_back(now, least);
            assert_eq!(driver.next_try, Some(now.plus(Duration::from_secs(seconds))));
        }
        driver.left();
        driver.rolled_back(now, least);
        assert_eq!(driver.next_try, Some(now.plus(least)), "a success begins anew");
    }
}
