//! The members that a log has at its end.

use d_engine_core::LogIndex;
use d_engine_storage::survey::{LogSummary, Survey};
use d_engine_storage::{Membership, MembershipError};

use super::snapshots::SnapshotFile;

/// The members of the cluster, as far as this directory knows.
#[derive(Clone, Debug)]
pub struct KnownMembers {
    /// Where they stand.
    pub from: MembersFrom,
    /// The members.
    ///
    /// # Errors
    /// Why they cannot be decoded: use the program version that wrote them.
    pub membership: Result<Membership, MembershipError>,
}

/// Where a list of members stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MembersFrom {
    /// In the membership entry with this index. It may not be committed yet.
    Entry(LogIndex),
    /// In the record of the log's beginning: it is that of the last purged entry.
    LogBeginning,
    /// In the header of the snapshot up to this index, after which the log begins.
    Snapshot(LogIndex),
    /// In the identity: those at the cluster's birth. A node that has joined has none there.
    Identity,
}

pub(super) fn known(
    survey: &Survey,
    log: &LogSummary,
    snapshots: &[SnapshotFile],
) -> Option<KnownMembers> {
    let known = |from, membership| Some(KnownMembers { from, membership });
    if let Some((index, payload)) = &log.membership {
        return known(MembersFrom::Entry(*index), Membership::decode(payload));
    }
    if let Some(payload) = &log.base_membership {
        return known(MembersFrom::LogBeginning, Membership::decode(payload));
    }
    let base = log.base.unwrap_or_default();
    if base.index > LogIndex::ZERO && log.base_time_ms.is_none() || log.base.is_none() {
        let newest = snapshots.iter().find(|it| it.state.may_be_used());
        if let Some(header) = newest.and_then(|it| it.header.as_ref()) {
            let index = header.facts.last_included.index;
            return known(MembersFrom::Snapshot(index), Ok(header.facts.membership.clone()));
        }
    }
    let initial = &survey.identity()?.initial;
    known(MembersFrom::Identity, Ok(initial.clone()))
}
