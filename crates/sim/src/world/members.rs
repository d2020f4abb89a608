//! The operator who changes the members of the cluster while everything else goes wrong.

use d_engine_core::QuorumRisk;
use d_engine_replica::{ChangeMembers, Event};
use d_engine_storage::{JoinAs, MemberChange, MemberRole, Membership, NewMember};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::world::World;
use crate::world::event::Chain;
use crate::world::node::incarnation_of;

impl World {
    /// The next request: mostly at a leader, on the basis of the membership that it knows.
    pub(crate) fn change_members(&mut self) -> Result<(), Violation> {
        if self.healed {
            return Ok(());
        }
        self.plan(self.profile.members.change_every, Chain::MembersChange);
        let leader = (1..=self.profile.nodes).find(|node| self.leads(*node));
        let anyone = self.member_prng.between(1, self.profile.nodes);
        let node = leader.filter(|_| self.member_prng.chance(900_000)).unwrap_or(anyone);
        let Some(running) = self.node(node).running.as_ref() else { return Ok(()) };
        let membership = running.replica.membership().clone();
        let Some(change) = self.draw_change(node, &membership) else { return Ok(()) };
        let risk = match self.member_prng.chance(100_000) {
            true => QuorumRisk::Accept,
            false => QuorumRisk::Refuse,
        };
        let now = self.now;
        self.trace.note(now, format_args!("node {node} is asked to {change:?}, {risk:?}"));
        self.counts.fault(Fault::MembersChange);
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
    pub(crate) fn note_membership(&mut self, id: u64, before: &Membership) {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return;
        };
        let (now, core) = (running.replica.membership(), running.replica.core());
        if now.id() == before.id() {
            return;
        }
        let leads = core.role() == d_engine_core::RoleKind::Leader;
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
    }
}
