//! A directory that is reserved for a node which joins a cluster.
#![allow(clippy::unwrap_used, reason = "a test may stop there")]

mod common;

use common::{DIR, engine, request, small};
use d_engine_core::NodeId;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::{
    ClusterId, ConfigId, Fs, Incarnation, Membership, OpenRequest, Reservation, StorageEngine,
    StorageError,
};

const BORN: ConfigId = ConfigId { term: 3, version: 7 };

/// Reserves the directory under a fresh incarnation. Returns the one that it is known by, and
/// whether it is a node's already.
fn reserve(fs: &SimFs, fresh: u8) -> Result<(Incarnation, bool), StorageError> {
    Ok(match engine(fs, &small()).reserve(Incarnation([fresh; 16]))? {
        Reservation::Owned(identity) => (identity.incarnation, true),
        Reservation::Reserved { incarnation, .. } => (incarnation, false),
    })
}

/// What a node asks for once the leader has added it as node 4.
fn joined(incarnation: Incarnation) -> OpenRequest {
    OpenRequest {
        cluster: Some(ClusterId([0xC1; 16])),
        node: NodeId::new(4).unwrap(),
        initial: Membership::before_joining(BORN),
        fresh_incarnation: incarnation,
        ..request()
    }
}

#[test]
fn a_directory_is_reserved_under_one_incarnation_until_its_node_has_joined() {
    let fs = SimFs::new();
    let first = (Incarnation([1; 16]), false);
    assert_eq!(reserve(&fs, 1).unwrap(), first);
    assert_eq!(reserve(&fs, 2).unwrap(), first, "the second start");
    let opened = engine(&fs, &small()).open(&joined(first.0)).unwrap();
    assert_eq!(opened.identity.incarnation, first.0);
    assert_eq!(opened.identity.born(), BORN);
    assert!(opened.identity.initial.is_nobody());
    drop(opened);
    let again = engine(&fs, &small()).open(&joined(Incarnation([9; 16]))).unwrap();
    assert_eq!(again.identity.born(), BORN, "it is stored");
    drop(again);
    assert_eq!(reserve(&fs, 3).unwrap(), (first.0, true), "the directory is the node's now");
    let files = fs.image().files;
    assert!(!files.keys().any(|path| path.ends_with("join.meta")), "the reservation has ended");
}

/// A node that is about to join may be a member already: it must not found a second cluster.
#[test]
fn a_reserved_directory_founds_no_cluster() {
    let fs = SimFs::new();
    reserve(&fs, 1).unwrap();
    let refused = engine(&fs, &small()).open(&request()).unwrap_err();
    assert!(matches!(&refused, StorageError::ReservedToJoin { path } if path.ends_with("data")));
    assert!(refused.to_string().contains("set `join` again"), "{refused}");
    assert_eq!(reserve(&fs, 2).unwrap().0, Incarnation([1; 16]), "nothing was changed");
}

#[test]
fn a_reserved_directory_is_locked_and_a_log_without_an_identity_is_not_reserved() {
    let fs = SimFs::new();
    let held = engine(&fs, &small()).reserve(Incarnation([1; 16])).unwrap();
    assert!(matches!(reserve(&fs, 2), Err(StorageError::InUse { .. })));
    drop(held);
    drop(engine(&fs, &small()).open(&joined(Incarnation([1; 16]))).unwrap());
    for name in ["identity.meta", "identity.meta.2"] {
        fs.remove_file(&std::path::Path::new(DIR).join(name)).unwrap();
    }
    assert!(matches!(reserve(&fs, 2), Err(StorageError::DamagedFile { .. })));
}

/// A leader that was asked once knows the incarnation, so a later start must show the same one.
#[test]
fn a_crash_at_any_file_operation_of_joining_leaves_one_incarnation_or_none() {
    let mut outcomes = [0; 3];
    for at in 1.. {
        for seed in 0..4 {
            let fs = SimFs::new();
            fs.halt_at(at);
            let told = reserve(&fs, 1).ok();
            if let Some((incarnation, _)) = told {
                engine(&fs, &small()).open(&joined(incarnation)).ok();
            }
            if !fs.is_halted() {
                assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
                return;
            }
            common::Random::new(seed ^ (at << 8)).crash(&fs);
            let found = reserve(&fs, 2).unwrap();
            match told {
                Some((incarnation, _)) => assert_eq!(found.0, incarnation, "operation {at}"),
                None => assert!([[1; 16], [2; 16]].contains(&found.0.0), "operation {at}"),
            }
            outcomes[usize::from(told.is_some()) + usize::from(found.1)] += 1;
            let opened = engine(&fs, &small()).open(&joined(found.0)).unwrap();
            assert_eq!((opened.identity.incarnation, opened.identity.born()), (found.0, BORN));
        }
    }
}
