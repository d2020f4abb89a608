//! Changes of the membership (Raft paper, section 6; thesis, sections 4.1 to 4.3).
//!
//! The core judges every step and says which one is due; the driver writes the entries. Voters
//! change through a joint configuration only. A leader leaves a joint configuration by itself: once
//! it is committed, for the incoming voters; if it cannot be committed in time, back to the
//! outgoing ones. `docs/divergences.md` has the argument for the second, which is not in the paper.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use crate::interface::effects::Effects;
use crate::interface::input::{QuorumRisk, Rejected, VoterSet};
use crate::protocol::role::{Departed, Leader};
use crate::raft_core::RaftCore;
use crate::state::progress::{Progress, PromotionGate};
use crate::{Configuration, EntryKind, Instant, MembershipStep, NodeId};

/// After this many longest election timeouts a node that nobody needs any more is dropped, whether
/// it has learned so or not.
const DEPARTED_TIMEOUTS: u32 = 10;

impl RaftCore {
    /// Appends a membership entry, if it is a legal step and this is the time for it.
    pub(crate) fn on_propose_membership(
        &mut self,
        now: Instant,
        configuration: Box<Configuration>,
        bytes: u32,
        risk: QuorumRisk,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        self.may_create()?;
        let step = self.log.configuration().step_to(&configuration);
        let step = step.ok_or(Rejected::IllegalStep)?;
        // Only after an entry of this leader's term is committed, and one change at a time:
        // otherwise two leaders could commit with majorities that do not intersect (raft-dev, "bug
        // in single-server membership changes", 2015). A joint configuration that is not committed
        // may be rolled back: see `docs/divergences.md`.
        let is_open = self.log.is_configuration_committed() || step == MembershipStep::RollBack;
        if !self.leads_with_commit() || !is_open {
            return Err(Rejected::MembershipBusy);
        }
        if step == MembershipStep::EnterJoint {
            self.may_enter_joint(now, &configuration, risk)?;
        }
        if step == MembershipStep::RollBack {
            self.note_rollback(now);
        }
        self.create(EntryKind::Membership, now, &[bytes], Some(configuration));
        if let Some(leader) = self.role.leader_mut() {
            leader.joint_since = (step == MembershipStep::EnterJoint).then_some(now);
        }
        self.reconcile_followers(now, out);
        self.replicate(now, out);
        Ok(())
    }

    /// Whether a leader would accept this joint configuration as far as the voters are concerned.
    ///
    /// # Errors
    /// [`Rejected::NotCaughtUp`] and [`Rejected::WouldLoseQuorum`].
    pub fn judge_joint(
        &self,
        now: Instant,
        joint: &Configuration,
        risk: QuorumRisk,
    ) -> Result<(), Rejected> {
        self.may_enter_joint(now, joint, risk)
    }

    /// Whether both sets of voters would commit the change at once: every new voter has kept up
    /// with the log for a while, and a majority of each set keeps up with it now.
    fn may_enter_joint(
        &self,
        now: Instant,
        joint: &Configuration,
        risk: QuorumRisk,
    ) -> Result<(), Rejected> {
        let Some(leader) = self.role.leader() else { return Err(self.not_leader()) };
        let gate = self.promotion_gate();
        for node in joint.voters().iter().filter(|node| !joint.outgoing().contains(node)) {
            let promotable = leader
                .followers
                .get(node)
                .is_some_and(|progress| progress.is_promotable(now, gate));
            if !promotable {
                return Err(Rejected::NotCaughtUp(*node));
            }
        }
        if risk == QuorumRisk::Accept {
            return Ok(());
        }
        let keeps_up = |node: NodeId| {
            node == self.node
                || leader.followers.get(&node).is_some_and(|it| it.keeps_up(now, gate))
        };
        if !self.log.configuration().has_quorum(keeps_up) {
            return Err(Rejected::WouldLoseQuorum(VoterSet::Outgoing));
        }
        if !joint.has_quorum(keeps_up) {
            return Err(Rejected::WouldLoseQuorum(VoterSet::Incoming));
        }
        Ok(())
    }

    /// Of these voters, those that would not commit a change of the members now: they do not
    /// answer, or do not keep up with the log. All but this node if it does not lead.
    pub fn behind<'a>(
        &'a self,
        now: Instant,
        voters: impl Iterator<Item = NodeId> + 'a,
    ) -> impl Iterator<Item = NodeId> + 'a {
        let gate = self.promotion_gate();
        voters.filter(move |node| {
            let progress = self.role.leader().and_then(|leader| leader.followers.get(node));
            *node != self.node && !progress.is_some_and(|it| it.keeps_up(now, gate))
        })
    }

    fn is_heard(&self, leader: &Leader, now: Instant, node: NodeId) -> bool {
        let within = self.heard_within();
        node == self.node
            || leader.followers.get(&node).is_some_and(|progress| progress.is_heard(now, within))
    }

    /// A node that was heard within this time counts as reachable.
    fn heard_within(&self) -> Duration {
        self.config.heartbeat_interval.saturating_mul(2)
    }

    pub(crate) fn promotion_gate(&self) -> PromotionGate {
        PromotionGate {
            heard_within: self.heard_within(),
            round_max: self.config.election_timeout_min,
            at_least: self.config.election_timeout_max.saturating_mul(2),
        }
    }

    /// The step that this leader must take now to leave a joint configuration; `None` if there is
    /// none to take. It follows from the state alone, so that it is due at every later leader too.
    ///
    /// Forward once the joint configuration is committed. Back if it is not committed within the
    /// shortest election timeout, or shortly before this leader would step down for want of a
    /// quorum, provided that a majority of the outgoing voters answers.
    #[must_use]
    pub fn membership_step_due(&self, now: Instant) -> Option<MembershipStep> {
        let configuration = self.log.configuration();
        if !configuration.is_joint() || !self.leads_with_commit() || self.may_create().is_err() {
            return None;
        }
        if self.log.is_configuration_committed() {
            return Some(MembershipStep::LeaveJoint);
        }
        let leader = self.role.leader()?;
        let since = leader.joint_since?;
        let is_late = now.since(since) >= self.config.election_timeout_min;
        let is_ending = now.plus(self.heard_within()) >= self.quorum_lost_at(leader);
        let outgoing = Configuration::new(configuration.outgoing().iter().copied(), None);
        let would_commit = outgoing.has_quorum(|node| self.is_heard(leader, now, node));
        ((is_late || is_ending) && would_commit).then_some(MembershipStep::RollBack)
    }

    /// The nodes that were to vote must keep up for longer before the next attempt.
    fn note_rollback(&mut self, now: Instant) {
        let at_least = self.promotion_gate().at_least;
        let Some(leader) = self.role.leader_mut() else { return };
        let joint = self.log.configuration();
        for node in joint.voters().iter().filter(|node| !joint.outgoing().contains(node)) {
            if let Some(progress) = leader.followers.get_mut(node) {
                progress.promotion_failed(now, at_least);
            }
        }
    }

    /// Sends to the members of every configuration in play, and to nodes that nobody needs any more
    /// until they have learned so. What is known of a follower is kept when its role changes.
    pub(crate) fn reconcile_followers(&mut self, now: Instant, out: &mut Effects) {
        let (last, latest) = (self.log.last_index(), self.log.configuration_index());
        let grace = self.config.election_timeout_max.saturating_mul(DEPARTED_TIMEOUTS);
        let reach = self.log.reach();
        let node = self.node;
        let Some(leader) = self.role.leader_mut() else { return };
        for member in reach.iter().filter(|member| **member != node) {
            leader.followers.entry(*member).or_insert_with(|| Progress::new(last, now));
        }
        let unneeded: Vec<NodeId> =
            leader.followers.keys().filter(|node| !reach.contains(node)).copied().collect();
        leader.departed.retain(|node, _| !reach.contains(node));
        for node in unneeded {
            let round = leader.reads.last_round() + 1;
            let departed = leader.departed.entry(node).or_insert(Departed {
                round,
                dropped_by: latest,
                until: now.plus(grace),
            });
            let knows = leader.followers.get(&node).is_none_or(|progress| {
                progress.round_answered >= departed.round && progress.matched >= departed.dropped_by
            });
            if knows || now >= departed.until {
                leader.followers.remove(&node);
                leader.departed.remove(&node);
                out.dropped.push(node);
            }
        }
    }

    /// A follower that leaves may have learned so by now.
    pub(crate) fn maybe_drop_departed(&mut self, now: Instant, out: &mut Effects) {
        if self.role.leader().is_some_and(|leader| !leader.departed.is_empty()) {
            self.reconcile_followers(now, out);
        }
    }

    /// The commit index has passed the configuration in force. A leader that it leaves out has
    /// counted for nothing since it was appended; now it transfers its leadership (Raft thesis,
    /// sections 4.2.2 and 3.10).
    pub(crate) fn configuration_committed(&mut self, now: Instant, out: &mut Effects) {
        self.reconcile_followers(now, out);
        if self.is_left_out() && self.role.leader().is_some_and(|it| it.transfer.is_none()) {
            self.give_way(now, out);
        }
    }

    /// Whether this leader is no voter of the committed configuration in force.
    pub(crate) fn is_left_out(&self) -> bool {
        let configuration = self.log.configuration();
        self.role.is_leader()
            && self.log.is_configuration_committed()
            && !configuration.is_joint()
            && !configuration.is_voter(self.node)
    }

    /// Whether this node campaigns when it hears no leader: it votes in the last committed
    /// configuration or in a later one of its log. The votes of the configuration in force decide.
    /// (Raft thesis, section 4.2.2: the only node that holds the entry which removes it may have to
    /// lead until the entry is committed.)
    ///
    /// A node that has lost entries to damage does not: to vote it needs the claim to them only, to
    /// lead it needs the entries.
    pub(crate) fn may_campaign(&self) -> bool {
        let node = self.node;
        if self.lacks_promised() {
            return false;
        }
        self.log.configurations_in_play().any(|configuration| configuration.is_voter(node))
    }
}
