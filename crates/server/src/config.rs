//! What a node is told before it starts: in code or in a TOML file, checked before anything is opened.

mod address;
mod check;
mod error;
mod fields;
mod snapshots;

use std::fs;
use std::path::{Path, PathBuf};

use d_engine_storage::{ClusterId, Member, MemberRole, Membership, MembershipError};
use serde::{Deserialize, Serialize};

pub use error::ConfigError;
pub use snapshots::{SnapshotCompression, Snapshots};

/// The settings of one node.
///
/// In code, start from the default and change what you need; in a file, every field is optional but
/// `data_dir`. [`Config::validate`] is called by `NodeBuilder::build`, and by [`Config::from_file`].
///
/// ```
/// let config = d_engine_server::Config { data_dir: "/var/lib/app".into(), ..Default::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node's id: 1 or higher, different for every node. Default 1.
    pub node_id: u64,
    /// The cluster's id as 32 hexadecimal digits, the same on every node. Needed when there is more than
    /// one member; a node that is alone draws one at its first start.
    pub cluster_id: Option<String>,
    /// Where log, identity and snapshots lie. Must be set. In a file, a relative path starts at the
    /// file's own directory; in code, at the working directory.
    pub data_dir: PathBuf,
    /// Where to listen for other nodes, as `host:port`. Default: this node's `peer_addr` in
    /// `members`; loopback and any free port for a node that is alone.
    pub peer_listen: Option<String>,
    /// Where to listen for clients, as `host:port`. Default: this node's `client_addr` in
    /// `members`. Empty: no client service.
    pub client_listen: Option<String>,
    /// The members of the cluster, this node among them, the same list on every node. Empty: this node alone. Their ids
    /// are settled by the first start of a data directory, and later starts with others are refused; their addresses are
    /// read at every start.
    pub members: Vec<MemberConfig>,
    /// How often a leader shows that it is alive, in milliseconds. Default 100.
    pub heartbeat_interval_ms: u64,
    /// The shortest time without a leader after which a node stands for election, in milliseconds. At least
    /// three heartbeats, so that one lost message changes no leader. Default 500.
    pub election_timeout_min_ms: u64,
    /// The longest such time, in milliseconds; each node draws its own in between (Raft paper, section
    /// 5.2). Default 1,000.
    pub election_timeout_max_ms: u64,
    /// By how many percent the rate of any node's clock may differ from true time; the same on every
    /// node. Lease reads are only as good as this bound; 100 turns the lease off: such reads then cost a
    /// round like linearizable ones. Default 10.
    pub clock_drift_percent_max: u32,
    /// How far the wall clocks of a quorum may lie apart to be believed, in milliseconds: the log's time, by
    /// which keys expire, goes by them and not by one node's clock. Default 1,000.
    pub max_clock_offset_ms: u64,
    /// Believe the wall clock of a node that is alone also when it differs by more than an hour from the time in
    /// its log. Otherwise such a node goes on from the log's time and `status` raises an alarm. Default false.
    pub accept_clock: bool,
    /// When snapshots are taken and what they may use.
    pub snapshots: Snapshots,
    /// Bounds on memory, queues and files.
    pub limits: Limits,
}

/// One of the first members of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// The node's id.
    pub id: u64,
    /// Where other nodes reach it, as `host:port`.
    pub peer_addr: String,
    /// Where clients reach it, as `host:port`; empty when it serves none.
    #[serde(default)]
    pub client_addr: String,
}

/// Bounds on memory, queues and files. Whatever passes a bound of an intake is answered `Busy`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest command in bytes. Default 1 MiB.
    pub max_command_bytes: usize,
    /// Commands waiting to be taken up, by number. Default 8,192.
    pub max_pending_proposals: usize,
    /// Commands waiting to be taken up, in bytes. Default 64 MiB.
    pub max_pending_bytes: usize,
    /// Reads waiting to be confirmed, by number. Default 65,536.
    pub max_pending_reads: usize,
    /// Connections of clients; more wait until one is closed. Default 1,024.
    pub max_client_connections: usize,
    /// Requests of clients that are being taken up, in bytes, and answers to reads that have not been written to
    /// the socket yet: as much of each. Default 64 MiB.
    pub max_client_bytes: usize,
    /// Calls on their way on one connection of a client; more wait at the client. Default 4,096, as many as a client
    /// has in flight at most.
    pub max_calls_per_connection: usize,
    /// Entries of the leader that are not committed yet, in bytes. Default 64 MiB.
    pub max_uncommitted_bytes: usize,
    /// Entries on their way to one follower, in bytes. Default 4 MiB.
    pub max_inflight_bytes: usize,
    /// Entries in one message to a follower, in bytes; a longer entry travels alone. Default 256 KiB.
    pub max_append_bytes: usize,
    /// Entries that the state machine gets at once, by number. Default 512.
    pub max_apply_entries: usize,
    /// Recent entries kept in memory for followers and apply, in bytes. Default 64 MiB.
    pub log_cache_bytes: usize,
    /// The size of one log file in bytes. Default 16 MiB. A node that has been idle keeps the current one and
    /// the next filled with zeros, so a new node takes twice this.
    pub segment_bytes: usize,
    /// With fewer free bytes on the disk of the log, commands are refused, so that snapshots and purges still have
    /// room.
    pub min_free_bytes: u64,
    /// Messages waiting to be sent to one node, by number. Default 4,096.
    pub peer_queue_frames: usize,
    /// Messages waiting to be sent to one node, in bytes. Default 16 MiB.
    pub peer_queue_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: 1,
            cluster_id: None,
            data_dir: PathBuf::new(),
            peer_listen: None,
            client_listen: None,
            members: Vec::new(),
            heartbeat_interval_ms: 100,
            election_timeout_min_ms: 500,
            election_timeout_max_ms: 1_000,
            clock_drift_percent_max: 10,
            max_clock_offset_ms: 1_000,
            accept_clock: false,
            snapshots: Snapshots::default(),
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_command_bytes: 1 << 20,
            max_pending_proposals: 8_192,
            max_pending_bytes: 64 << 20,
            max_pending_reads: 65_536,
            max_client_connections: 1_024,
            max_client_bytes: 64 << 20,
            max_calls_per_connection: 4_096,
            max_uncommitted_bytes: 64 << 20,
            max_inflight_bytes: 4 << 20,
            max_append_bytes: 256 << 10,
            max_apply_entries: 512,
            log_cache_bytes: 64 << 20,
            segment_bytes: 16 << 20,
            min_free_bytes: 2 << 20,
            peer_queue_frames: 4_096,
            peer_queue_bytes: 16 << 20,
        }
    }
}

/// The path from the root: where a process stands later does not matter then. Symbolic links stay as they are.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // It fails for an empty path, which is refused with its own reason, and where there is no working directory.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Where a node listens that is not told anything.
const LOOPBACK: &str = "127.0.0.1:0";

impl Config {
    /// Reads and checks a TOML file. Nothing but the file itself is opened.
    ///
    /// # Errors
    /// See [`ConfigError`]; the message names the file, the field, its value and what is allowed.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { file: path.to_owned(), source })?;
        let mut config = Self::parse(&text).map_err(|error| error.in_file(path))?;
        if config.data_dir.is_relative() {
            // A pipe lies in no directory that anybody means.
            let folder = path.parent().filter(|_| path.is_file()).ok_or_else(|| ConfigError::Refused {
                file: Some(path.to_owned()),
                field: "data_dir".to_owned(),
                value: config.data_dir.display().to_string(),
                allowed: "a relative path starts at the config's own directory, and this config is no file: write the \
                          whole path"
                    .to_owned(),
            })?;
            config.data_dir = absolute(&folder.join(&config.data_dir));
        }
        Ok(config)
    }

    /// Reads and checks the text of a TOML file.
    ///
    /// # Errors
    /// As [`Config::from_file`], without a file's name.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        Self::parse(text)
    }

    fn parse(text: &str) -> Result<Self, ConfigError> {
        let malformed = |error: toml::de::Error| ConfigError::Malformed {
            file: None,
            message: error.to_string().trim_end().to_owned(),
        };
        let table: toml::Table = toml::from_str(text).map_err(malformed)?;
        fields::check_names(&table)?;
        let config: Self = toml::from_str(text).map_err(malformed)?;
        config.validate()?;
        Ok(config)
    }

    /// Checks everything that can be checked without opening anything.
    ///
    /// # Errors
    /// [`ConfigError::Refused`] for the first field that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        check::check(self)
    }

    /// The cluster's id, if one is set and readable.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster_id.as_deref().and_then(ClusterId::from_hex)
    }

    /// Where to listen for other nodes.
    #[must_use]
    pub fn peer_listen_addr(&self) -> &str {
        let own = self.own_member().map(|member| member.peer_addr.as_str());
        self.peer_listen.as_deref().or(own).unwrap_or(LOOPBACK)
    }

    /// Where to listen for clients; `None`: no client service.
    #[must_use]
    pub fn client_listen_addr(&self) -> Option<&str> {
        let own = self.own_member().map(|member| member.client_addr.as_str());
        self.client_listen.as_deref().or(own).filter(|address| !address.is_empty())
    }

    /// The first configuration of the cluster. A node that is alone is reached at `peer_addr` and
    /// `client_addr`: the addresses it really listens on.
    ///
    /// # Errors
    /// None for a config that [`Config::validate`] has accepted.
    pub fn membership(&self, peer_addr: &str, client_addr: &str) -> Result<Membership, MembershipError> {
        let voter = |node: u64, peer_addr: &str, client_addr: &str| Member {
            node,
            peer_addr: peer_addr.to_owned(),
            client_addr: client_addr.to_owned(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        if self.members.is_empty() {
            return Membership::new([voter(self.node_id, peer_addr, client_addr)]);
        }
        Membership::new(self.members.iter().map(|one| voter(one.id, &one.peer_addr, &one.client_addr)))
    }

    fn own_member(&self) -> Option<&MemberConfig> {
        self.members.iter().find(|member| member.id == self.node_id)
    }
}

#[cfg(test)]
mod tests;
