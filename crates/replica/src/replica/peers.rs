//! Messages of other nodes, and a leader whose log contradicts this node's.

use d_engine_core::{Input, NodeId, Now};
use d_engine_storage::Incarnation;

use super::{Payload, Replica};
use crate::event::Jobs;
use crate::{PeerMessage, convert};

impl Replica {
    /// A connection to the node was opened; what was sent on an earlier one may be lost.
    pub(super) fn on_peer_up(
        &mut self,
        now: Now,
        node: NodeId,
        incarnation: Incarnation,
        jobs: &mut Jobs,
    ) {
        // Peers that are not members come and go.
        if self.members.peer_addr(node).is_some() {
            self.incarnations.insert(node, incarnation);
        }
        self.step(now, Input::PeerLost(node), Payload::None, jobs);
    }

    /// Somebody else says where the node is. It is dialled there, and says itself where it is.
    pub(super) fn on_found_at(&mut self, node: NodeId, peer: &str, jobs: &mut Jobs) {
        jobs.status_changed |= self.moved.found_at(self.members.logged(), node, peer);
    }

    /// A node names its addresses.
    pub(super) fn on_advertised(
        &mut self,
        node: NodeId,
        peer: &str,
        client: &str,
        jobs: &mut Jobs,
    ) {
        let logged = self.members.logged();
        jobs.status_changed |= self.moved.advertised(logged, node, peer, client);
    }

    /// Records that the leader's log contradicts entries committed here, so some node has lost
    /// committed entries. Logged once; it stays in the alarms, because an operator must act.
    pub(super) fn note_contradiction(&mut self) {
        if self.contradiction.is_some() {
            return;
        }
        let text = format!(
            "the log of the leader of term {} contradicts entries that are committed on this node \
             (up to {}): a node has lost a part of its log; stop writing and compare the nodes' \
             data directories",
            self.core.term(),
            self.core.log().committed
        );
        tracing::error!(node = %self.node, "{text}");
        self.contradiction = Some(text);
    }

    pub(super) fn on_peer(
        &mut self,
        now: Now,
        from: NodeId,
        message: PeerMessage,
        jobs: &mut Jobs,
    ) {
        let (message, payload) = match convert::to_core(message) {
            Ok((message, Some(entries))) => (message, Payload::Received(entries)),
            Ok((message, None)) => (message, Payload::None),
            Err(error) => {
                tracing::warn!(
                    node = %self.node, %from, %error,
                    "a peer sent a membership that cannot be decoded; the message is dropped"
                );
                return;
            }
        };
        self.step(now, Input::Message { from, message }, payload, jobs);
    }
}
