//! The configuration of a node, in code or in a TOML file. It is checked before anything is opened.

mod check;
mod error;
mod fields;
mod local;
mod ports;
mod snapshots;

use std::fs;
use std::path::{Path, PathBuf};

use d_engine_storage::{ClusterId, Member, MemberRole, Membership, MembershipError};
use serde::{Deserialize, Serialize};

use d_engine_api::Admission;
pub use error::ConfigError;
pub use ports::free_loopback_ports;
pub use snapshots::{SnapshotCompression, Snapshots};

/// The settings of one node.
///
/// In code, start from the default or from [`Config::local_cluster`] and change what you need. In a
/// file, every field except `data_dir` is optional. `NodeBuilder::build` and [`Config::from_file`]
/// call [`Config::validate`].
///
/// ```
/// let config = d_engine_server::Config { data_dir: "/var/lib/app".into(), ..Default::default() };
/// assert!(config.validate().is_ok());
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// This node's id: 1 or higher, different for every node. Default: 1, or with `join` the id
    /// that the leader gives. A node that has joined keeps its id; it may be left out.
    pub node_id: Option<u64>,
    /// The cluster's id as 32 hexadecimal digits, the same on every node. Required with more than
    /// one member; a node that is alone draws one at its first start.
    pub cluster_id: Option<String>,
    /// The directory for log, identity and snapshots. Required. In a file, a relative path is
    /// resolved against the file's directory; in code, against the working directory.
    pub data_dir: PathBuf,
    /// The address on which the node listens for other nodes, as `host:port`. Default: this node's
    /// `peer_addr` in `members`; a node that is alone does not listen for other nodes.
    pub peer_listen: Option<String>,
    /// The address on which the node listens for clients, as `host:port`. Default: this node's
    /// `client_addr` in `members`. Empty: no client service.
    pub client_listen: Option<String>,
    /// The members of a new cluster, including this node; the same list on every node. Empty: this
    /// node alone, unless `join` is set. Read at the first start of a data directory; later the log
    /// has the members. Only the addresses are read at every start: they count until the log has a
    /// newer one.
    pub members: Vec<MemberConfig>,
    /// Addresses of nodes of an existing cluster, as `host:port` for other nodes, leader or not.
    /// The first start of an empty data directory then joins that cluster; it asks until it is a
    /// member, and never founds a cluster of its own. A member asks these addresses which nodes
    /// listen there while it knows no leader: all nodes may have moved.
    pub join: Vec<String>,
    /// What a joining node becomes. Default: a voter, once it keeps up with the log.
    pub join_as: JoinRole,
    /// The voter in whose place a joining node votes, in one step: a node that is lost for good.
    pub replaces: Option<u64>,
    /// Which nodes may join the cluster that this node founds. Default: all that reach a member, if
    /// all its members are on loopback addresses; otherwise invited ones (`d-engine member add`).
    /// Read at the first start of a cluster; later `d-engine member admission` changes it.
    #[serde(with = "admission")]
    pub admission: Option<Admission>,
    /// The address at which other nodes reach this one, if it is not the one on which it listens.
    /// Required with `join` if `peer_listen` is a wildcard such as 0.0.0.0.
    pub advertise_peer: Option<String>,
    /// The address at which clients reach this node, if it is not the one on which it listens.
    pub advertise_client: Option<String>,
    /// The interval of the leader's heartbeats, in milliseconds. Default 100.
    pub heartbeat_interval_ms: u64,
    /// The shortest election timeout, in milliseconds: a node that has heard no leader for that
    /// time campaigns. At least three heartbeat intervals, so that one lost message does not change
    /// the leader. Default 500.
    pub election_timeout_min_ms: u64,
    /// The longest election timeout, in milliseconds; each node draws its timeouts at random
    /// between the two (Raft paper, section 5.2). Default 1,000.
    pub election_timeout_max_ms: u64,
    /// The bound on clock drift: by how many percent the rate of any node's clock may differ from
    /// true time. The same on every node. Lease reads are linearizable only if this bound holds.
    /// 100 turns the leader lease off; a lease read then costs a read round, like a linearizable
    /// read. Default 10.
    pub clock_drift_percent_max: u32,
    /// By how much the wall clocks of a quorum may differ, in milliseconds. Log time, by which keys
    /// expire, follows the wall clocks of a quorum that agrees within this bound, and not one
    /// node's clock. Default 1,000.
    pub max_clock_offset_ms: u64,
    /// Whether a node that is alone accepts its wall clock even if that differs by more than an
    /// hour from the time in its log. Otherwise the node continues from the time in its log, and
    /// `status` raises an alarm. Default false.
    pub accept_clock: bool,
    /// Whether this node votes and campaigns although its cluster was continued as another one by
    /// `d-engine recover`. Otherwise it does neither while it knows no leader and a node of the new
    /// cluster answers at a member's address. Set it only if `recover` was run by mistake, after
    /// the new cluster was stopped for good. Default false.
    pub ignore_superseded: bool,
    /// When snapshots are taken, and how much disk and network they may use.
    pub snapshots: Snapshots,
    /// Bounds on memory, queues and files.
    pub limits: Limits,
}

/// What a joining node becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JoinRole {
    /// It votes once it keeps up with the log.
    #[default]
    Voter,
    /// It receives the log and does not vote.
    Learner,
}

/// `admission` as a word.
mod admission {
    use d_engine_api::Admission;
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[allow(clippy::ref_option, reason = "the form that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        admission: &Option<Admission>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        admission.map(Admission::as_str).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Admission>, D::Error> {
        let word = Option::<String>::deserialize(deserializer)?;
        word.map(|word| word.parse().map_err(D::Error::custom)).transpose()
    }
}

/// A member of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberConfig {
    /// The node's id.
    pub id: u64,
    /// The address at which other nodes reach it, as `host:port`.
    pub peer_addr: String,
    /// The address at which clients reach it, as `host:port`; empty if it serves no clients.
    #[serde(default)]
    pub client_addr: String,
}

/// Bounds on memory, queues and files. A command or a read beyond a bound on pending requests is
/// refused with `Busy`; retry it after a pause.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The longest accepted command, in bytes. Default 1 MiB.
    pub max_command_bytes: usize,
    /// Commands waiting for the raft thread, by number. Default 8,192.
    pub max_pending_proposals: usize,
    /// Commands waiting for the raft thread, in bytes. Default 64 MiB.
    pub max_pending_bytes: usize,
    /// Reads waiting for confirmation, by number. Default 65,536.
    pub max_pending_reads: usize,
    /// Client connections. Further ones wait until one is closed. Default 1,024.
    pub max_client_connections: usize,
    /// Client requests being processed, in bytes, and the same number of bytes again for replies to
    /// reads that are not yet written to the socket. Default 64 MiB.
    pub max_client_bytes: usize,
    /// Concurrent calls on one client connection; further ones wait at the client. Default 4,096,
    /// the most that a client has in flight.
    pub max_calls_per_connection: usize,
    /// Uncommitted entries of the leader, in bytes. Default 64 MiB.
    pub max_uncommitted_bytes: usize,
    /// Entries in flight to one follower, in bytes. Default 4 MiB.
    pub max_inflight_bytes: usize,
    /// Entries in one message to a follower, in bytes; a longer entry is sent alone. Default 256
    /// KiB.
    pub max_append_bytes: usize,
    /// Entries that the state machine applies in one batch, by number. Default 512.
    pub max_apply_entries: usize,
    /// Recent entries that stay in memory for followers and for apply, in bytes. Default 64 MiB.
    pub log_cache_bytes: usize,
    /// The size of a log segment, in bytes. Default 16 MiB. An idle node keeps the current segment
    /// and the next one, both preallocated with zeros, so a new node takes up twice this size.
    pub segment_bytes: usize,
    /// The free space below which commands are refused, in bytes, so that snapshots and purges
    /// still have space on the log's disk. Default 2 MiB.
    pub min_free_bytes: u64,
    /// Messages waiting to be sent to one node, by number. Default 4,096.
    pub peer_queue_frames: usize,
    /// Messages waiting to be sent to one node, in bytes. Default 16 MiB.
    pub peer_queue_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node_id: None,
            cluster_id: None,
            data_dir: PathBuf::new(),
            peer_listen: None,
            client_listen: None,
            members: Vec::new(),
            join: Vec::new(),
            join_as: JoinRole::Voter,
            replaces: None,
            admission: None,
            advertise_peer: None,
            advertise_client: None,
            heartbeat_interval_ms: 100,
            election_timeout_min_ms: 500,
            election_timeout_max_ms: 1_000,
            clock_drift_percent_max: 10,
            max_clock_offset_ms: 1_000,
            accept_clock: false,
            ignore_superseded: false,
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

/// Makes the path absolute, so that a later change of the working directory does not matter.
/// Symbolic links are not resolved.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    // Fails for an empty path, which `validate` refuses with its own reason, and without a working
    // directory.
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Whether others can dial this address: it is no wildcard, and names a port.
pub(crate) fn can_be_dialled(address: &str) -> bool {
    d_engine_storage::address::can_be_dialled(address)
}

/// The peer address of a node for which none is configured.
const LOOPBACK: &str = "127.0.0.1:0";

impl Config {
    /// Reads and checks a TOML file. Opens nothing but that file.
    ///
    /// # Errors
    /// See [`ConfigError`]. The message names the file, the field, its value and what is allowed.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        let path = path.as_ref();
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { file: path.to_owned(), source })?;
        let mut config = Self::parse(&text).map_err(|error| error.in_file(path))?;
        if config.data_dir.is_relative() {
            // A pipe has no directory against which to resolve the path.
            let folder = path.parent().filter(|_| path.is_file()).ok_or_else(|| ConfigError::Refused {
                file: Some(path.to_owned()),
                field: "data_dir".to_owned(),
                value: config.data_dir.display().to_string(),
                allowed: "a relative path is resolved against the config file's directory, and this config is not \
                          a regular file: write the whole path"
                    .to_owned(),
            })?;
            config.data_dir = absolute(&folder.join(&config.data_dir));
        }
        Ok(config)
    }

    /// Reads and checks the text of a TOML file.
    ///
    /// # Errors
    /// Those of [`Config::from_file`], without the name of a file.
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

    /// Returns the cluster's id; `None` if it is not set or malformed.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster_id.as_deref().and_then(ClusterId::from_hex)
    }

    /// Returns the address on which to listen for other nodes.
    #[must_use]
    pub fn peer_listen_addr(&self) -> &str {
        let own = self.own_member().map(|member| member.peer_addr.as_str());
        self.peer_listen.as_deref().or(own).unwrap_or(LOOPBACK)
    }

    /// Returns the address on which to listen for clients; `None`: no client service.
    #[must_use]
    pub fn client_listen_addr(&self) -> Option<&str> {
        let own = self.own_member().map(|member| member.client_addr.as_str());
        self.client_listen.as_deref().or(own).filter(|address| !address.is_empty())
    }

    /// Returns the first membership of the cluster. The addresses are used only for a node that is
    /// alone: they are those on which it listens.
    ///
    /// # Errors
    /// None for a config that [`Config::validate`] has accepted.
    pub fn membership(
        &self,
        peer_addr: &str,
        client_addr: &str,
    ) -> Result<Membership, MembershipError> {
        let voter = |node: u64, peer_addr: &str, client_addr: &str| Member {
            node,
            peer_addr: peer_addr.to_owned(),
            client_addr: client_addr.to_owned(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        use d_engine_storage::Admission as Stored;
        let founded = if self.members.is_empty() {
            Membership::new([voter(self.own_id(), peer_addr, client_addr)])?
        } else {
            let voters = self.members.iter();
            Membership::new(voters.map(|one| voter(one.id, &one.peer_addr, &one.client_addr)))?
        };
        let mut addresses = founded.members().iter().map(|member| &member.peer_addr);
        // A node without an address may be given one later, which need not be on loopback.
        let is_local = addresses.all(|address| d_engine_storage::address::is_loopback(address));
        Ok(founded.with_admission(match self.admission {
            Some(Admission::Open) => Stored::Open,
            None if is_local => Stored::Open,
            _ => Stored::Invited,
        }))
    }

    fn own_member(&self) -> Option<&MemberConfig> {
        self.members.iter().find(|member| member.id == self.own_id())
    }

    /// The addresses of this node in `members`, for other nodes and for clients.
    pub(crate) fn listed_addresses(&self) -> (Option<String>, Option<String>) {
        let own = self.own_member();
        own.map(|member| (member.peer_addr.clone(), member.client_addr.clone())).unzip()
    }

    /// Whether the node listens for other nodes.
    pub(crate) fn listens_for_peers(&self) -> bool {
        !self.members.is_empty() || !self.join.is_empty() || self.peer_listen.is_some()
    }

    /// The id of a node that does not join.
    pub(crate) fn own_id(&self) -> u64 {
        self.node_id.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests;
