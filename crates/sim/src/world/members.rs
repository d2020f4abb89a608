//! The operator who changes the members of the cluster while everything else goes wrong.

use std::sync::PoisonError;

use d_engine_core::{NodeId, QuorumRisk, RoleKind};
use d_engine_replica::{ChangeMembers, ChangeMembersError, Event};
use d_engine_storage::{
    Admission, ChangeError, ConfigId, JoinAs, MemberChange, MemberRole, Membership,
};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::names::node_id;
use crate::time::MS;
use crate::world::World;
use crate::world::event::{Chain, SimEvent};
use crate::world::node::{Node, Running};
use crate::world::operator::{Answered, Asks, InJoint, Request};

impl World {
    /// A leader that serves callers and votes in the configuration in force.
    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |node: &&Node| {
            node.running.as_ref().map(|it| it.replica.core()).is_some_and(|core| {
                core.role() == RoleKind::Leader
                    && core.leads_with_commit()
                    && core.configuration().is_voter(node_id(node.id))
            })
        };
        self.nodes.iter().find(leads).map(|node| node.id)
    }

    pub(crate) fn running(&self, node: u64) -> Option<&Running> {
        let position = usize::try_from(node.checked_sub(1)?).ok()?;
        self.nodes.get(position)?.running.as_ref()
    }

    /// The nodes that are members as this one knows it.
    pub(crate) fn members_of(&self, node: u64) -> Vec<u64> {
        let membership = self.running(node).map(|it| it.replica.membership());
        let members = membership.map(Membership::members).unwrap_or_default();
        members.iter().map(|member| member.node).collect()
    }

    /// The voters, sorted, as this node knows it.
    pub(crate) fn voters_of(&self, node: u64) -> Vec<u64> {
        let core = self.running(node).map(|it| it.replica.core());
        let voters = core.map(|core| core.configuration().voters()).unwrap_or_default();
        voters.iter().map(|voter| voter.get()).collect()
    }

    /// The next request: mostly at a leader, on the basis of the membership that it knows.
    pub(crate) fn change_members(&mut self) -> Result<(), Violation> {
        self.plan(self.profile.members.change_every, Chain::MembersChange);
        let draws = self.member_prng.below(100);
        match draws {
            0..8 => return self.lose_some_disk(),
            8..20 => self.operator.in_joint = Some(InJoint::JoinerDies),
            20..30 => self.operator.in_joint = Some(InJoint::Transfer),
            30..45 => self.operator.cuts_off_removed = true,
            _ => {}
        }
        let leader = (1..=self.profile.nodes).find(|node| self.leads(*node));
        let anyone = self.member_prng.between(1, self.profile.nodes);
        let node = leader.filter(|_| self.member_prng.chance(900_000)).unwrap_or(anyone);
        self.ask_something(node)?;
        if (45..60).contains(&draws) {
            // Another operator, at the same time and at another node.
            let leaders = (1..=self.profile.nodes).filter(|node| self.leads(*node));
            let leaders: Vec<u64> = leaders.collect();
            let other = leaders.iter().copied().find(|other| *other != node).unwrap_or(anyone);
            self.ask_something(other)?;
        }
        Ok(())
    }

    fn ask_something(&mut self, node: u64) -> Result<(), Violation> {
        let Some(running) = self.running(node) else { return Ok(()) };
        let membership = running.replica.membership().clone();
        let id = membership.id();
        let Some(change) = self.draw_change(node, &membership) else { return Ok(()) };
        let risk = match self.member_prng.chance(100_000) && self.operator.lost.is_none() {
            true => QuorumRisk::Accept,
            false => QuorumRisk::Refuse,
        };
        let expected = match self.member_prng.below(10) {
            0 | 1 => Some(id),
            2 => Some(ConfigId { version: id.version.saturating_sub(1), ..id }),
            _ => None,
        };
        self.ask(node, Request { change, expected, risk, asks: Asks::Operator })
    }

    /// Asks a node for a change.
    pub(crate) fn ask(&mut self, node: u64, request: Request) -> Result<(), Violation> {
        if self.node(node).running.is_none() {
            return Ok(());
        }
        let now = self.now;
        self.trace.note(now, format_args!("node {node} is asked for {request:?}"));
        self.counts.fault(Fault::MembersChange);
        self.monitors.ids.on_request(&request.change);
        let answers = self.operator.answers.clone();
        let Request { change, expected, risk, .. } = request.clone();
        let responder = Box::new(move |answer| {
            let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
            answers.push(Answered { node, request, answer, before: None });
        });
        let request = ChangeMembers { change, expected, risk, responder };
        self.tell(node, Event::ChangeMembers(Box::new(request)))
    }

    /// Takes up the answers to requests. A node that does not lead names the one that does.
    pub(crate) fn take_member_answers(&mut self) -> Result<(), Violation> {
        let answers = std::mem::take(
            &mut *self.operator.answers.lock().unwrap_or_else(PoisonError::into_inner),
        );
        for Answered { node, request, answer, before } in answers {
            let now = self.now;
            self.trace
                .note(now, format_args!("node {node} answers {:?}: {answer:?}", request.asks));
            let Request { change, expected, .. } = &request;
            self.monitors.intents.on_answer(node, change, (*expected, before), &answer)?;
            match (&answer, request.asks) {
                (Err(ChangeMembersError::Refused(ChangeError::Stale { .. })), _) => {
                    self.counts.reached(Sometimes::StaleRequestRefused);
                }
                (_, Asks::Joiner(number)) => self.joiner_answered(number, &answer),
                (Err(ChangeMembersError::NotLeader { leader: Some(leader) }), Asks::Operator) => {
                    let request = Request { asks: Asks::Forwarded, ..request };
                    self.ask(leader.node.get(), request)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A node has handled a request; `before` was in force there until then.
    pub(crate) fn request_was_handled(&self, before: ConfigId) {
        let mut answers = self.operator.answers.lock().unwrap_or_else(PoisonError::into_inner);
        for answered in answers.iter_mut() {
            answered.before.get_or_insert(before);
        }
    }

    fn draw_change(&mut self, asked: u64, membership: &Membership) -> Option<MemberChange> {
        let with = |wanted: fn(MemberRole) -> bool| -> Vec<u64> {
            let members = membership.members().iter().filter(|member| wanted(member.role));
            members.map(|member| member.node).collect()
        };
        let voters = with(|role| role == MemberRole::Voter);
        let learners =
            with(|role| matches!(role, MemberRole::Learner | MemberRole::Joining { .. }));
        let voter = self.member_prng.pick(&voters).copied();
        let learner = self.member_prng.pick(&learners).copied();
        if self.profile.members.admission == Admission::Invited && self.member_prng.chance(150_000)
        {
            return Some(self.draw_admission(membership));
        }
        // Without a voter whose disk is lost, no further one can be spared.
        let draw = self.member_prng.below(if self.operator.lost.is_some() { 6 } else { 12 });
        match draw {
            0..5 => {
                let replaces = voter.filter(|_| self.member_prng.chance(300_000));
                let replaces = replaces.filter(|_| self.operator.lost.is_none());
                let joins_as = match self.member_prng.chance(200_000) {
                    true => JoinAs::Learner,
                    false => JoinAs::Voter { replaces },
                };
                let wish = membership.last_node() + 1 + self.member_prng.below(10) / 9;
                let wish = Some(wish).filter(|_| self.member_prng.chance(400_000));
                self.begin_to_join(wish, joins_as);
                None
            }
            5 => {
                let node = voter.or(learner)?;
                self.operator.moves += 1;
                let address = format!("sim:moved-{}", self.operator.moves);
                let (peer_addr, client_addr) = match self.member_prng.chance(500_000) {
                    true => (Some(address), None),
                    false => (None, Some(address)),
                };
                Some(MemberChange::UpdateAddress { node, peer_addr, client_addr })
            }
            6..9 => {
                let leader = Some(asked).filter(|_| self.member_prng.chance(330_000));
                let any = if self.member_prng.chance(200_000) { learner } else { voter };
                leader.or(any).map(MemberChange::Remove)
            }
            9 => {
                let other = self.member_prng.pick(&voters).copied();
                let new = if self.member_prng.chance(300_000) { other } else { learner };
                Some(MemberChange::Replace { old: voter?, new: new? })
            }
            10 => voter.map(MemberChange::Demote),
            _ => learner.or(voter).map(MemberChange::Promote),
        }
    }

    /// The operator withdraws an invitation, or changes which nodes may join.
    fn draw_admission(&mut self, membership: &Membership) -> MemberChange {
        let invited = self.member_prng.pick(membership.invitations());
        match (invited, membership.admission()) {
            (Some(invited), _) => MemberChange::Withdraw(invited.peer_addr.clone()),
            (None, Admission::Open) => MemberChange::Admit(Admission::Invited),
            (None, Admission::Invited) => MemberChange::Admit(Admission::Open),
        }
    }

    /// A leader has entered a joint configuration: what was to happen then happens now.
    fn joint_was_entered(&mut self, leader: u64) {
        if let Some(what) = self.operator.in_joint.take() {
            let delay = self.member_prng.below(3 * MS);
            self.after(delay, SimEvent::InJoint { leader, what });
        }
    }

    pub(crate) fn in_joint(&mut self, leader: u64, what: InJoint) -> Result<(), Violation> {
        let Some(running) = self.running(leader) else { return Ok(()) };
        let configuration = running.replica.core().configuration().clone();
        if !configuration.is_joint() || self.healed {
            return Ok(());
        }
        let joins = |node: &&NodeId| !configuration.outgoing().contains(node);
        let joiner = configuration.voters().iter().find(joins).map(|node| node.get());
        match what {
            InJoint::JoinerDies => {
                if let Some(node) = joiner.filter(|node| self.running(*node).is_some()) {
                    self.counts.fault(Fault::Crash);
                    self.counts.reached(Sometimes::JoinerDiedInJoint);
                    self.crash(node);
                }
                Ok(())
            }
            InJoint::Transfer => {
                let drawn = self.member_prng.pick(configuration.voters()).copied();
                let to = drawn.filter(|_| self.member_prng.chance(700_000));
                self.counts.fault(Fault::LeadershipTransfer);
                self.counts.reached(Sometimes::TransferInJoint);
                self.tell(leader, Event::TransferLeadership { to, responder: Box::new(|_| {}) })
            }
        }
    }

    /// Records the rare states of the membership that a node is in after an event.
    pub(crate) fn note_membership(&mut self, id: u64) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        if running.replica.membership().id() == running.known.id() {
            return Ok(());
        }
        let now = running.replica.membership().clone();
        let before = std::mem::replace(&mut running.known, now.clone());
        let core = running.replica.core();
        let leads = core.role() == RoleKind::Leader;
        let rolled_back = before.is_joint()
            && !now.is_joint()
            && now.configuration().voters() == before.configuration().outgoing();
        let node = d_engine_core::NodeId::new(id);
        let states = [
            (leads && now.is_joint(), Sometimes::JointEntered),
            (leads && rolled_back, Sometimes::JointRolledBack),
            (leads && before.is_joint() && !rolled_back, Sometimes::JointLeft),
            (before.is_joint() && now.id() < before.id(), Sometimes::JointTruncated),
            (
                leads && node.is_some_and(|node| !now.configuration().is_voter(node)),
                Sometimes::LeaderLeftOut,
            ),
            (now.id().version > before.id().version + 1, Sometimes::MembershipFromSnapshot),
            (
                now.is_joint() && now.id().version > before.id().version + 1,
                Sometimes::JointFromSnapshot,
            ),
            (now.is_joint() && now.id() < before.id(), Sometimes::FinalTruncated),
            (
                leads && now.is_joint() && now.id().term != before.id().term,
                Sometimes::IntentTakenOver,
            ),
        ];
        for (_, state) in states.into_iter().filter(|(reached, _)| *reached) {
            self.counts.reached(state);
        }
        if leads && now.is_joint() {
            self.joint_was_entered(id);
        }
        if leads && self.operator.cuts_off_removed && !self.healed {
            let gone =
                before.members().iter().map(|it| it.node).find(|node| now.has_removed(*node));
            if let Some(gone) = gone.filter(|node| *node != id) {
                self.operator.cuts_off_removed = false;
                self.trace.note(self.now, format_args!("node {gone} is cut off"));
                self.network.cut_off(gone);
            }
        }
        self.check_overlap()
    }

    /// At the end of all faults, nodes that were cut off are connected again if they are still
    /// members; of the others some stay away for longer.
    pub(crate) fn connect_members(&mut self) {
        let last = self.monitors.memberships.committed().last().cloned();
        for node in self.network.are_cut_off() {
            let is_removed = last.as_ref().is_some_and(|(_, last)| last.has_removed(node));
            if !is_removed || self.member_prng.chance(300_000) {
                self.network.reconnect(node);
            }
        }
    }

    /// Checks that the configurations at all running nodes overlap.
    pub(crate) fn check_overlap(&mut self) -> Result<(), Violation> {
        let running = self
            .nodes
            .iter()
            .filter_map(|node| node.running.as_ref().map(|it| (node.id, it.replica.core())));
        self.monitors.check_overlap(running)
    }
}
