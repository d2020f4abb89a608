//! Data directories that join the cluster, as nodes with `join = [...]` do: they ask any node until
//! an entry that adds them is committed, and only then start, under the id that it gives them. Also
//! disks that are lost, and nodes that take their place.

use d_engine_core::{Incarnation, QuorumRisk};
use d_engine_replica::ChangeMembersError;
use d_engine_storage::{
    Admission, ChangeError, ConfigId, Invitation, JoinAs, MemberChange, NewMember,
};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::time::MS;
use crate::world::World;
use crate::world::event::SimEvent;
use crate::world::operator::{Asks, Joiner, Request};

/// A joiner that is refused for good this often gives up.
const REFUSALS_MAX: u32 = 5;
/// A joiner that asks this often and was not invited gives up.
const UNINVITED_MAX: u32 = 30;

/// The incarnation of the directory with this number, of those that join.
fn directory(number: u64) -> Incarnation {
    let mut bytes = [0xd1; 16];
    bytes.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, of)| *byte = of);
    Incarnation(bytes)
}

/// Where a directory that joins is reached.
fn address_of(number: u64) -> String {
    format!("sim:dir-{number}")
}

impl World {
    /// A new directory begins to ask. Returns whether there is space for another node.
    pub(crate) fn begin_to_join(&mut self, wish: Option<u64>, joins_as: JoinAs) -> bool {
        let members = self.profile.members;
        if members.at_birth + self.operator.directories >= members.nodes_max {
            return false;
        }
        self.operator.directories += 1;
        let number = self.operator.directories;
        let joiner = Joiner {
            directory: directory(number),
            wish,
            joins_as,
            hint: None,
            refusals: 0,
            refusals_without_invitation: 0,
        };
        let now = self.now;
        self.trace.note(now, format_args!("{joiner:?} begins to ask"));
        self.operator.joiners.insert(number, joiner);
        self.after(0, SimEvent::JoinerAsks(number));
        if self.profile.members.admission == Admission::Invited && self.member_prng.chance(700_000)
        {
            let delay = self.member_prng.tail(200 * MS);
            self.after(delay, SimEvent::JoinerIsInvited(number));
        }
        true
    }

    /// The operator announces a directory that begins to join, mostly as what it will become.
    pub(crate) fn joiner_is_invited(&mut self, number: u64) -> Result<(), Violation> {
        let Some(joiner) = self.operator.joiners.get(&number) else { return Ok(()) };
        let replaces = match joiner.joins_as {
            JoinAs::Voter { replaces } => replaces,
            JoinAs::Learner => None,
        };
        let replaces = replaces.filter(|_| self.member_prng.chance(900_000));
        let change = MemberChange::Invite(Invitation { peer_addr: address_of(number), replaces });
        let anyone = self.member_prng.between(1, self.profile.nodes);
        let (expected, risk) = (None, QuorumRisk::Refuse);
        self.ask(anyone, Request { change, expected, risk, asks: Asks::Operator })
    }

    pub(crate) fn joiner_asks(&mut self, number: u64) -> Result<(), Violation> {
        let Some(joiner) = self.operator.joiners.get(&number).cloned() else { return Ok(()) };
        if let Some((id, born)) = self.was_added(joiner.directory) {
            self.operator.joiners.remove(&number);
            self.joined(id, born, &joiner);
            return Ok(());
        }
        let pause = 100 * MS + self.member_prng.tail(300 * MS);
        self.after(pause, SimEvent::JoinerAsks(number));
        let anyone = self.member_prng.between(1, self.profile.nodes);
        let change = MemberChange::Add(NewMember {
            node: joiner.wish,
            peer_addr: address_of(number),
            client_addr: format!("sim-client:dir-{number}"),
            incarnation: joiner.directory,
            joins_as: joiner.joins_as,
        });
        // If this node does not answer, another one is asked next.
        let hint = self.operator.joiners.get_mut(&number).and_then(|joiner| joiner.hint.take());
        let (expected, risk) = (None, QuorumRisk::Refuse);
        let request = Request { change, expected, risk, asks: Asks::Joiner(number) };
        self.ask(hint.unwrap_or(anyone), request)
    }

    /// The id that a committed membership has given to a directory, and that membership.
    fn was_added(&self, directory: Incarnation) -> Option<(u64, ConfigId)> {
        self.monitors.memberships.committed().iter().find_map(|(_, membership)| {
            let mut members = membership.members().iter();
            let member = members.find(|member| member.incarnation == Some(directory))?;
            Some((member.node, membership.id()))
        })
    }

    fn joined(&mut self, id: u64, born: ConfigId, joiner: &Joiner) {
        let now = self.now;
        self.trace.note(now, format_args!("{:?} is node {id} since {born}", joiner.directory));
        if joiner.wish.is_none() {
            self.counts.reached(Sometimes::IdGivenByLeader);
        }
        if self.monitors.invitations.used > 0 {
            self.counts.reached(Sometimes::JoinedByInvitation);
        }
        self.profile.nodes = self.profile.nodes.max(id);
        let node = self.node(id);
        (node.is_lost, node.incarnation, node.born) = (false, joiner.directory, Some(born));
        let delay = self.member_prng.below(100 * MS);
        self.after(delay, SimEvent::Start(id));
    }

    /// A joiner got this answer from `node`.
    pub(crate) fn joiner_answered(
        &mut self,
        number: u64,
        answer: &Result<ConfigId, ChangeMembersError>,
    ) {
        let Some(joiner) = self.operator.joiners.get_mut(&number) else { return };
        let Err(error) = answer else { return };
        joiner.hint = match error {
            ChangeMembersError::NotLeader { leader: Some(leader) } => Some(leader.node.get()),
            _ => None,
        };
        let ChangeMembersError::Refused(refusal) = error else { return };
        match (refusal, joiner.joins_as, joiner.wish) {
            (ChangeError::Busy(_), ..) => return,
            (ChangeError::NotInvited { .. }, ..) => {
                self.counts.reached(Sometimes::NotInvited);
                joiner.refusals_without_invitation += 1;
                if joiner.refusals_without_invitation >= UNINVITED_MAX {
                    self.operator.joiners.remove(&number);
                } else if self.member_prng.chance(300_000) {
                    self.after(0, SimEvent::JoinerIsInvited(number));
                }
                return;
            }
            (ChangeError::InvitedOtherwise { invited, .. }, ..) => joiner.joins_as = *invited,
            (ChangeError::IdTaken(_) | ChangeError::MemberRemoved(_), _, Some(_)) => {
                joiner.wish = None;
            }
            (
                ChangeError::NotReplaceable(_)
                | ChangeError::BeingReplaced { .. }
                | ChangeError::UnknownMember(_)
                | ChangeError::MemberRemoved(_),
                JoinAs::Voter { replaces: Some(_) },
                _,
            ) => joiner.joins_as = JoinAs::Voter { replaces: None },
            _ => {}
        }
        joiner.refusals += 1;
        if joiner.refusals >= REFUSALS_MAX {
            self.operator.joiners.remove(&number);
        }
    }

    /// Destroys the disk of a voter for good, if the others can do without it, and lets a new node
    /// take its place.
    pub(crate) fn lose_some_disk(&mut self) -> Result<(), Violation> {
        let Some(node) = self.draw_dispensable() else { return Ok(()) };
        let replaces = JoinAs::Voter { replaces: Some(node) };
        if !self.begin_to_join(None, replaces) {
            return Ok(());
        }
        let now = self.now;
        self.trace.note(now, format_args!("the disk of node {node} is lost"));
        self.counts.fault(Fault::DiskLost);
        self.crash(node);
        self.node(node).is_lost = true;
        self.operator.lost = Some(node);
        self.after(500 * MS, SimEvent::LostNodeCare);
        Ok(())
    }

    /// A voter without which all others have a quorum, whatever they know: all members run, and the
    /// same committed membership without intents is in force at each.
    fn draw_dispensable(&mut self) -> Option<u64> {
        let (_, last) = self.monitors.memberships.committed().last()?.clone();
        let agrees = |node: u64| {
            self.running(node).is_some_and(|it| {
                it.replica.membership().id() == last.id()
                    && it.replica.core().configuration_entry().1
            })
        };
        let is_calm = !last.has_intents()
            && !last.is_joint()
            && last.members().iter().all(|member| agrees(member.node));
        let voters: Vec<u64> =
            last.configuration().voters().iter().map(|voter| voter.get()).collect();
        if !is_calm || voters.len() < 3 || self.operator.lost.is_some() {
            return None;
        }
        self.member_prng.pick(&voters).copied()
    }

    /// Until a lost node is no member any more, the operator sees to it that it leaves.
    pub(crate) fn care_for_lost_node(&mut self) -> Result<(), Violation> {
        let Some(lost) = self.operator.lost else { return Ok(()) };
        let Some((_, last)) = self.monitors.memberships.committed().last().cloned() else {
            return Ok(());
        };
        if last.has_removed(lost) {
            self.operator.lost = None;
            self.counts.reached(Sometimes::LostNodeReplaced);
            return Ok(());
        }
        self.after(500 * MS, SimEvent::LostNodeCare);
        let waits = JoinAs::Voter { replaces: Some(lost) };
        if self.operator.joiners.values().any(|joiner| joiner.joins_as == waits)
            || last.has_intents()
        {
            return Ok(());
        }
        let Some(leader) = self.leader() else { return Ok(()) };
        let (change, risk) = (MemberChange::Remove(lost), QuorumRisk::Refuse);
        self.ask(leader, Request { change, expected: None, risk, asks: Asks::Operator })
    }
}
