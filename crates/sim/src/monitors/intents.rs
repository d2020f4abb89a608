//! "an intent completes": at the end of the calm phase every request that was accepted and
//! committed has reached its goal, unless a later one has changed it.
//!
//! "expected membership": a request that names the membership on which it is based changes only
//! that one.

use std::collections::BTreeMap;

use d_engine_replica::ChangeMembersError;
use d_engine_storage::{ChangeError, ConfigId, JoinAs, MemberChange, Membership};

use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;

/// What a node is to be in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Goal {
    Votes,
    Learns,
    Gone,
    /// It leaves in the step by which this node votes.
    ReplacedBy(u64),
}

/// A request that was accepted.
#[derive(Debug)]
struct Accepted {
    change: MemberChange,
    /// Whether the membership had the intent already.
    is_repeated: bool,
}

/// The requests that were accepted, by the name of the membership that has the intent.
#[derive(Debug, Default)]
pub(crate) struct Intents {
    accepted: BTreeMap<ConfigId, Vec<Accepted>>,
}

impl Intents {
    /// Checks the answer to a request.
    ///
    /// # Errors
    /// The request was based on another membership than the one that it changed.
    pub(crate) fn on_answer(
        &mut self,
        node: u64,
        change: &MemberChange,
        (expected, before): (Option<ConfigId>, Option<ConfigId>),
        answer: &Result<ConfigId, ChangeMembersError>,
    ) -> Result<(), Violation> {
        let is_right = match answer {
            // Nothing had to be changed, or the membership was the expected one.
            Ok(id) => before == Some(*id) || expected.is_none() || expected == before,
            Err(ChangeMembersError::Refused(ChangeError::Stale { .. })) => expected != before,
            Err(_) => true,
        };
        if let Ok(id) = answer {
            let is_repeated = before == Some(*id);
            let accepted = Accepted { change: change.clone(), is_repeated };
            self.accepted.entry(*id).or_default().push(accepted);
        }
        match is_right {
            true => Ok(()),
            false => Rule::ExpectedMembership.broken_by(
                node,
                format_args!("node {node} at {before:?} answers {change:?}, expecting {expected:?}: {answer:?}"),
            ),
        }
    }

    fn goals(&self, memberships: &Memberships) -> BTreeMap<u64, Goal> {
        let mut goals = BTreeMap::new();
        let committed = memberships.committed();
        let birth = committed.first().map(|(_, membership)| membership);
        for (before, (_, after)) in
            birth.into_iter().chain(committed.iter().map(|it| &it.1)).zip(committed)
        {
            for accepted in self.accepted.get(&after.id()).into_iter().flatten() {
                let before = if accepted.is_repeated { after } else { before };
                apply(&mut goals, &accepted.change, before, after);
            }
        }
        goals
    }

    /// Checks the membership of the recovered cluster.
    ///
    /// # Errors
    /// A goal is not reached.
    pub(crate) fn check_end(
        &self,
        last: &Membership,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let configuration = last.configuration();
        for (node, goal) in self.goals(memberships) {
            let is_member = last.members().iter().any(|member| member.node == node);
            let votes = configuration.is_voter(node_id(node));
            let is_reached = match goal {
                Goal::Votes => votes,
                Goal::Learns => is_member && !votes,
                Goal::Gone | Goal::ReplacedBy(_) => !is_member,
            };
            if !is_reached {
                return Rule::IntentCompletes.broken_by(
                    node,
                    format_args!("node {node} was to be {goal:?} in the end: {last:?}"),
                );
            }
        }
        Ok(())
    }
}

fn apply(
    goals: &mut BTreeMap<u64, Goal>,
    change: &MemberChange,
    before: &Membership,
    after: &Membership,
) {
    match change {
        MemberChange::Add(new) => {
            let same =
                |member: &&d_engine_storage::Member| member.incarnation == Some(new.incarnation);
            let added = after.members().iter().find(same).map(|member| member.node);
            let is_new = !before.members().iter().any(|it| same(&it));
            let Some(node) = added.filter(|_| is_new) else { return };
            let invited = before.invitations().iter().find(|it| it.peer_addr == new.peer_addr);
            match new.joins_as {
                JoinAs::Voter { replaces: None } => {
                    votes(goals, node, invited.and_then(|it| it.replaces));
                }
                JoinAs::Voter { replaces } => votes(goals, node, replaces),
                JoinAs::Learner => stops_replacing(goals, node, Goal::Learns),
            }
        }
        MemberChange::Remove(node) => stops_replacing(goals, *node, Goal::Gone),
        MemberChange::Demote(node) => stops_replacing(goals, *node, Goal::Learns),
        MemberChange::Promote(node) => {
            goals.insert(*node, Goal::Votes);
        }
        MemberChange::Replace { old, new } if before.configuration().is_voter(node_id(*new)) => {
            // It votes already; another node may be about to take its place all the same.
            if !matches!(goals.get(new), Some(Goal::ReplacedBy(_))) {
                goals.insert(*new, Goal::Votes);
            }
            stops_replacing(goals, *old, Goal::Gone);
        }
        MemberChange::Replace { old, new } => votes(goals, *new, Some(*old)),
        MemberChange::UpdateAddress { .. }
        | MemberChange::Invite(_)
        | MemberChange::Withdraw(_)
        | MemberChange::Admit(_) => {}
    }
}

fn votes(goals: &mut BTreeMap<u64, Goal>, node: u64, replaces: Option<u64>) {
    stops_replacing(goals, node, Goal::Votes);
    if let Some(old) = replaces {
        goals.insert(old, Goal::ReplacedBy(node));
    }
}

/// A node that does not vote in the end takes nobody's place.
fn stops_replacing(goals: &mut BTreeMap<u64, Goal>, node: u64, goal: Goal) {
    goals.retain(|_, other| *other != Goal::ReplacedBy(node));
    goals.insert(node, goal);
}
