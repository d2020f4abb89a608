//! The status that a node reports about itself: in the process that embeds it, over the network and
//! on the command line. `status/convert.rs` converts it to a message and back.

mod convert;
mod snapshots;

use std::fmt;

pub use self::snapshots::{ReceivingSnapshot, SendingSnapshot, SnapshotStatus, TakenSnapshot};
use crate::message::EntryId;
use crate::{ConfigId, Member};

/// The status of a node and what it knows of its cluster. Later versions add fields. A node reports
/// the same fields to the program that embeds it and over the network.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's id.
    pub node: u64,
    /// The cluster's id, 16 bytes.
    pub cluster_id: Vec<u8>,
    /// The Raft group; 1 as long as a node runs one group.
    pub group: u64,
    /// The id of the node's data directory, 16 bytes. A node with an emptied directory has a new
    /// one.
    pub incarnation: Vec<u8>,
    /// Its role.
    pub role: NodeRole,
    /// Its term.
    pub term: u64,
    /// The leader that it knows.
    pub leader: Option<u64>,
    /// The highest log index that it knows to be committed.
    pub commit_index: u64,
    /// The highest log index that its state machine has applied.
    pub applied_index: u64,
    /// The highest log index on its stable storage.
    pub persisted_index: u64,
    /// The highest index in its log, persisted or not.
    pub last_index: u64,
    /// The members of its cluster.
    pub members: Vec<Member>,
    /// The name of the configuration in force, the last one in its log.
    pub config: ConfigId,
    /// The configuration that has removed it, if one has.
    pub removed_by: Option<ConfigId>,
    /// Why it has stopped, if it has. A restart is needed. A node that has stopped reports neither
    /// role and term nor members and indexes.
    pub stopped: Option<String>,
    /// Why its state machine has halted, if it has: it cannot apply an entry. The node itself still
    /// runs.
    pub apply_stopped: Option<String>,
    /// The entry at which the state machine has halted, if the node knows it.
    pub halted_at: Option<EntryId>,
    /// Peers that refuse it or are refused by it now, and why, as text.
    pub refusals: Vec<String>,
    /// What an operator must check, one sentence each. Empty if nothing is wrong.
    pub alarms: Vec<String>,
    /// Proof that a node has lost entries that it had acknowledged, one sentence each. Also among
    /// the alarms.
    pub losses: Vec<String>,
    /// It leads, but its lease is revoked until the next election because it told another node to
    /// campaign. Lease reads cost a read round meanwhile.
    pub lease_revoked: bool,
    /// The highest command version that its program decodes.
    pub command_version_max: u32,
    /// The highest command version that it accepts now, if it leads.
    pub command_version_allowed: Option<u32>,
    /// Replies of its state machine since the node started that no caller received, because they
    /// came after `apply_chunk` had returned, or were a second reply to the same command. A value
    /// above 0 is a bug of the state machine.
    pub late_replies: u64,
    /// Whether it has caught up with its leader at least once since it started, has not stopped,
    /// and its state machine is running and not halted. Its present lag is `commit_index` minus
    /// `applied_index`.
    pub ready: bool,
    /// Whether its state machine reports that it is running. `false` also if the state machine does
    /// not answer within a second, or panics.
    pub state_machine_running: bool,
    /// Number of records that its state machine reports; `None` if the state machine does not
    /// answer within a second, or panics.
    pub records: Option<u64>,
    /// The version of its program.
    pub version: String,
    /// Syncs of its log since it started.
    pub log_syncs: u64,
    /// Bytes written to its log since it started, padding included.
    pub log_bytes_written: u64,
    /// Upper bound of the bytes of its log on disk; preallocated space is not counted.
    pub log_bytes_on_disk: u64,
    /// Its snapshots.
    pub snapshots: SnapshotStatus,
}

/// The role of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum NodeRole {
    /// Follows a leader, or waits for one.
    Follower,
    /// Runs a pre-vote.
    PreCandidate,
    /// Runs an election.
    Candidate,
    /// Leads.
    Leader,
    /// Receives the log and does not vote.
    Learner,
    /// The node has stopped, or reports a role that this version does not know.
    #[default]
    Unknown,
}

impl NodeRole {
    /// Returns the role as one lower-case word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Learner => "learner",
            Self::Unknown => "unknown",
        }
    }
}

/// Term and index, as `d-engine skip-entry` takes them: `3:131`.
impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.term, self.index)
    }
}
