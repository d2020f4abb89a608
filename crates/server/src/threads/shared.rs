//! What the threads of a node share.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use d_engine_api::Members;
use d_engine_core::{GroupId, NodeId};
use d_engine_replica::{Admission, ApplyWork, StopReason};
use d_engine_storage::snapshot::SnapshotStore;
use d_engine_storage::{ConfigId, Identity, Membership};
use tokio::sync::watch;

use crate::snapshots::Exchange;
use crate::threads::building::BuildProgress;
use crate::threads::inbox::Inbox;
use crate::threads::read_gate::ReadGate;
use crate::threads::scrub_end::ScrubEnd;
use crate::threads::work_queue::WorkQueue;
use crate::threads::workers::LogCounters;
use crate::transport::peer_refusals::PeerRefusals;

/// What the raft thread shares with the rest of the node.
pub(crate) struct Shared {
    pub(crate) group: GroupId,
    pub(crate) inbox: Arc<Inbox>,
    /// For reads that need no other thread.
    pub(crate) gate: Arc<ReadGate>,
    /// The node's snapshots.
    pub(crate) snapshots: SnapshotStore,
    /// Timeouts that follow from the configuration.
    pub(crate) timeout: Timeouts,
    /// A snapshot is overdue when the log has more bytes than this.
    pub(crate) max_log_bytes: u64,
    /// Progress and failures of building snapshots.
    pub(crate) building: Arc<BuildProgress>,
    pub(crate) scrub_end: Arc<ScrubEnd>,
    /// Snapshots being sent and received.
    pub(crate) exchange: Arc<Exchange>,
    /// The apply thread's queue, for callers that request a snapshot.
    pub(crate) apply: Arc<WorkQueue<ApplyWork>>,
    /// Replies of the state machine that came too late; see [`crate::NodeStatus::late_replies`].
    pub(crate) late_replies: Arc<std::sync::atomic::AtomicU64>,
    /// Counters of the log.
    pub(crate) log_counters: Arc<LogCounters>,
    /// The peers that refuse this node, and those that it refuses.
    pub(crate) refusals: PeerRefusals,
    /// The node's identity.
    pub(crate) identity: Identity,
    /// The name of the node's state machine; empty: not compared.
    pub(crate) state_machine: String,
    /// Peers that are no members here and know a later configuration, and until when they are kept.
    pub(crate) provisional: std::sync::Mutex<BTreeMap<NodeId, d_engine_core::Instant>>,
    /// What the transport's handshakes must know of the members.
    pub(crate) admission: RwLock<Admission>,
    /// The memberships that the node knows.
    pub(crate) members: watch::Sender<Arc<KnownMembers>>,
    /// The same, in the form for callers.
    pub(crate) members_view: watch::Sender<Arc<Members>>,
    /// Whether the node has caught up; never becomes false again.
    pub(crate) ready: watch::Sender<bool>,
    /// The term and its leader, as far as this node knows.
    pub(crate) leader: watch::Sender<(u64, Option<NodeId>)>,
    /// Why the state machine is halted at an entry, while it is.
    pub(crate) stands: watch::Sender<Option<StopReason>>,
    /// Why the node has stopped, once it has.
    pub(crate) stopped: watch::Sender<Option<StopReason>>,
}

/// The memberships that a node knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct KnownMembers {
    /// The last one in the log, with the addresses that the node uses.
    pub(crate) in_force: Membership,
    /// The last one that is committed.
    pub(crate) committed: Membership,
    /// The committed configuration that has removed this node.
    pub(crate) removed: Option<ConfigId>,
}

/// Timeouts that follow from the configured election timeouts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For a read whose caller has set no limit.
    pub(crate) read: Duration,
    /// For a leadership transfer: the leader's own timeout, and an election.
    pub(crate) transfer: Duration,
    /// Within this time the nodes that reach a quorum usually have a leader.
    pub(crate) election: Duration,
    /// A leadership transfer is refused if the leader has not heard from the target for this long.
    pub(crate) silence: Duration,
}

impl Timeouts {
    pub(crate) fn of(config: &crate::Config) -> Self {
        let shortest = Duration::from_millis(config.election_timeout_min_ms);
        let longest = Duration::from_millis(config.election_timeout_max_ms);
        Self {
            read: longest.saturating_mul(10),
            transfer: shortest.saturating_add(longest.saturating_mul(2)),
            election: longest,
            silence: shortest,
        }
    }
}
