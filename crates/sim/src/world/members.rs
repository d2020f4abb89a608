//! The operator who changes the members of the cluster while everything else goes wrong.

use d_engine_core::{QuorumRisk, RoleKind};
use d_engine_replica::{ChangeMembers, Event};
use d_engine_storage::{JoinAs, MemberChange, MemberRole, Membership, NewMember};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::names::node_id;
use crate::world::World;
use crate::world::event::Chain;
use crate::world::node::{Node, Running, incarnation_of};

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

    fn running(&self, node: u64) -> Option<&Running> {
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
        if self.healed {
            return Ok(());
        }
        self.plan(self.profile.members.change_every, Chain::MembersChange);
        let leader = (1..=self.profile.nodes).find(|node| self.leads(*node));
        let anyone = self.member_prng.between(1, self.profile.nodes);
        let node = leader.filter(|_| self.member_prng.chance(900_000)).unwrap_or(anyone);
        let Some(running) = self.running(node) else { return Ok(()) };
        let membership = running.replica.membership().clone();
        let Some(change) = self.draw_change(node, &membership) else { return Ok(()) };
        let risk = match self.member_prng.chance(100_000) {
            true => QuorumRisk::Accept,
            false => QuorumRisk::Refuse,
        };
        let now = self.now;
        self.trace.note(now, format_args!("node {node} is asked to {change:?}, {risk:?}"));
        self.counts.fault(Fault::MembersChange);
        self.monitors.ids.on_request(&change);
        let responder = Box::new(|_| {});
        let request = Box::new(ChangeMembers { change, expected: None, risk, responder });
        self.tell(node, Event::ChangeMembers(request))
    }

    fn draw_change(&mut self, asked: u64, membership: &Membership) -> Option<MemberChange> {
        let with = |wanted: fn(MemberRole) -> bool| -> Vec<u64> {
            let members = membership.members().iter().filter(|member| wanted(member.role));
            members.map(|member| member.node).collect()
        };
        let voters = with(|role| role == MemberRole::Voter);
        let learners =
            with(|role| matches!(role, MemberRole::Learner | MemberRole::Joining { .. }));
        let strangers: Vec<u64> = (1..=self.profile.nodes)
            .filter(|node| !membership.members().iter().any(|member| member.node == *node))
            .filter(|node| !membership.has_removed(*node))
            .collect();
        let voter = self.member_prng.pick(&voters).copied();
        let learner = self.member_prng.pick(&learners).copied();
        match self.member_prng.below(10) {
            0..5 => {
                // In order, so that no id is skipped for ever.
                let node = *strangers.first()?;
                let replaces = voter.filter(|_| self.member_prng.chance(300_000));
                let learns = self.member_prng.chance(200_000);
                Some(MemberChange::Add(NewMember {
                    node: Some(node),
                    peer_addr: format!("sim:{node}"),
                    client_addr: format!("sim-client:{node}"),
                    incarnation: incarnation_of(node),
                    joins_as: match learns {
                        true => JoinAs::Learner,
                        false => JoinAs::Voter { replaces },
                    },
                }))
            }
            5 | 6 => {
                let leader = Some(asked).filter(|_| self.member_prng.chance(330_000));
                let any = if self.member_prng.chance(200_000) { learner } else { voter };
                leader.or(any).map(MemberChange::Remove)
            }
            7 => {
                let other = self.member_prng.pick(&voters).copied();
                let new = if self.member_prng.chance(300_000) { other } else { learner };
                Some(MemberChange::Replace { old: voter?, new: new? })
            }
            8 => voter.map(MemberChange::Demote),
            _ => learner.or(voter).map(MemberChange::Promote),
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
        ];
        for (_, state) in states.into_iter().filter(|(reached, _)| *reached) {
            self.counts.reached(state);
        }
        self.check_overlap()
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
