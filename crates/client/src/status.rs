//! What a node says about itself.

mod snapshots;

use d_engine_proto::client as wire;

pub use self::snapshots::{ReceivingSnapshot, SendingSnapshot, SnapshotStatus, TakenSnapshot};

/// What a node says about itself and its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NodeStatus {
    /// The node's id.
    pub node: u64,
    /// The cluster's id, 16 bytes.
    pub cluster_id: Vec<u8>,
    /// What the node is doing.
    pub role: NodeRole,
    /// Its term.
    pub term: u64,
    /// The leader it knows.
    pub leader: Option<u64>,
    /// The highest log index that it knows to be committed.
    pub commit_index: u64,
    /// The highest log index that its state machine has applied.
    pub applied_index: u64,
    /// The highest log index on its stable storage.
    pub persisted_index: u64,
    /// The highest index in its log.
    pub last_index: u64,
    /// The members of its cluster.
    pub members: Vec<Member>,
    /// Why it has stopped for good, if it has.
    pub stopped: Option<String>,
    /// Why its state machine applies nothing although the node works, if so: it cannot apply an entry.
    pub apply_stopped: Option<String>,
    /// Term and index of that entry, if the node knows which one it is.
    pub stands_at: Option<(u64, u64)>,
    /// Peers that refuse it or are refused by it just now, and why; for people.
    pub refusals: Vec<String>,
    /// What an operator must look at, a sentence each; for people. Empty when nothing is wrong.
    pub alarms: Vec<String>,
    /// Proof that some node has lost what it had acknowledged, a sentence each; for people. Also among the alarms.
    pub losses: Vec<String>,
    /// It leads, and its lease is off until the next election, because it told another node to campaign:
    /// lease reads cost a round meanwhile.
    pub lease_revoked: bool,
    /// The highest version of a command that its program decodes.
    pub command_version_max: u32,
    /// It leads: the highest version of a command that it takes now.
    pub command_version_allowed: Option<u32>,
    /// Replies of its state machine that came too late or second, since it started: nobody got them.
    pub late_replies: u64,
    /// Whether it has caught up with its leader once since it started, and its state machine runs.
    pub ready: bool,
    /// The version of its program.
    pub version: String,
    /// Syncs of its log since it started.
    pub log_syncs: u64,
    /// Bytes written to its log since it started, padding included.
    pub log_bytes_written: u64,
    /// Bytes that its log takes up on disk at most.
    pub log_bytes_on_disk: u64,
    /// How many records its state machine says that it holds; `None` when it does not answer.
    pub records: Option<u64>,
    /// Its snapshots.
    pub snapshots: SnapshotStatus,
}

/// A member of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Member {
    /// Its id.
    pub node: u64,
    /// Where other nodes reach it.
    pub peer_addr: String,
    /// Where clients reach it; `None` when it serves none.
    pub client_addr: Option<String>,
    /// Whether it votes; otherwise it only learns.
    pub voter: bool,
}

/// What a node is doing in its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NodeRole {
    /// It follows a leader, or waits for one.
    Follower,
    /// It asks whether an election would succeed.
    PreCandidate,
    /// It stands for election.
    Candidate,
    /// It leads.
    Leader,
    /// It follows without a vote.
    Learner,
    /// It has stopped, or says something that this version does not know.
    Unknown,
}

impl NodeRole {
    /// The role as one lower-case word.
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

impl From<wire::StatusReply> for NodeStatus {
    fn from(reply: wire::StatusReply) -> Self {
        let role = match reply.role() {
            wire::Role::Follower => NodeRole::Follower,
            wire::Role::PreCandidate => NodeRole::PreCandidate,
            wire::Role::Candidate => NodeRole::Candidate,
            wire::Role::Leader => NodeRole::Leader,
            wire::Role::Learner => NodeRole::Learner,
            wire::Role::Unspecified => NodeRole::Unknown,
        };
        Self {
            node: reply.node,
            cluster_id: reply.cluster_id.to_vec(),
            role,
            term: reply.term,
            leader: some_id(reply.leader),
            commit_index: reply.commit_index,
            applied_index: reply.applied_index,
            persisted_index: reply.persisted_index,
            last_index: reply.last_index,
            members: reply.members.into_iter().map(Member::from).collect(),
            stopped: some_text(reply.stopped_reason),
            apply_stopped: some_text(reply.apply_stopped),
            stands_at: reply.stands_at.map(|entry| (entry.term, entry.index)),
            refusals: reply.refusals,
            alarms: reply.alarms,
            losses: reply.losses,
            lease_revoked: reply.lease_revoked,
            command_version_max: reply.command_version_max,
            command_version_allowed: reply.command_version_allowed,
            late_replies: reply.late_replies,
            ready: reply.ready,
            version: reply.version,
            log_syncs: reply.log_syncs,
            log_bytes_written: reply.log_bytes_written,
            log_bytes_on_disk: reply.log_bytes_on_disk,
            records: reply.state_machine_len,
            snapshots: reply.snapshots.unwrap_or_default().into(),
        }
    }
}

impl From<wire::Member> for Member {
    fn from(member: wire::Member) -> Self {
        Self {
            node: member.node,
            voter: member.role() == wire::MemberRole::Voter,
            client_addr: some_text(member.client_addr),
            peer_addr: member.peer_addr,
        }
    }
}

fn some_id(id: u64) -> Option<u64> {
    (id != 0).then_some(id)
}

fn some_text(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}
