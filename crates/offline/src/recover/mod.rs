//! Continues the log of one node as a new cluster of one, after the majority of the voters is lost
//! for good. Further nodes join it and fetch the data by themselves.
//!
//! [`inspect`] reads the directories of all survivors, says which one has the most, and whether an
//! acknowledged write may be on none of them. [`recover`] makes the new directory from one of them:
//! its newest intact snapshot and every entry after it, committed or not, under a new cluster id.
//!
//! Every membership entry in the log becomes a no-op with the same term, index and time. Otherwise
//! nodes that join would meet the old lists again, take the old voters for the quorum, and refuse
//! this node, whose directory the old lists do not know.
//!
//! The old directory is never changed but for one record, which says that it is retired, and is
//! kept under another name. The order on disk: the new directory is complete and durable beside the
//! old one (`.recovering`); the old one is retired; it is renamed away; the new one takes its name.
//! After a crash at any point the same command begins anew or finishes the work.

mod build;
mod error;
mod holdings;
mod place;
mod report;
mod survivors;

use std::ops::ControlFlow;
use std::sync::Arc;

pub use d_engine_core::{Configuration, GroupId, LogId, LogIndex, NodeId, Term};
use d_engine_fs::{Fs, FsLock};
use d_engine_storage::survey::Survey;
pub use d_engine_storage::{ClusterId, Incarnation, Membership};
use d_engine_storage::{
    DirectoryLocks, Member, MemberRole, Origin, Retired, RetiredBy, StorageEngine, address,
};

use self::build::Sizes;
pub use self::error::{RecoverError, Unfit};
pub use self::holdings::Holdings;
pub(crate) use self::holdings::newest_members;
use self::place::Place;
pub use self::place::{BEFORE_INFIX, UNFINISHED_SUFFIX};
pub use self::report::{Kept, Progress, RecoverRequest, Recovered};
pub use self::survivors::{Findings, Survivor, VoterSet, inspect};
pub use crate::founding::TERMS_ABOVE;
use crate::inspect::{Directory, Progress as Reading, Snapshots};
use crate::replacement::Pending;

/// Forces a new cluster of one node from its data directory. Everything is durable when the call
/// returns. `confirm` learns what the directory holds before anything is built, and may refuse; ask
/// the other voters there. `progress` may end the work until the old directory is retired.
/// Blocks; needs no runtime and no state machine.
///
/// If an earlier run was cut off after it had retired the old directory, the call only finishes it,
/// and `confirm` is not called.
///
/// The files of a state machine inside of the data directory stay in the old one: its state is
/// rebuilt from snapshot and log. Files outside of it are taken over, because the node passes the
/// old identity in `Binding::continues`.
///
/// # Errors
/// See [`RecoverError`]. Except after [`RecoverError::NotFinished`], the directory is as it was.
pub fn recover(
    fs: &Arc<dyn Fs>,
    request: &RecoverRequest,
    confirm: &mut dyn FnMut(&Holdings) -> ControlFlow<()>,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Recovered, RecoverError> {
    for address in [&request.peer_addr, &request.client_addr].into_iter().flatten() {
        if !address.is_empty() && !address::can_be_dialled(address) {
            return Err(RecoverError::Address(address.clone()));
        }
    }
    let place = Place::of(fs, &request.data_dir)?;
    if let Some(pending) = place.pending()? {
        return finish_earlier(&place, pending);
    }
    let locks = place.lock_old()?;
    let (directory, holdings) = read(&place, &locks, progress)?;
    if confirm(&holdings).is_break() {
        return Err(RecoverError::Stopped);
    }
    let member = member(request, &holdings);
    place.check_space(Sizes::of(&directory, &holdings).total())?;
    let marker = place.begin()?;
    let work = build::Work { fs, dir: &place.new, directory: &directory, holdings: &holdings };
    let built = work.run(member, request.at_ms, progress).and_then(|built| {
        if progress(Progress::Written(0)).is_break() {
            return Err(RecoverError::Stopped);
        }
        Ok(place.sync(&place.new).map(|()| built)?)
    });
    let built = match built {
        Ok(built) => built,
        Err(error) => {
            // If it cannot be removed now, the next run removes it.
            place.clear_new().ok();
            return Err(error);
        }
    };
    let retired = Retired {
        at_ms: request.at_ms,
        by: RetiredBy::Recover,
        cluster: built.cluster,
        incarnation: built.incarnation,
        successor: place.old.display().to_string(),
    };
    let old_dir = place.retire(&retired, &locks).and_then(|()| place.swap(&retired))?;
    end(&place, marker);
    Ok(Recovered {
        cluster: built.cluster,
        from: holdings.owner.cluster,
        node: holdings.owner.node,
        membership: built.membership,
        old_dir,
        kept: Some(Kept {
            last: holdings.last,
            promised: holdings.promised,
            not_known_committed: holdings.not_known_committed(),
            snapshot: holdings.snapshot,
            time_ms: built.time_ms,
            memberships: built.memberships,
        }),
    })
}

/// Reads the directory and finds out whether it can be recovered, and must be.
fn read(
    place: &Place<'_>,
    locks: &DirectoryLocks,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(Directory, Holdings), RecoverError> {
    let dir = &*place.old;
    let survey = Survey::of_locked(Arc::clone(place.fs), dir, locks)?;
    if let Some(retired) = survey.retired() {
        return Err(place.is_retired(retired));
    }
    let directory = Directory::of(survey, Snapshots::Verify, &mut |read| {
        let (Reading::Log(bytes) | Reading::Snapshot(bytes)) = read;
        progress(Progress::Read(bytes))
    })?;
    let unfit = |reason| RecoverError::Unfit { path: dir.to_owned(), reason };
    let holdings = Holdings::of(&directory)?.map_err(unfit)?;
    if holdings.members.configuration().is_sole_voter(holdings.owner.node) {
        let (path, node) = (dir.to_owned(), holdings.owner.node);
        return Err(RecoverError::SoleVoter { path, node });
    }
    Ok((directory, holdings))
}

/// The only member, without its new directory.
fn member(request: &RecoverRequest, holdings: &Holdings) -> Member {
    let node = holdings.owner.node;
    let known = holdings.members.member(node);
    let or_known = |given: &Option<String>, known: Option<&String>| {
        given.as_ref().or(known).cloned().unwrap_or_default()
    };
    Member {
        node: node.get(),
        peer_addr: or_known(&request.peer_addr, known.map(|it| &it.peer_addr)),
        client_addr: or_known(&request.client_addr, known.map(|it| &it.client_addr)),
        role: MemberRole::Voter,
        incarnation: None,
    }
}

/// Puts the directory that an earlier run has completed into its place.
fn finish_earlier(place: &Place<'_>, pending: Pending) -> Result<Recovered, RecoverError> {
    // No node runs in either of them; one that starts meanwhile finds them locked.
    let _old = place.lock_in(&pending.old)?;
    let new = place.lock_in(&place.new)?;
    let engine = place.engine(&place.new);
    let origin = engine.origin()?.unwrap_or_default();
    let identity = engine.owner()?.ok_or_else(|| place.without_successor())?;
    let old_dir = match pending.old == place.old {
        true => place.swap(&pending.retired)?,
        false => place.finish().map(|()| pending.old)?,
    };
    place.remove_marker();
    drop(new);
    let Origin { continues, .. } = origin;
    Ok(Recovered {
        cluster: identity.cluster,
        from: continues.last().map(|(cluster, _)| *cluster).unwrap_or(identity.cluster),
        node: identity.node,
        membership: identity.initial,
        old_dir,
        kept: None,
    })
}

fn end(place: &Place<'_>, marker: Box<dyn FsLock>) {
    place.remove_marker();
    drop(marker);
}
