//! Members that are not reached at the address in the log any more. A node that is not reached
//! there is dialled at the address that it named itself; once it is reached there, the leader
//! writes that address into the log (Kafka's KIP-1347 has the case that all addresses change at
//! once).

use std::collections::BTreeMap;

use d_engine_core::NodeId;
use d_engine_storage::{MemberChange, Membership};

/// The newest addresses of members that have moved.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    nodes: BTreeMap<NodeId, Addresses>,
}

/// Where a node says that it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Addresses {
    peer: String,
    client: String,
    /// The address in the log at that time.
    instead_of: String,
    /// A connection to it was made there, and its handshake named the right directory.
    is_reached: bool,
}

impl Moved {
    /// A member of `logged` says where it is reached. Returns whether that is news.
    pub(crate) fn advertised(
        &mut self,
        logged: &Membership,
        node: NodeId,
        peer: &str,
        client: &str,
    ) -> bool {
        let Some(member) = logged.member(node).filter(|_| !peer.is_empty()) else { return false };
        if member.peer_addr == peer {
            return self.nodes.remove(&node).is_some();
        }
        let said = Addresses {
            peer: peer.to_owned(),
            client: client.to_owned(),
            instead_of: member.peer_addr.clone(),
            is_reached: false,
        };
        let known = self.nodes.get(&node);
        let is_heard_of = known.is_some_and(|known| known.peer == peer && client.is_empty());
        if is_heard_of
            || known.is_some_and(|known| Addresses { is_reached: false, ..known.clone() } == said)
        {
            return false;
        }
        self.nodes.insert(node, said);
        true
    }

    /// A connection to the node was made at this address.
    pub(crate) fn reached(&mut self, node: NodeId, peer: &str) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.is_reached |= known.peer == peer;
        }
    }

    /// The address at which to dial a node that is not reached at the one in the log.
    pub(crate) fn peer_addr(&self, node: NodeId) -> Option<&str> {
        self.nodes.get(&node).map(|known| known.peer.as_str())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Forgets nodes whose address in the log has changed since, and nodes that are no members.
    pub(crate) fn forget_known(&mut self, logged: &Membership) {
        self.nodes.retain(|node, known| {
            logged.member(*node).is_some_and(|member| member.peer_addr == known.instead_of)
        });
    }

    /// The memberships with one address updated each, for every node that was reached at its new
    /// address and whose new addresses break no rule.
    pub(crate) fn updates<'a>(
        &'a self,
        logged: &'a Membership,
    ) -> impl Iterator<Item = Membership> + 'a {
        let reached = self.nodes.iter().filter(|(_, known)| known.is_reached);
        reached.filter_map(|(node, known)| {
            let change = MemberChange::UpdateAddress {
                node: node.get(),
                peer_addr: Some(known.peer.clone()),
                client_addr: Some(known.client.clone()).filter(|address| !address.is_empty()),
            };
            logged.edited(&change).ok().flatten()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use d_engine_storage::{Member, MemberRole};

    use super::*;

    fn n(id: u64) -> NodeId {
        NodeId::new(id).unwrap()
    }

    fn three() -> Membership {
        let member = |id: u64| Member {
            node: id,
            peer_addr: format!("peer:{id}"),
            client_addr: format!("client:{id}"),
            role: MemberRole::Voter,
            incarnation: None,
        };
        Membership::new((1..=3).map(member)).unwrap()
    }

    #[test]
    fn an_address_is_written_once_its_node_was_reached_there() {
        let (mut moved, logged) = (Moved::default(), three());
        assert!(!moved.advertised(&logged, n(2), "peer:2", "client:2"), "it has not moved");
        assert!(!moved.advertised(&logged, n(9), "peer:9", ""), "it is no member");
        assert!(!moved.advertised(&logged, n(2), "", ""), "it does not say");
        assert!(moved.advertised(&logged, n(2), "new:2", "client:2"));
        assert!(!moved.advertised(&logged, n(2), "new:2", "client:2"), "it is known");
        assert_eq!(moved.peer_addr(n(2)), Some("new:2"));
        assert_eq!(moved.updates(&logged).count(), 0);
        moved.reached(n(2), "peer:2");
        assert_eq!(moved.updates(&logged).count(), 0, "that is the old address");
        moved.reached(n(2), "new:2");
        let updated = moved.updates(&logged).next().unwrap();
        assert_eq!(updated.member(n(2)).unwrap().peer_addr, "new:2");
        moved.forget_known(&updated);
        assert!(moved.is_empty());
    }

    /// An operator knows better than the node's old handshake.
    #[test]
    fn a_new_address_in_the_log_ends_what_the_node_said_before() {
        let (mut moved, logged) = (Moved::default(), three());
        moved.advertised(&logged, n(3), "new:3", "client:3");
        let change = MemberChange::UpdateAddress {
            node: 3,
            peer_addr: Some("newer:3".to_owned()),
            client_addr: None,
        };
        moved.forget_known(&logged.edited(&change).unwrap().unwrap());
        assert!(moved.is_empty());
        moved.advertised(&logged, n(3), "new:3", "client:3");
        assert!(moved.advertised(&logged, n(3), "peer:3", "client:3"), "it has moved back");
        assert!(moved.is_empty());
    }

    /// Two nodes on one machine that change places: one of them first.
    #[test]
    fn an_address_that_another_member_has_waits() {
        let (mut moved, used) = (Moved::default(), three());
        moved.advertised(&used, n(2), "peer:3", "client:2");
        moved.reached(n(2), "peer:3");
        assert_eq!(moved.updates(&used).count(), 0);
        moved.advertised(&used, n(3), "new:3", "client:3");
        moved.reached(n(3), "new:3");
        let first = moved.updates(&used).next().unwrap();
        moved.forget_known(&first);
        let second = moved.updates(&first).next().unwrap();
        assert_eq!(second.member(n(2)).unwrap().peer_addr, "peer:3");
    }
}
