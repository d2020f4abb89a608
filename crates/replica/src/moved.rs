//! Members that are not reached at the address in the log any more. A node that is not reached
//! there is dialled at the address that it named itself; once it is reached there, the leader
//! writes that address into the log (Kafka's KIP-1347 has the case that all addresses change at
//! once).

use std::collections::BTreeMap;

use d_engine_core::NodeId;
use d_engine_storage::{MemberChange, Membership, canonical_address};

/// The newest addresses of members that have moved.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    nodes: BTreeMap<NodeId, Addresses>,
    /// The address for clients that each member named last. If the log has another one, an operator
    /// may have written it, so only a change of the node's own word counts.
    clients: BTreeMap<NodeId, String>,
}

/// Where a node is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Addresses {
    peer: String,
    client: String,
    source: Source,
    /// The addresses in the log at that time, for nodes and for clients.
    instead_of: (String, String),
    /// A connection to it was made there, and its handshake named the right directory.
    is_reached: bool,
}

/// Who says where a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The node itself.
    Itself,
    /// This node has found it there. Others may not reach it there.
    Found,
}

impl Moved {
    /// This node starts, and says where it is reached.
    pub(crate) fn starts(&mut self, logged: &Membership, own: NodeId, peer: &str, client: &str) {
        if let Some(member) = logged.member(own) {
            self.clients.insert(own, member.client_addr.clone());
        }
        self.advertised(logged, own, peer, client);
        self.reached(own, peer);
    }

    /// A member of `logged` says where it is reached. Returns whether that is news.
    pub(crate) fn advertised(
        &mut self,
        logged: &Membership,
        node: NodeId,
        peer: &str,
        client: &str,
    ) -> bool {
        let Some(member) = logged.member(node).filter(|_| !peer.is_empty()) else { return false };
        let (peer, client) = (&*canonical_address(peer), &*canonical_address(client));
        let said_before = self.clients.insert(node, client.to_owned());
        let has_moved = member.peer_addr != peer;
        let is_new_word = said_before.is_some_and(|before| before != client);
        let clients_move = is_new_word && !client.is_empty() && member.client_addr != client;
        if !has_moved && !clients_move {
            let is_known = self.nodes.get(&node).is_some_and(|known| known.peer == peer);
            return !is_known && self.nodes.remove(&node).is_some();
        }
        let known = self.nodes.get(&node);
        // It may have been found there before it said so.
        let was_reached = known.is_some_and(|known| known.peer == peer && known.is_reached);
        let said = Addresses {
            peer: peer.to_owned(),
            client: client.to_owned(),
            source: Source::Itself,
            instead_of: (member.peer_addr.clone(), member.client_addr.clone()),
            is_reached: !has_moved || was_reached,
        };
        let is_known = known == Some(&said);
        if !is_known {
            self.nodes.insert(node, said);
        }
        !is_known
    }

    /// A member of `logged` was found at this address. Returns whether that is news.
    pub(crate) fn found_at(&mut self, logged: &Membership, node: NodeId, peer: &str) -> bool {
        let Some(member) = logged.member(node) else { return false };
        let peer = &*canonical_address(peer);
        let known = self.nodes.get(&node);
        let is_said = known.is_some_and(|known| known.source == Source::Itself);
        if member.peer_addr == peer || is_said || known.is_some_and(|known| known.peer == peer) {
            return false;
        }
        let found = Addresses {
            peer: peer.to_owned(),
            client: String::new(),
            source: Source::Found,
            instead_of: (member.peer_addr.clone(), member.client_addr.clone()),
            is_reached: false,
        };
        self.nodes.insert(node, found);
        true
    }

    /// A connection to the node was made at this address.
    pub(crate) fn reached(&mut self, node: NodeId, peer: &str) {
        if let Some(known) = self.nodes.get_mut(&node) {
            known.is_reached |= known.peer == canonical_address(peer);
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
            logged.member(*node).is_some_and(|member| {
                (&member.peer_addr, &member.client_addr)
                    == (&known.instead_of.0, &known.instead_of.1)
            })
        });
        self.clients.retain(|node, _| logged.member(*node).is_some());
    }

    /// The memberships with one address updated each, for every node that was reached at its new
    /// address and whose new addresses break no rule.
    pub(crate) fn updates<'a>(
        &'a self,
        logged: &'a Membership,
    ) -> impl Iterator<Item = Membership> + 'a {
        let reached = self
            .nodes
            .iter()
            .filter(|(_, known)| known.is_reached && known.source == Source::Itself);
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

    /// A seed may be spelled in a way that only this node understands.
    #[test]
    fn an_address_at_which_a_node_was_found_is_dialled_and_not_written() {
        let (mut moved, logged) = (Moved::default(), three());
        assert!(!moved.found_at(&logged, n(2), "peer:2"));
        assert!(moved.found_at(&logged, n(2), "127.0.0.1:2"));
        assert!(!moved.found_at(&logged, n(2), "127.0.0.1:2"));
        moved.reached(n(2), "127.0.0.1:2");
        assert_eq!(moved.peer_addr(n(2)), Some("127.0.0.1:2"));
        assert_eq!(moved.updates(&logged).count(), 0);
        assert!(moved.advertised(&logged, n(2), "127.0.0.1:2", "client:2"), "it says so itself");
        assert_eq!(moved.updates(&logged).count(), 1, "it was reached there");
        assert!(moved.advertised(&logged, n(2), "new:2", "client:2"), "and that it has moved on");
        assert_eq!(moved.updates(&logged).count(), 0);
        assert!(!moved.found_at(&logged, n(2), "127.0.0.1:2"));
        moved.reached(n(2), "new:2");
        assert_eq!(moved.updates(&logged).count(), 1);
    }

    #[test]
    fn a_new_address_for_clients_counts_if_the_node_has_said_another_one_before() {
        let (mut moved, logged) = (Moved::default(), three());
        assert!(!moved.advertised(&logged, n(3), "peer:3", "other:3"), "an operator may have");
        assert!(moved.advertised(&logged, n(3), "peer:3", "new:3"));
        let updated = moved.updates(&logged).next().unwrap();
        assert_eq!(updated.member(n(3)).unwrap().client_addr, "new:3");
        moved.forget_known(&updated);
        assert!(moved.is_empty());
        moved.starts(&logged, n(1), "peer:1", "new:1");
        let updated = moved.updates(&logged).next().unwrap();
        assert_eq!(updated.member(n(1)).unwrap().client_addr, "new:1", "a node's own start");
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
