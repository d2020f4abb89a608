//! When a received snapshot replaces the log. The test executes the jobs.
#![allow(clippy::unwrap_used)]

mod leader;

use std::path::Path;
use std::sync::{Arc, Mutex};

use d_engine_core::{LogId, LogIndex, RoleKind, Term};
use d_engine_replica::{Event, InstallError, PeerMessage, ReceivedSnapshot};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{SnapshotOptions, SnapshotStore};
use leader::{Node, n, open};

type Outcomes = Arc<Mutex<Vec<Result<(), InstallError>>>>;

/// Node 2, the leader of `term`, has sent a snapshot up to entry 5.
fn receives(node: &mut Node, term: u64) -> Outcomes {
    let identity = open(3).identity;
    let options = SnapshotOptions::new(identity.cluster, d_engine_core::GroupId::FIRST);
    let (store, _) =
        SnapshotStore::open(Arc::new(SimFs::new()), Path::new("/snapshots"), options).unwrap();
    let (term, last_included) = (Term::new(term), LogId::new(Term::new(1), LogIndex::new(5)));
    let (membership, hold) = (identity.initial, store.hold(last_included));
    let snapshot = Box::new(ReceivedSnapshot {
        from: n(2),
        term,
        last_included,
        time_ms: 0,
        membership,
        hold,
    });
    let outcomes = Outcomes::default();
    let told = outcomes.clone();
    let responder = Box::new(move |outcome| told.lock().unwrap().push(outcome));
    node.handle(Event::SnapshotReceived { snapshot, responder });
    outcomes
}

fn hears_of_leader(node: &mut Node, from: u64, term: u64) {
    let (term, zero) = (Term::new(term), LogIndex::ZERO);
    node.receive(from, PeerMessage::Heartbeat { term, commit: zero, round: 1, matched: zero });
}

fn begins_at(node: &Node) -> u64 {
    node.replica.core().log().base.index.get()
}

#[test]
fn a_snapshot_of_a_deposed_leader_is_installed_under_the_next_one() {
    let mut node = Node::new(3);
    hears_of_leader(&mut node, 3, 4);
    let outcomes = receives(&mut node, 2);
    assert_eq!((begins_at(&node), node.replica.core().leader()), (5, Some(n(3))));
    assert!(outcomes.lock().unwrap().is_empty(), "no outcome before it is applied");
}

/// The sender is deposed, and no new leader is known: the complete archive waits until one is.
#[test]
fn a_snapshot_of_a_deposed_leader_waits_until_it_is_known_who_leads() {
    let mut node = Node::new(3);
    hears_of_leader(&mut node, 2, 2);
    hears_of_leader(&mut node, 3, 4);
    node.pass_ms(2_000);
    node.handle(Event::Deadline);
    assert_eq!(node.replica.core().role(), RoleKind::PreCandidate);
    let outcomes = receives(&mut node, 2);
    assert_eq!(begins_at(&node), 0);
    assert!(outcomes.lock().unwrap().is_empty());
    hears_of_leader(&mut node, 3, 4);
    assert_eq!((begins_at(&node), node.replica.core().leader()), (5, Some(n(3))));
}

/// A node that is elected leader already has everything in the snapshot.
#[test]
fn a_snapshot_of_a_deposed_leader_is_not_needed_by_the_next_one() {
    let mut node = Node::new(3);
    hears_of_leader(&mut node, 2, 2);
    node.lead();
    assert_eq!(node.replica.core().role(), RoleKind::Leader);
    let outcomes = receives(&mut node, 2);
    assert_eq!((begins_at(&node), node.replica.core().role()), (0, RoleKind::Leader));
    assert_eq!(*outcomes.lock().unwrap(), [Err(InstallError::Stale)]);
}

/// A large state may take minutes to install. Meanwhile the entries after it are persisted and
/// acknowledged to the leader.
#[test]
fn entries_are_stored_while_the_state_machine_gets_the_snapshot() {
    let mut node = Node::new(3);
    hears_of_leader(&mut node, 2, 2);
    let outcomes = receives(&mut node, 2);
    let id = LogId::new(Term::new(2), LogIndex::new(6));
    let data = bytes::Bytes::from_static(b"command");
    let entry = d_engine_storage::LogEntry {
        id,
        kind: d_engine_core::EntryKind::Command,
        time_ms: 1,
        session: None,
        version: 0,
        data,
    };
    let prev = LogId::new(Term::new(1), LogIndex::new(5));
    let (term, commit) = (Term::new(2), LogIndex::new(6));
    let entries: Arc<[_]> = Arc::new([entry]);
    let jobs = node.receive(2, PeerMessage::Append { term, prev, commit, entries });
    let stored = jobs.send.iter().any(|sent| {
        let outcome = d_engine_core::AppendOutcome::Persisted(id.index);
        matches!(&sent.message, PeerMessage::AppendReply { outcome: told, .. } if *told == outcome)
    });
    assert!(stored, "it is acknowledged");
    assert_eq!(
        (node.replica.core().log().committed, node.replica.applied()),
        (id.index, LogIndex::ZERO)
    );
    assert!(outcomes.lock().unwrap().is_empty(), "the snapshot is not applied");
}
