//! What a node says about its snapshots.

use std::time::Duration;

use d_engine_proto::client as wire;

use super::{some_id, some_text};

/// A snapshot that a node has taken.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TakenSnapshot {
    /// Index of the last entry whose effect is in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// SHA-256 of the archive.
    pub sha256: Vec<u8>,
}

/// What a node says about its snapshots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SnapshotStatus {
    /// Index of the last entry in the newest one.
    pub newest_index: Option<u64>,
    /// Bytes of the newest one.
    pub newest_bytes: u64,
    /// How many are kept.
    pub count: u64,
    /// Bytes of all of them.
    pub disk_bytes: u64,
    /// Bytes so far of one that is being built.
    pub building: Option<u64>,
    /// How many were built since the node started.
    pub built: u64,
    /// How many were given up since the node started.
    pub failed: u64,
    /// Why the last one was.
    pub last_failure: Option<String>,
    /// For how long the newest one has held apply up.
    pub pause: Duration,
    /// Bytes that the log has grown by since the newest one.
    pub bytes_since: u64,
    /// An alarm: the log is larger than `snapshots.max_log_bytes`. Look at `last_failure`, or take one.
    pub overdue: bool,
    /// Snapshots on their way to followers.
    pub sending: Vec<SendingSnapshot>,
    /// A snapshot on its way to this node.
    pub receiving: Option<ReceivingSnapshot>,
}

/// A snapshot on its way to a follower.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SendingSnapshot {
    /// The follower.
    pub to: u64,
    /// Index of the last entry in it; `None` before one was chosen.
    pub index: Option<u64>,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Where this attempt began: more than 0 when an earlier one was cut.
    pub resumed_at: u64,
    /// Whether the follower has all of it, and its state machine gets it.
    pub is_installing: bool,
    /// Attempts that have failed so far.
    pub failures: u64,
    /// Why the last one did.
    pub last_failure: Option<String>,
}

/// A snapshot on its way to the node.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ReceivingSnapshot {
    /// Who sends it.
    pub from: u64,
    /// Index of the last entry in it.
    pub index: u64,
    /// Bytes that are here.
    pub received: u64,
    /// Bytes of the archive.
    pub bytes: u64,
    /// Whether all of it is here, and the state machine gets it.
    pub is_installing: bool,
}

impl From<wire::TakeSnapshotReply> for TakenSnapshot {
    fn from(reply: wire::TakeSnapshotReply) -> Self {
        Self { index: reply.index, term: reply.term, bytes: reply.bytes, sha256: reply.sha256.to_vec() }
    }
}

impl From<wire::SnapshotState> for SnapshotStatus {
    fn from(state: wire::SnapshotState) -> Self {
        Self {
            newest_index: some_id(state.newest_index),
            newest_bytes: state.newest_bytes,
            count: state.count,
            disk_bytes: state.disk_bytes,
            building: state.is_building.then_some(state.building_bytes),
            built: state.built,
            failed: state.failed,
            last_failure: some_text(state.last_failure),
            pause: Duration::from_micros(state.pause_us),
            bytes_since: state.bytes_since,
            overdue: state.overdue,
            sending: state.sending.into_iter().map(SendingSnapshot::from).collect(),
            receiving: state.receiving.map(ReceivingSnapshot::from),
        }
    }
}

impl From<wire::SnapshotSending> for SendingSnapshot {
    fn from(sending: wire::SnapshotSending) -> Self {
        Self {
            to: sending.to,
            index: some_id(sending.index),
            confirmed: sending.confirmed,
            bytes: sending.bytes,
            resumed_at: sending.resumed_at,
            is_installing: sending.is_installing,
            failures: sending.failures,
            last_failure: some_text(sending.last_failure),
        }
    }
}

impl From<wire::SnapshotReceiving> for ReceivingSnapshot {
    fn from(receiving: wire::SnapshotReceiving) -> Self {
        Self {
            from: receiving.from,
            index: receiving.index,
            received: receiving.received,
            bytes: receiving.bytes,
            is_installing: receiving.is_installing,
        }
    }
}
