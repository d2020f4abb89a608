//! Current refusals between this node and its peers: for `status`, and to keep a new node from
//! founding a second cluster.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_core::NodeId;
use d_engine_locks::Unpoisoned;

use crate::transport::{PeerRefusal, RefusalKind};

/// A refusal is over if it is not repeated within this time; a peer is dialled every second.
const OVER_AFTER: Duration = Duration::from_secs(10);
/// The most refusals that are remembered in each direction; a cluster has far fewer members.
const REMEMBERED: usize = 64;

/// Recent refusals, by node and direction.
#[derive(Default)]
pub(crate) struct PeerRefusals {
    recent: Mutex<BTreeMap<(NodeId, bool), (Instant, PeerRefusal)>>,
}

impl PeerRefusals {
    // No caller panics while it holds the lock.
    fn recent(&self) -> MutexGuard<'_, BTreeMap<(NodeId, bool), (Instant, PeerRefusal)>> {
        self.recent.lock().unpoisoned()
    }

    pub(crate) fn note(&self, refusal: PeerRefusal) {
        self.note_at(Instant::now(), refusal);
    }

    fn note_at(&self, now: Instant, refusal: PeerRefusal) {
        let mut recent = self.recent();
        recent.retain(|_, (at, _)| now.saturating_duration_since(*at) < OVER_AFTER);
        let key = (refusal.node, refusal.by_peer);
        // Each direction has its own bound: strangers that this node refuses must not displace a
        // refusal of this node.
        let same_direction =
            recent.keys().filter(|(_, by_peer)| *by_peer == refusal.by_peer).count();
        if same_direction < REMEMBERED || recent.contains_key(&key) {
            recent.insert(key, (now, refusal));
        }
    }

    /// Removes the refusal by `node`, which has accepted a connection.
    pub(crate) fn welcomed_by(&self, node: NodeId) {
        self.recent().remove(&(node, true));
    }

    /// Returns the current refusals as texts for people.
    pub(crate) fn texts(&self) -> Vec<String> {
        self.texts_at(Instant::now())
    }

    fn texts_at(&self, now: Instant) -> Vec<String> {
        let recent = self.recent();
        let current =
            recent.values().filter(|(at, _)| now.saturating_duration_since(*at) < OVER_AFTER);
        let told = current.map(|(_, refusal)| match refusal.by_peer {
            true => format!("node {} refuses this node: {}", refusal.node, refusal.text),
            false => format!("node {} is refused: {}", refusal.node, refusal.text),
        });
        told.collect()
    }

    /// Returns alarms about a cluster that was continued by force, seen from either cluster.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let recent = self.recent();
        let now = Instant::now();
        let superseded = recent.values().filter(|(at, refusal)| {
            refusal.kind == RefusalKind::Superseded
                && now.saturating_duration_since(*at) < OVER_AFTER
        });
        let texts = superseded.map(|(_, refusal)| match refusal.by_peer {
            true => format!(
                "an operator has continued this cluster as another one (`recover`), to which node \
                 {} belongs; both may serve clients: stop one of them. If that is the other one, \
                 restart each node of this cluster with --ignore-superseded now: without it they \
                 elect no next leader",
                refusal.node
            ),
            false => format!(
                "node {} still runs on a directory of the cluster that this one continues; stop \
                 it, empty its directory, and let it join this cluster",
                refusal.node
            ),
        });
        texts.collect()
    }

    /// Whether some peer refuses this node because it does not belong to the peer's cluster in its
    /// current form.
    pub(crate) fn is_no_member(&self) -> bool {
        let now = Instant::now();
        self.recent().values().any(|(at, refusal)| {
            let says_so = matches!(
                refusal.kind,
                RefusalKind::UnknownNode
                    | RefusalKind::OtherMembers
                    | RefusalKind::OtherIncarnation
                    | RefusalKind::Removed
            );
            refusal.by_peer && says_so && now.saturating_duration_since(*at) < OVER_AFTER
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(node: u64, by_peer: bool, kind: RefusalKind) -> PeerRefusal {
        PeerRefusal { node: NodeId::new(node).unwrap(), by_peer, kind, text: "because".to_owned() }
    }

    #[test]
    fn a_refusal_is_told_until_the_peer_welcomes_the_node_or_it_is_not_repeated() {
        let (refusals, now) = (PeerRefusals::default(), Instant::now());
        refusals.note_at(now, refusal(2, true, RefusalKind::UnknownNode));
        refusals.note_at(now, refusal(3, false, RefusalKind::OtherCluster));
        let told = ["node 2 refuses this node: because", "node 3 is refused: because"];
        assert_eq!(refusals.texts_at(now), told);
        assert!(refusals.is_no_member());
        refusals.welcomed_by(NodeId::new(2).unwrap());
        assert_eq!(refusals.texts_at(now), told[1..]);
        assert!(!refusals.is_no_member());
        assert!(refusals.texts_at(now + OVER_AFTER).is_empty());
    }

    #[test]
    fn strangers_cannot_fill_the_memory() {
        let refusals = PeerRefusals::default();
        for node in 1..1_000 {
            refusals.note(refusal(node, false, RefusalKind::UnknownNode));
        }
        assert_eq!(refusals.texts().len(), REMEMBERED);
        assert!(!refusals.is_no_member(), "this node refused these");
        refusals.note(refusal(1, true, RefusalKind::UnknownNode));
        assert!(refusals.is_no_member(), "a refusal of this node is remembered all the same");
        assert!(refusals.texts().contains(&"node 1 refuses this node: because".to_owned()));
    }
}
