//! What a run is like: cluster size, load, and how hard each fault hits. Drawn from the seed, every
//! class of faults switched off in about half of the runs ("swarm testing"): a run that is all
//! storm never reaches the states that need calm.

use crate::limits::LimitProfile;
use crate::links::LinkProfile;
use crate::prng::Prng;
use crate::program::ProgramProfile;
use crate::snapshot_profile::SnapshotProfile;
use crate::world_standing::StandingProfile;

/// One millisecond in the simulator's nanoseconds.
pub(crate) const MS: u64 = 1_000_000;
/// One second.
pub(crate) const SECOND: u64 = 1_000 * MS;

/// The intensities of one run. Times are in simulated nanoseconds, chances in millionths.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Voters in the cluster.
    pub nodes: u64,
    /// Clients calling at the same time.
    pub clients: u64,
    /// Keys they fight over.
    pub keys: u64,
    /// Mean pause of a client between two operations.
    pub client_pause: u64,
    /// How long a client waits for an answer.
    pub client_patience: u64,
    /// Chance that a client falls silent for a long while.
    pub quiet: u64,
    /// Chance that a message is lost.
    pub drop: u64,
    /// Chance that a message arrives twice.
    pub duplicate: u64,
    /// Chance that an old message arrives again.
    pub museum: u64,
    /// Chance that a message takes 1 to 20 election timeouts.
    pub long_delay: u64,
    /// The shortest delay of a message.
    pub delay_base: u64,
    /// The mean of the delay's tail.
    pub delay_tail: u64,
    /// Mean time between partitions; zero for none.
    pub partition_every: u64,
    /// Mean length of a partition.
    pub partition_length: u64,
    /// Mean time between crashes; zero for none.
    pub crash_every: u64,
    /// Mean time until a crashed node is started again.
    pub crash_length: u64,
    /// Chance that a crash hits in the middle of a log write.
    pub crash_in_write: u64,
    /// Chance that a crash hits all nodes at once.
    pub crash_all: u64,
    /// Chance that a starting node crashes in the middle of recovery.
    pub crash_in_recovery: u64,
    /// Mean time between pauses of a node; zero for none.
    pub pause_every: u64,
    /// Mean length of a pause.
    pub pause_length: u64,
    /// Mean time between requests to hand leadership over; zero for none.
    pub transfer_every: u64,
    /// Mean time between breaks of connections; zero for none.
    pub reconnect_every: u64,
    /// Mean length of a log sync.
    pub sync_mean: u64,
    /// Chance that a sync stalls for 1 to 10 election timeouts.
    pub sync_stall: u64,
    /// Chance that a log write or sync fails.
    pub disk_error: u64,
    /// Mean length of an apply job.
    pub apply_mean: u64,
    /// How far a node's clock may run from true time, in millionths.
    pub clock_drift: u64,
    /// The drift that the nodes are told to reckon with, in percent; leases are shorter by it.
    pub clock_drift_percent_max: u32,
    /// Chance, per second and node, that the wall clock jumps.
    pub clock_jump: u64,
    /// Bytes of a log segment.
    pub segment_bytes: u64,
    /// Whether write groups begin at 512-byte boundaries instead of 4096-byte ones.
    pub sector_aligned: bool,
    /// Bytes of recent entries that a node keeps in memory.
    pub cache_bytes: usize,
    /// Largest append message in payload bytes.
    pub append_bytes: u64,
    /// Bytes of a value.
    pub value_bytes: u64,
    /// Snapshots, purging and transfers.
    pub snapshots: SnapshotProfile,
    /// Connections and bandwidth.
    pub links: LinkProfile,
    /// Limits, and what reaches them.
    pub limits: LimitProfile,
    /// Programs of several versions.
    pub programs: ProgramProfile,
    /// Whether only a minority's wall clocks jump.
    pub clock_minority: bool,
    /// Whether log time must bear a minority of wrong wall clocks.
    pub log_time_is_anchored: bool,
    /// Mean time between hangs of a disk or a state machine; zero for none.
    pub hang_every: u64,
    /// Mean time between orderly shutdowns; zero for none.
    pub stop_every: u64,
    /// Mean time until a disk is full again; zero for never.
    pub fill_every: u64,
    /// Free bytes below which a node refuses commands.
    pub min_free_bytes: u64,
    /// Commands that stop state machines.
    pub standing: StandingProfile,
    /// Whether a leader whose disk or machine hangs must give way.
    pub slow_is_dead: bool,
    /// Whether loads under way and messages that wait for the disk are held to their bounds.
    pub judges_bounds: bool,
    /// Whether bytes sent are compared with bytes stored.
    pub judges_traffic: bool,
}

/// Judged once the core no longer sends again what is only slow.
const JUDGES_TRAFFIC: bool = true;
/// Judged once a leader that hangs gives way.
const SLOW_IS_DEAD: bool = true;
/// Judged once a follower has one load at most.
const JUDGES_BOUNDS: bool = true;
/// Judged once log time is anchored to a quorum's clocks.
const LOG_TIME_IS_ANCHORED: bool = true;

impl Profile {
    /// The profile of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "profile");
        // Each class is on in half of the runs, and then anywhere from mild to wild.
        let mut on = |from: u64, to: u64| if prng.chance(500_000) { prng.between(from, to) } else { 0 };
        let (drop, duplicate, museum) = (on(1_000, 300_000), on(1_000, 100_000), on(500, 10_000));
        let (long_delay, partition_every) = (on(500, 10_000), on(SECOND / 2, 15 * SECOND));
        let (crash_every, crash_all) = (on(SECOND / 2, 15 * SECOND), on(20_000, 200_000));
        let (crash_in_write, crash_in_recovery) = (on(200_000, 900_000), on(50_000, 500_000));
        let (pause_every, sync_stall) = (on(SECOND, 15 * SECOND), on(100, 10_000));
        let (disk_error, quiet) = (on(200, 5_000), on(10_000, 50_000));
        let (mut clock_drift, clock_jump) = (on(10_000, 100_000), on(10_000, 200_000));
        let transfer_every = on(SECOND / 2, 15 * SECOND);
        let reconnect_every = on(SECOND / 5, 10 * SECOND);
        // The bound is what the clocks do, and no more. Clocks beyond any bound worth having: no lease.
        let mut clock_drift_percent_max = u32::try_from(clock_drift.div_ceil(10_000)).unwrap_or(100);
        if prng.chance(100_000) {
            (clock_drift, clock_drift_percent_max) = (prng.between(100_000, 500_000), 100);
        }
        let nodes = size(prng.below(20));
        let (rare, full) = (rare(seed), full(seed));
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        let profile = Self {
            nodes,
            clients: upto(1, 6),
            keys: upto(2, 8),
            client_pause: upto(20, 400) * MS,
            client_patience: upto(50, 5_000) * MS,
            quiet,
            drop,
            duplicate,
            museum,
            long_delay,
            delay_base: upto(100, 5_000) * 1_000,
            delay_tail: upto(10, 40_000) * 1_000,
            partition_every,
            partition_length: upto(50, 10_000) * MS,
            crash_every,
            crash_length: upto(5, 8_000) * MS,
            crash_in_write,
            crash_all,
            crash_in_recovery,
            pause_every,
            pause_length: upto(50, 10_000) * MS,
            transfer_every,
            reconnect_every,
            sync_mean: upto(50, 20_000) * 1_000,
            sync_stall,
            disk_error,
            apply_mean: upto(10, 20_000) * 1_000,
            clock_drift,
            clock_drift_percent_max,
            clock_jump,
            segment_bytes: upto(8, 64) << 10,
            sector_aligned: upto(0, 1) == 1,
            cache_bytes: usize::try_from(upto(1, 64) << 10).unwrap_or(1 << 10),
            append_bytes: upto(1, 64) << 7,
            value_bytes: upto(8, 600),
            snapshots: SnapshotProfile::of(seed),
            links: LinkProfile::of(seed),
            limits: LimitProfile::of(seed),
            programs: ProgramProfile::of(seed),
            clock_minority: rare.2,
            log_time_is_anchored: LOG_TIME_IS_ANCHORED,
            hang_every: rare.0,
            stop_every: rare.1,
            fill_every: full.0,
            min_free_bytes: full.1,
            standing: StandingProfile::of(seed),
            slow_is_dead: SLOW_IS_DEAD,
            judges_bounds: JUDGES_BOUNDS,
            judges_traffic: JUDGES_TRAFFIC,
        };
        if profile.snapshots.storm {
            profile.stormy(&mut Prng::stream(seed, "snapshot storm"))
        } else {
            profile
        }
    }

    /// A load under which whoever is away for a second or two needs a snapshot, and somebody often is.
    fn stormy(self, prng: &mut Prng) -> Self {
        let transfer_every = prng.below(2) * prng.between(SECOND / 2, 4 * SECOND);
        let (crash_every, sync_stall) =
            (prng.below(2) * prng.between(SECOND, 8 * SECOND), prng.below(2) * prng.between(500, 5_000));
        Self {
            nodes: self.nodes.max(3),
            clients: prng.between(3, 6),
            client_pause: prng.between(10, 100) * MS,
            client_patience: prng.between(200, 2_000) * MS,
            partition_every: prng.between(SECOND, 6 * SECOND),
            partition_length: prng.between(300, 4_000) * MS,
            crash_every,
            crash_length: prng.between(100, 4_000) * MS,
            sync_stall,
            transfer_every,
            ..self
        }
    }
}

/// The voters of a cluster: mostly three.
const fn size(drawn: u64) -> u64 {
    match drawn {
        0 | 1 => 1,
        2 => 2,
        3..=13 => 3,
        14 => 4,
        15..=18 => 5,
        _ => 7,
    }
}

/// Mean times between hangs and between orderly shutdowns, and whether only a minority's clocks jump; from a stream of their own.
fn rare(seed: u64) -> (u64, u64, bool) {
    let mut prng = Prng::stream(seed, "hangs and stops");
    let mut on = |from: u64, to: u64| if prng.chance(400_000) { prng.between(from, to) } else { 0 };
    let (hang, stop) = (on(3 * SECOND, 20 * SECOND), on(SECOND, 15 * SECOND));
    (hang, stop, prng.chance(500_000))
}

/// Mean time between full disks, and the free bytes below which commands are refused; from a stream of their own.
fn full(seed: u64) -> (u64, u64) {
    let mut prng = Prng::stream(seed, "full disks");
    let every = if prng.chance(300_000) { prng.between(2 * SECOND, 15 * SECOND) } else { 0 };
    (every, prng.below(2) * prng.between(1, 32 << 10))
}

impl Profile {
    /// How much earlier than its time a key may expire, in milliseconds; `None` where no promise holds.
    #[must_use]
    pub(crate) fn expiry_tolerance_ms(&self) -> Option<u64> {
        // One for rounding down.
        match (self.clock_jump > 0, self.log_time_is_anchored) {
            (false, false) => Some(1),
            (true, false) => None,
            (true, true) if !(self.clock_minority && self.nodes >= 3) => None,
            // `max_clock_offset_ms`, and what a leader's clock gains or loses between two looks at the others'.
            (_, true) => Some(1_001 + self.clock_drift * 60_000 / 1_000_000),
        }
    }

    /// Judges every rule, also those that the product is known not to keep yet.
    pub fn judge_all(&mut self) {
        (self.judges_traffic, self.slow_is_dead, self.judges_bounds) = (true, true, true);
        self.log_time_is_anchored = true;
    }
}
