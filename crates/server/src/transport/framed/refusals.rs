//! Refused connections: counted by kind, logged once per address and kind.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};

use d_engine_locks::Unpoisoned;

/// Why a connection was refused or closed, by either side.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[non_exhaustive]
pub enum RefusalKind {
    /// The other side does not speak the peer protocol.
    OtherProtocol,
    /// It speaks another version of the protocol.
    ProtocolVersion,
    /// It belongs to another cluster.
    OtherCluster,
    /// It is in another group.
    OtherGroup,
    /// It is not a member.
    UnknownNode,
    /// It expected, or is, another node than the one at this address.
    NotTheExpectedNode,
    /// Its data directory is not the one that the cluster has bound to the node.
    OtherIncarnation,
    /// It announced a longer frame than is allowed.
    OversizedFrame,
    /// It sent a frame that is not a message.
    MalformedFrame,
    /// The checksum of a frame does not match.
    Checksum,
    /// It did not finish its handshake in time.
    HandshakeTimeout,
    /// Too many handshakes were in progress.
    TooManyHandshakes,
    /// It knows a different set of members.
    OtherMembers,
    /// It runs another state machine.
    OtherStateMachine,
    /// Another process with the same node id has replaced it.
    RunsTwice,
    /// A committed configuration has removed the dialing node.
    Removed,
    /// It has not joined a cluster yet.
    NotJoined,
    /// The dialing node's cluster was continued by force as the one of the other side.
    Superseded,
}

/// The most (address, kind) pairs that are remembered as logged. Beyond that, refusals are only
/// counted, so that strangers can fill neither memory nor log.
const REMEMBERED: usize = 1_024;

#[derive(Default)]
pub(super) struct Refusals {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<RefusalKind, u64>,
    logged: BTreeSet<(String, RefusalKind)>,
}

impl Refusals {
    // No caller panics while it holds the lock.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unpoisoned()
    }

    /// Counts a refusal, and logs it if it is the first of its kind from this address. For a peer
    /// that dialled this node, `address` has no port: the port differs every time.
    pub(super) fn note(&self, address: &str, kind: RefusalKind, text: &str) {
        if self.count(address, kind) {
            tracing::warn!(address, ?kind, "peer connection refused: {text}");
        }
    }

    /// Counts a refusal. Returns whether to log it.
    fn count(&self, address: &str, kind: RefusalKind) -> bool {
        let mut state = self.state();
        *state.counts.entry(kind).or_default() += 1;
        state.logged.len() < REMEMBERED && state.logged.insert((address.to_owned(), kind))
    }

    pub(super) fn counts(&self) -> BTreeMap<RefusalKind, u64> {
        self.state().counts.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_counts_and_only_the_first_of_a_kind_and_address_is_logged() {
        let refusals = Refusals::default();
        assert!(refusals.count("10.0.0.1", RefusalKind::OtherCluster));
        assert!(!refusals.count("10.0.0.1", RefusalKind::OtherCluster));
        assert!(refusals.count("10.0.0.2", RefusalKind::OtherCluster));
        assert!(refusals.count("10.0.0.1", RefusalKind::UnknownNode));
        let counts = refusals.counts();
        assert_eq!(counts[&RefusalKind::OtherCluster], 3);
        assert_eq!(counts[&RefusalKind::UnknownNode], 1);
    }

    #[test]
    fn strangers_cannot_fill_memory_or_log() {
        let refusals = Refusals::default();
        let kind = RefusalKind::OtherProtocol;
        let logged = (0..REMEMBERED + 50).filter(|n| refusals.count(&n.to_string(), kind)).count();
        assert_eq!(logged, REMEMBERED);
        assert_eq!(refusals.counts()[&kind], (REMEMBERED + 50) as u64);
    }
}
