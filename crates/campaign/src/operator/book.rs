//! The members as the operator wants them.

use std::collections::{BTreeMap, BTreeSet};

use d_engine_client::{MemberRole, NodeStatus};

use crate::site::Site;

/// A member.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) id: u64,
    pub(super) is_voter: bool,
}

/// The members by the machines on which they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Book(pub(super) BTreeMap<u64, Entry>);

/// A member as a node lists it: its id, its role, and its addresses.
type Row = (u64, MemberRole, String, Option<String>);

impl Book {
    /// Returns the machines of all voters, or of all learners.
    pub(super) fn with_role(&self, is_voter: bool) -> Vec<u64> {
        let members = self.0.iter().filter(|(_, entry)| entry.is_voter == is_voter);
        members.map(|(machine, _)| *machine).collect()
    }

    /// Whether a majority of the voters is left without these machines.
    pub(super) fn has_majority_without(&self, down: &BTreeSet<u64>) -> bool {
        let voters = self.with_role(true);
        voters.iter().filter(|machine| !down.contains(machine)).count() > voters.len() / 2
    }

    fn rows(&self, site: &Site) -> Vec<Row> {
        let row = |(machine, entry): (&u64, &Entry)| {
            let node = site.nodes.iter().find(|node| node.machine == *machine)?;
            let role = if entry.is_voter { MemberRole::Voter } else { MemberRole::Learner };
            Some((entry.id, role, node.peer_addr(), Some(node.client_addr())))
        };
        let mut rows: Vec<Row> = self.0.iter().filter_map(row).collect();
        rows.sort_by_key(|(id, ..)| *id);
        rows
    }

    /// Whether a node lists exactly these members.
    pub(super) fn is_shown_by(&self, status: &NodeStatus, site: &Site) -> bool {
        shown(status) == self.rows(site)
    }

    /// Describes the first node that does not list exactly these members, or another configuration
    /// than the leader.
    pub(super) fn differs(&self, site: &Site) -> Option<String> {
        let Some(leader) = site.view.said_by_leader() else { return Some("no leader".to_owned()) };
        self.0.iter().find_map(|(machine, entry)| {
            let Some(said) = site.view.said(*machine) else {
                return Some(format!("machine {machine}: no status"));
            };
            if said.node != entry.id {
                return Some(format!("node {} instead of {} answers", said.node, entry.id));
            }
            let is_right = said.config == leader.config && self.is_shown_by(&said, site);
            (!is_right).then(|| {
                format!(
                    "node {} lists {} {:?}, but the operator wants {:?}",
                    said.node,
                    said.config,
                    shown(&said),
                    self.rows(site)
                )
            })
        })
    }
}

fn shown(status: &NodeStatus) -> Vec<Row> {
    let members = status.members.iter();
    members.map(|it| (it.node, it.role, it.peer_addr.clone(), it.client_addr.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_is_one_of_the_voters_alone() {
        let entry = |id, is_voter| Entry { id, is_voter };
        let members = [(1, entry(1, true)), (2, entry(7, true)), (3, entry(8, true))];
        let mut book = Book(members.into());
        book.0.insert(4, entry(9, false));
        assert!(book.has_majority_without(&BTreeSet::from([2, 4])));
        assert!(!book.has_majority_without(&BTreeSet::from([2, 3])));
        book.0.insert(4, entry(9, true));
        assert!(!book.has_majority_without(&BTreeSet::from([2, 4])));
        assert_eq!((book.with_role(true), book.with_role(false)), (vec![1, 2, 3, 4], vec![]));
    }
}
