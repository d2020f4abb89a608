//! "ids once": an id belongs to one data directory for ever, and a directory to one id; a node that
//! was removed never comes back under its id.
//!
//! "no node leaves unasked": a member leaves, and a voter stops voting, only if somebody asked for
//! that.

use std::collections::{BTreeMap, BTreeSet};

use d_engine_core::Incarnation;
use d_engine_storage::{ConfigId, JoinAs, MemberChange, Membership};

use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;

/// What the committed memberships say of the nodes.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    directories: BTreeMap<u64, Incarnation>,
    ids: BTreeMap<Incarnation, u64>,
    gone: BTreeSet<u64>,
    /// Nodes that somebody asked to remove or to replace, and those that were to stop voting.
    to_leave: BTreeSet<u64>,
    to_learn: BTreeSet<u64>,
    /// How many committed memberships were checked.
    checked: usize,
}

impl Ids {
    /// Somebody asks for a change.
    pub(crate) fn on_request(&mut self, change: &MemberChange) {
        match change {
            MemberChange::Remove(node) | MemberChange::Replace { old: node, .. } => {
                self.to_leave.insert(*node);
            }
            MemberChange::Demote(node) => {
                self.to_learn.insert(*node);
            }
            MemberChange::Add(new) => {
                if let JoinAs::Voter { replaces: Some(node) } = new.joins_as {
                    self.to_leave.insert(node);
                }
            }
            MemberChange::Invite(invitation) => self.to_leave.extend(invitation.replaces),
            MemberChange::Promote(_)
            | MemberChange::UpdateAddress { .. }
            | MemberChange::Withdraw(_)
            | MemberChange::Admit(_) => {}
        }
    }

    /// Checks the memberships that were committed since the last call.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check(&mut self, memberships: &Memberships) -> Result<(), Violation> {
        let all = memberships.committed();
        let from = self.checked.saturating_sub(1);
        if self.checked == all.len() {
            return Ok(());
        }
        self.checked = all.len();
        for pair in all.get(from..).unwrap_or_default().windows(2) {
            let [(_, before), (_, after)] = pair else { continue };
            self.check_departures(before, after)?;
            self.check_ids(after)?;
        }
        Ok(())
    }

    /// Checks a node that may have found out that it was removed, and by which membership.
    ///
    /// # Errors
    /// No committed membership has removed it.
    pub(crate) fn check_removed(
        &self,
        node: u64,
        removed: Option<ConfigId>,
    ) -> Result<(), Violation> {
        match removed {
            Some(by) if !self.gone.contains(&node) => Rule::NoNodeLeavesUnasked
                .broken_by(node, format_args!("node {node} believes to be removed by {by}")),
            _ => Ok(()),
        }
    }

    fn check_departures(
        &mut self,
        before: &Membership,
        after: &Membership,
    ) -> Result<(), Violation> {
        let votes_after = after.configuration();
        let votes_before = before.configuration();
        for member in before.members() {
            let node = member.node;
            let is_member = after.members().iter().any(|it| it.node == node);
            if !is_member {
                self.gone.insert(node);
            }
            // A joint configuration may be left for its outgoing voters.
            let voted = match votes_before.is_joint() {
                true => votes_before.outgoing().contains(&node_id(node)),
                false => votes_before.is_voter(node_id(node)),
            };
            let stops_voting = voted && !votes_after.is_voter(node_id(node));
            let is_asked = self.to_leave.contains(&node)
                || (is_member && (!stops_voting || self.to_learn.contains(&node)));
            if !is_asked {
                return Rule::NoNodeLeavesUnasked.broken_by(
                    node,
                    format_args!("nobody asked for the change of node {node} in {after:?}"),
                );
            }
        }
        Ok(())
    }

    fn check_ids(&mut self, after: &Membership) -> Result<(), Violation> {
        for member in after.members() {
            let node = member.node;
            let mut is_right = !self.gone.contains(&node) && node <= after.last_node();
            if let Some(directory) = member.incarnation {
                is_right &= *self.directories.entry(node).or_insert(directory) == directory;
                is_right &= *self.ids.entry(directory).or_insert(node) == node;
            }
            if !is_right {
                return Rule::IdsOnce.broken_by(
                    node,
                    format_args!(
                        "node {node} is a member again, or with another directory than {:?}: \
                         {after:?}",
                        self.directories.get(&node)
                    ),
                );
            }
        }
        Ok(())
    }
}
