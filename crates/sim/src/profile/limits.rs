//! The limits of a run's nodes, drawn from the seed. Half of the runs have the defaults, the others
//! have limits that are soon reached.

use d_engine_replica::ReplicaConfig;

use crate::prng::Prng;
use crate::time::SECOND;

/// The limits of one run, and the load that reaches them. Times are in simulated nanoseconds.
#[derive(Clone, Debug)]
pub struct LimitProfile {
    /// Entries in one append.
    pub append_entries: u64,
    /// Bytes in flight to one follower.
    pub inflight_bytes: u64,
    /// Appends in flight to one follower.
    pub inflight_appends: usize,
    /// Bytes in the log that are not committed.
    pub uncommitted_bytes: u64,
    /// Reads that wait for confirmation.
    pub waiting_reads: usize,
    /// Commands in flight.
    pub proposals: usize,
    /// Reads in flight.
    pub reads: usize,
    /// Size of the largest command, in bytes.
    pub command_bytes: usize,
    /// Jobs in flight to the apply worker.
    pub apply_jobs: usize,
    /// Entries in one apply job.
    pub apply_entries: u64,
    /// Commands that wait for the raft thread.
    pub inbox_proposals: usize,
    /// Bytes of commands that wait for the raft thread.
    pub inbox_bytes: usize,
    /// Reads that wait for the raft thread.
    pub inbox_reads: usize,
    /// Mean time until the raft thread handles what has arrived. Zero: it handles each event by
    /// itself.
    pub turn_mean: u64,
    /// Mean time between bursts of commands at one node; zero for none.
    pub burst_every: u64,
    /// Commands in a burst.
    pub burst_commands: u64,
    /// Time in milliseconds from the arrival of a command or read to its deadline. Zero: no
    /// deadline.
    pub deadline_ms: u64,
}

impl LimitProfile {
    /// Draws the part of a seed's profile that concerns limits.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "limits");
        let defaults = Self::defaults();
        let small = prng.chance(500_000);
        let turns = prng.chance(600_000);
        let bursts = prng.chance(500_000);
        let deadlines = prng.chance(300_000);
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        let mut few = |from: u64, to: u64| usize::try_from(upto(from, to)).unwrap_or(1);
        let narrow = Self {
            append_entries: few(1, 64) as u64,
            inflight_bytes: (few(1, 64) as u64) << 9,
            inflight_appends: few(1, 8),
            uncommitted_bytes: (few(1, 64) as u64) << 9,
            waiting_reads: few(1, 16),
            proposals: few(1, 64),
            reads: few(1, 16),
            command_bytes: few(64, 4_096),
            apply_jobs: few(1, 3),
            apply_entries: few(1, 32) as u64,
            inbox_proposals: few(1, 64),
            inbox_bytes: few(1, 64) << 8,
            inbox_reads: few(1, 16),
            ..defaults.clone()
        };
        let turn_mean = upto(1, 3_000) * 1_000;
        let (burst_every, burst_commands) = (upto(SECOND / 4, 5 * SECOND), upto(2, 100));
        let deadline_ms = upto(1, 40);
        Self {
            turn_mean: if turns { turn_mean } else { 0 },
            burst_every: if bursts { burst_every } else { 0 },
            burst_commands,
            deadline_ms: if deadlines { deadline_ms } else { 0 },
            ..if small { narrow } else { defaults }
        }
    }

    /// Returns the default limits, which no run reaches, and no load that tries to reach them.
    #[must_use]
    pub fn defaults() -> Self {
        let config = ReplicaConfig::default();
        Self {
            append_entries: config.core.append_entries_max,
            inflight_bytes: config.core.inflight_bytes_max,
            inflight_appends: config.core.inflight_appends_max,
            uncommitted_bytes: config.core.uncommitted_bytes_max,
            waiting_reads: config.core.waiting_reads_max,
            proposals: config.proposals_max,
            reads: config.reads_max,
            command_bytes: config.command_bytes_max,
            apply_jobs: config.apply_jobs_max,
            apply_entries: 16,
            inbox_proposals: 4_096,
            inbox_bytes: 64 << 20,
            inbox_reads: 4_096,
            turn_mean: 0,
            burst_every: 0,
            burst_commands: 1,
            deadline_ms: 0,
        }
    }

    /// Writes the limits into a replica's settings.
    pub(crate) fn set(&self, config: &mut ReplicaConfig) {
        config.core.append_entries_max = self.append_entries;
        config.core.inflight_bytes_max = self.inflight_bytes;
        config.core.inflight_appends_max = self.inflight_appends;
        config.core.uncommitted_bytes_max = self.uncommitted_bytes;
        config.core.waiting_reads_max = self.waiting_reads;
        config.proposals_max = self.proposals;
        config.reads_max = self.reads;
        config.command_bytes_max = self.command_bytes;
        config.apply_jobs_max = self.apply_jobs;
        config.apply_entries_max = self.apply_entries;
    }
}
