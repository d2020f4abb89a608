//! The settings of the algorithm.

use core::fmt;
use core::time::Duration;

use crate::nanos;

/// The settings of the algorithm; the same on every node of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CoreConfig {
    /// The interval of a leader's heartbeats.
    pub heartbeat_interval: Duration,
    /// The shortest election timeout, and the vote stickiness: the time in which a node that has
    /// heard a leader grants no vote (Raft thesis, section 4.2.3).
    pub election_timeout_min: Duration,
    /// Election timeouts are drawn below this. Also the time after which a leader that hears no
    /// quorum steps down (check-quorum, Raft thesis, section 6.2).
    pub election_timeout_max: Duration,
    /// Payload bytes in one append message. One entry is always sent, whatever its size.
    pub append_bytes_max: u64,
    /// Entries in one append message.
    pub append_entries_max: u64,
    /// Payload bytes in flight to one follower: sent and not yet acknowledged.
    pub inflight_bytes_max: u64,
    /// Append messages in flight to one follower.
    pub inflight_appends_max: usize,
    /// Uncommitted bytes in the leader's log: payloads, and 64 for each entry. Beyond it proposals
    /// are refused with [`crate::Rejected::TooMuchUncommitted`].
    pub uncommitted_bytes_max: u64,
    /// Reads waiting for confirmation. Beyond it reads are refused.
    pub waiting_reads_max: usize,
    /// By how many percent the rate of any node's monotonic clock may differ from true time. Lease
    /// reads are linearizable only within this bound; 100 or more turns the lease off.
    pub clock_drift_percent_max: u32,
    /// How far apart the wall clocks of a quorum may be and still be accepted; see
    /// [`crate::ClockState`].
    pub max_clock_offset: Duration,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: Duration::from_millis(100),
            election_timeout_min: Duration::from_millis(500),
            election_timeout_max: Duration::from_millis(1000),
            append_bytes_max: 256 << 10,
            append_entries_max: 4096,
            inflight_bytes_max: 4 << 20,
            inflight_appends_max: 64,
            uncommitted_bytes_max: 64 << 20,
            waiting_reads_max: 65_536,
            clock_drift_percent_max: 10,
            max_clock_offset: Duration::from_millis(1000),
        }
    }
}

/// Why a configuration of the algorithm is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum CoreConfigError {
    /// The heartbeat interval is zero.
    NoHeartbeat,
    /// The shortest election timeout is less than twice the heartbeat interval: one late heartbeat
    /// would start an election.
    TimeoutTooShort,
    /// The longest election timeout is not above the shortest: candidates would never spread.
    NoSpread,
    /// A limit is zero, so nothing could ever be sent.
    ZeroLimit,
}

impl fmt::Display for CoreConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoHeartbeat => "the heartbeat interval is zero; it must be positive",
            Self::TimeoutTooShort => {
                "the minimum election timeout is less than twice the heartbeat interval; raise it"
            }
            Self::NoSpread => "the maximum election timeout is not above the minimum; raise it",
            Self::ZeroLimit => "a limit is zero; every limit must be positive",
        })
    }
}

impl core::error::Error for CoreConfigError {}

impl CoreConfig {
    /// How long a lease lasts from the sending of its round, by the leader's clock. The members
    /// that replied grant no vote for at least `stickiness` by their clocks, which may run fast
    /// while the leader's runs slow.
    #[must_use]
    pub fn lease_duration(&self, stickiness: Duration) -> Duration {
        let drift = u64::from(self.clock_drift_percent_max.min(100));
        let timeout = nanos(stickiness);
        Duration::from_nanos(timeout / (100 + drift) * (100 - drift))
    }

    /// Checks the settings against each other.
    ///
    /// # Errors
    /// The first rule that is violated; correct the setting that it names.
    pub fn validate(&self) -> Result<(), CoreConfigError> {
        if self.heartbeat_interval == Duration::ZERO {
            return Err(CoreConfigError::NoHeartbeat);
        }
        if self.election_timeout_min < self.heartbeat_interval.saturating_mul(2) {
            return Err(CoreConfigError::TimeoutTooShort);
        }
        if self.election_timeout_max <= self.election_timeout_min {
            return Err(CoreConfigError::NoSpread);
        }
        if self.append_bytes_max == 0
            || self.append_entries_max == 0
            || self.inflight_bytes_max == 0
            || self.inflight_appends_max == 0
            || self.uncommitted_bytes_max == 0
            || self.waiting_reads_max == 0
            || self.max_clock_offset == Duration::ZERO
        {
            return Err(CoreConfigError::ZeroLimit);
        }
        Ok(())
    }
}
