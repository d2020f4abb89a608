//! Slots of accepted connections: a bounded number for connections in their handshake, and one for
//! each peer's connection.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use d_engine_core::NodeId;
use d_engine_locks::Unpoisoned;
use tokio::sync::oneshot;

use super::Shared;

/// Connections in their handshake, the oldest first.
#[derive(Default)]
pub(super) struct Handshakes {
    state: Mutex<Unfinished>,
}

#[derive(Default)]
struct Unfinished {
    begun: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    number: u64,
    host: IpAddr,
    /// Dropping it takes the slot away from the connection.
    _keeps: oneshot::Sender<()>,
}

/// The slot of one connection, until it is dropped.
pub(super) struct HandshakePlace {
    handshakes: Arc<Handshakes>,
    number: u64,
    lost: oneshot::Receiver<()>,
}

impl Handshakes {
    // No caller panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Unfinished> {
        self.state.lock().unpoisoned()
    }

    /// Returns a slot for a connection from `host`. If none is free, the oldest connection loses
    /// its slot, so that a silent one cannot keep later ones out. Hosts of members lose theirs
    /// last.
    pub(super) fn begin(self: &Arc<Self>, host: IpAddr, shared: &Shared) -> HandshakePlace {
        let known: Vec<IpAddr> = {
            let hosts = shared.known_hosts.lock().unpoisoned();
            hosts.values().copied().collect()
        };
        self.begin_among(host, shared.settings.max_handshakes, &known)
    }

    fn begin_among(self: &Arc<Self>, host: IpAddr, max: usize, known: &[IpAddr]) -> HandshakePlace {
        let mut state = self.lock();
        while state.waiting.len() >= max.max(1) {
            let stranger = state.waiting.iter().position(|one| !known.contains(&one.host));
            state.waiting.remove(stranger.unwrap_or(0));
        }
        state.begun += 1;
        let (number, (keeps, lost)) = (state.begun, oneshot::channel());
        state.waiting.push_back(Waiting { number, host, _keeps: keeps });
        HandshakePlace { handshakes: self.clone(), number, lost }
    }
}

impl HandshakePlace {
    /// Resolves when a newer connection takes the slot.
    pub(super) async fn is_lost(&mut self) {
        // Nothing is ever sent; the sender is dropped.
        (&mut self.lost).await.unwrap_or(());
    }
}

impl Drop for HandshakePlace {
    fn drop(&mut self) {
        self.handshakes.lock().waiting.retain(|one| one.number != self.number);
    }
}

/// The most replaced starts that are remembered for a node.
const REPLACED_MAX: usize = 8;

/// The connection of each peer. A newer connection replaces the older one, because the peer has
/// given that one up; the older one ends when its sender here is dropped.
#[derive(Default)]
pub(super) struct Connected {
    peers: Mutex<BTreeMap<NodeId, Peer>>,
}

struct Peer {
    /// The start of the peer, from its handshake.
    start: u64,
    ends: oneshot::Sender<()>,
    /// Earlier starts that were replaced. A restarted process never returns with an earlier start;
    /// a process that runs beside another one with the same directory does.
    replaced: VecDeque<u64>,
}

impl Connected {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Peer>> {
        self.peers.lock().unpoisoned()
    }

    /// Whether the open connection belongs to a later start of this peer, which has replaced
    /// `start`.
    pub(super) fn is_replaced(&self, node: NodeId, start: u64) -> bool {
        let peers = self.lock();
        peers.get(&node).is_some_and(|peer| {
            peer.start != start && !peer.ends.is_closed() && peer.replaced.contains(&start)
        })
    }

    /// Ends the connections of all nodes for which `keeps` is false.
    pub(super) fn keep_only(&self, keeps: impl Fn(NodeId) -> bool) {
        self.lock().retain(|node, _| keeps(*node));
    }

    /// Ends the older connection of this peer. The result resolves when a newer connection replaces
    /// this one.
    pub(super) fn take_place(&self, node: NodeId, start: u64) -> oneshot::Receiver<()> {
        let (ends, replaced) = oneshot::channel();
        let mut peers = self.lock();
        let mut earlier = VecDeque::new();
        if let Some(before) = peers.remove(&node) {
            earlier = before.replaced;
            earlier.push_back(before.start);
        }
        earlier.retain(|one| *one != start);
        while earlier.len() > REPLACED_MAX {
            earlier.pop_front();
        }
        peers.insert(node, Peer { start, ends, replaced: earlier });
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn is_lost(place: &mut HandshakePlace) -> bool {
        place.lost.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_unfinished_handshake_gives_its_place_to_the_newest() {
        let handshakes = Arc::new(Handshakes::default());
        let begin = || handshakes.begin_among(host(9), 2, &[]);
        let (mut first, second) = (begin(), begin());
        assert!(!is_lost(&mut first));
        let mut third = begin();
        assert!(is_lost(&mut first) && !is_lost(&mut third));
        drop(second);
        let mut fourth = begin();
        assert!(!is_lost(&mut third) && !is_lost(&mut fourth));
        assert_eq!(handshakes.lock().waiting.len(), 2);
        drop((first, third, fourth));
        assert_eq!(handshakes.lock().waiting.len(), 0);
    }

    #[test]
    fn members_keep_their_places_while_there_are_strangers() {
        let handshakes = Arc::new(Handshakes::default());
        let begin = |from| handshakes.begin_among(host(from), 3, &[host(1)]);
        let (mut member, mut stranger) = (begin(1), begin(9));
        let mut others: Vec<_> = (0..5).map(|_| begin(9)).collect();
        assert!(is_lost(&mut stranger) && !is_lost(&mut member));
        assert_eq!(others.iter_mut().map(is_lost).filter(|is_lost| !is_lost).count(), 2);
    }

    #[test]
    fn a_start_that_was_replaced_is_known_while_the_other_is_connected() {
        let node = NodeId::new(2).unwrap();
        let accepted = Connected::default();
        let _first = accepted.take_place(node, 1);
        assert!(!accepted.is_replaced(node, 1) && !accepted.is_replaced(node, 2), "a restart");
        let second = accepted.take_place(node, 2);
        assert!(accepted.is_replaced(node, 1) && !accepted.is_replaced(node, 2));
        drop(second);
        assert!(!accepted.is_replaced(node, 1), "the other connection has ended");
        let _again = accepted.take_place(node, 1);
        assert!(accepted.is_replaced(node, 2) && !accepted.is_replaced(node, 1));
    }
}
