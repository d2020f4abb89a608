//! The profile of a run: cluster size, load, and how hard each fault hits. It is drawn from the
//! seed, with every class of faults switched off in about half of the runs ("swarm testing"): a run
//! with all faults at once never reaches the states that need calm.

pub(crate) mod limits;
pub(crate) mod links;
pub(crate) mod members;
pub(crate) mod programs;
pub(crate) mod snapshots;
pub(crate) mod standing;

use d_engine_storage::{Member, MemberRole, Membership};

use crate::prng::Prng;
use crate::profile::limits::LimitProfile;
use crate::profile::links::LinkProfile;
use crate::profile::members::MemberProfile;
use crate::profile::programs::ProgramProfile;
use crate::profile::snapshots::SnapshotProfile;
use crate::profile::standing::StandingProfile;
use crate::time::{MS, SECOND};

/// The intensity of each fault and of the load in one run. Times are in simulated nanoseconds,
/// chances in millionths.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Nodes, members of the cluster or not.
    pub nodes: u64,
    /// Changes of the members.
    pub members: MemberProfile,
    /// Number of clients that call at the same time.
    pub clients: u64,
    /// Number of keys that the clients use.
    pub keys: u64,
    /// Mean pause of a client between two operations.
    pub client_pause: u64,
    /// Timeout of a client's operation.
    pub client_timeout: u64,
    /// Chance that a client makes no calls for a long while.
    pub quiet: u64,
    /// Chance that a message is lost.
    pub drop: u64,
    /// Chance that a message arrives twice.
    pub duplicate: u64,
    /// Chance that an old message arrives again.
    pub museum: u64,
    /// Chance that a message is delayed by 1 to 20 election timeouts.
    pub long_delay: u64,
    /// Shortest delay of a message.
    pub delay_base: u64,
    /// Mean of the tail of the delay.
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
    /// Chance that a crash hits in the middle of the log's idle work, where nodes crash.
    pub crash_in_idle: u64,
    /// Chance that a crash hits all nodes at once.
    pub crash_all: u64,
    /// Chance that a starting node crashes in the middle of recovery.
    pub crash_in_recovery: u64,
    /// Chance that a node's log is damaged and mended before a start, in half of the runs.
    pub log_damage: u64,
    /// Mean time between pauses of a node; zero for none.
    pub pause_every: u64,
    /// Mean length of a pause.
    pub pause_length: u64,
    /// Mean time between requests to transfer leadership; zero for none.
    pub transfer_every: u64,
    /// Whether all clients call one of two leaders while there are two.
    pub rush: bool,
    /// Mean time between breaks of connections; zero for none.
    pub reconnect_every: u64,
    /// Mean duration of a log sync.
    pub sync_mean: u64,
    /// Chance that a sync stalls for 1 to 10 election timeouts.
    pub sync_stall: u64,
    /// Chance that a log write or sync fails.
    pub disk_error: u64,
    /// Mean duration of an apply job.
    pub apply_mean: u64,
    /// How much faster or slower than true time a node's clock may run, in millionths.
    pub clock_drift: u64,
    /// The setting of the nodes for the maximum drift, in percent. Leases are shorter by it.
    pub clock_drift_percent_max: u32,
    /// Chance, per second and node, that the wall clock jumps.
    pub clock_jump: u64,
    /// Size of a log segment, in bytes.
    pub segment_bytes: u64,
    /// Whether write groups begin at 512-byte boundaries instead of 4096-byte ones.
    pub sector_aligned: bool,
    /// Size of a node's cache of recent entries, in bytes.
    pub cache_bytes: usize,
    /// Largest append message in payload bytes.
    pub append_bytes: u64,
    /// Size of a value, in bytes.
    pub value_bytes: u64,
    /// Snapshots: taking and sending them, and purging the log.
    pub snapshots: SnapshotProfile,
    /// Connections and bandwidth.
    pub links: LinkProfile,
    /// Limits, and the load that reaches them.
    pub limits: LimitProfile,
    /// Programs of several versions.
    pub programs: ProgramProfile,
    /// Whether only a minority's wall clocks jump.
    pub clock_minority: bool,
    /// Whether to check that log time tolerates a minority of wrong wall clocks.
    pub log_time_is_anchored: bool,
    /// Mean time between hangs of a disk or a state machine; zero for none.
    pub hang_every: u64,
    /// Mean time between orderly shutdowns; zero for none.
    pub stop_every: u64,
    /// Mean time between two episodes of a full disk; zero for none.
    pub fill_every: u64,
    /// Free disk space below which a node refuses commands, in bytes.
    pub min_free_bytes: u64,
    /// Commands that halt state machines.
    pub standing: StandingProfile,
    /// Whether to check that a leader whose disk or state machine hangs steps down.
    pub slow_is_dead: bool,
    /// Whether to check the bounds on loads under way and on messages that wait for the disk.
    pub judges_bounds: bool,
    /// Whether to compare bytes sent with bytes stored.
    pub judges_traffic: bool,
}

/// Checked because the core does not resend what is only slow.
const JUDGES_TRAFFIC: bool = true;
/// Checked because a leader whose disk or state machine hangs steps down.
const SLOW_IS_DEAD: bool = true;
/// Checked because a follower has at most one load under way.
const JUDGES_BOUNDS: bool = true;
/// Checked because log time is anchored to the clocks of a quorum.
const LOG_TIME_IS_ANCHORED: bool = true;

impl Profile {
    /// Draws the profile of a seed. In half of the runs the members of the cluster change.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let profile = Self::with_fixed_members(seed);
        match MemberProfile::changes_in(seed) {
            true => profile.with_changing_members(seed),
            false => profile,
        }
    }

    fn with_fixed_members(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "profile");
        let profile = Self::without_faults(seed).with_faults(&mut prng).with_load(&mut prng);
        if profile.snapshots.storm {
            profile.stormy(&mut Prng::stream(seed, "snapshot storm"))
        } else {
            profile
        }
    }

    /// Returns a profile without clients, and with those faults only that have streams of their
    /// own.
    fn without_faults(seed: u64) -> Self {
        let (rare, full) = (rare(seed), full(seed));
        Self {
            nodes: 0,
            members: MemberProfile::default(),
            clients: 0,
            keys: 0,
            client_pause: 0,
            client_timeout: 0,
            quiet: 0,
            drop: 0,
            duplicate: 0,
            museum: 0,
            long_delay: 0,
            delay_base: 0,
            delay_tail: 0,
            partition_every: 0,
            partition_length: 0,
            crash_every: 0,
            crash_length: 0,
            crash_in_write: 0,
            crash_in_idle: 2_000,
            crash_all: 0,
            crash_in_recovery: 0,
            log_damage: 0,
            pause_every: 0,
            pause_length: 0,
            transfer_every: 0,
            reconnect_every: 0,
            rush: true,
            sync_mean: 0,
            sync_stall: 0,
            disk_error: 0,
            apply_mean: 0,
            clock_drift: 0,
            clock_drift_percent_max: 0,
            clock_jump: 0,
            segment_bytes: 0,
            sector_aligned: false,
            cache_bytes: 0,
            append_bytes: 0,
            value_bytes: 0,
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
        }
    }

    /// Draws the faults. Each class is on in half of the runs, with an intensity from mild to
    /// extreme.
    fn with_faults(self, prng: &mut Prng) -> Self {
        let mut on =
            |from: u64, to: u64| if prng.chance(500_000) { prng.between(from, to) } else { 0 };
        let profile = Self {
            drop: on(1_000, 300_000),
            duplicate: on(1_000, 100_000),
            museum: on(500, 10_000),
            long_delay: on(500, 10_000),
            partition_every: on(SECOND / 2, 15 * SECOND),
            crash_every: on(SECOND / 2, 15 * SECOND),
            crash_all: on(20_000, 200_000),
            crash_in_write: on(200_000, 900_000),
            crash_in_recovery: on(50_000, 500_000),
            log_damage: 700_000,
            pause_every: on(SECOND, 15 * SECOND),
            sync_stall: on(100, 10_000),
            disk_error: on(200, 5_000),
            quiet: on(10_000, 50_000),
            clock_drift: on(10_000, 100_000),
            clock_jump: on(10_000, 200_000),
            transfer_every: on(SECOND / 2, 15 * SECOND),
            reconnect_every: on(SECOND / 5, 10 * SECOND),
            ..self
        };
        // The nodes' bound is exactly the drift of the clocks. In a tenth of the runs the drift
        // exceeds every useful bound, and a bound of 100 percent leaves no lease.
        let bound = u32::try_from(profile.clock_drift.div_ceil(10_000)).unwrap_or(100);
        let (clock_drift, clock_drift_percent_max) = match prng.chance(100_000) {
            true => (prng.between(100_000, 500_000), 100),
            false => (profile.clock_drift, bound),
        };
        Self { clock_drift, clock_drift_percent_max, ..profile }
    }

    /// Draws the cluster, its clients, and how long things take.
    fn with_load(self, prng: &mut Prng) -> Self {
        let nodes = size(prng.below(20));
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        Self {
            nodes,
            clients: upto(1, 6),
            keys: upto(2, 8),
            client_pause: upto(20, 400) * MS,
            client_timeout: upto(50, 5_000) * MS,
            delay_base: upto(100, 5_000) * 1_000,
            delay_tail: upto(10, 40_000) * 1_000,
            partition_length: upto(50, 10_000) * MS,
            crash_length: upto(5, 8_000) * MS,
            pause_length: upto(50, 10_000) * MS,
            sync_mean: upto(50, 20_000) * 1_000,
            apply_mean: upto(10, 20_000) * 1_000,
            segment_bytes: upto(8, 64) << 10,
            sector_aligned: upto(0, 1) == 1,
            cache_bytes: usize::try_from(upto(1, 64) << 10).unwrap_or(1 << 10),
            append_bytes: upto(1, 64) << 7,
            value_bytes: upto(8, 600),
            ..self
        }
    }

    /// Returns a load under which a node that is away for a second or two needs a snapshot, with
    /// nodes that are often away.
    fn stormy(self, prng: &mut Prng) -> Self {
        let transfer_every = prng.below(2) * prng.between(SECOND / 2, 4 * SECOND);
        let (crash_every, sync_stall) = (
            prng.below(2) * prng.between(SECOND, 8 * SECOND),
            prng.below(2) * prng.between(500, 5_000),
        );
        Self {
            nodes: self.nodes.max(3),
            clients: prng.between(3, 6),
            client_pause: prng.between(10, 100) * MS,
            client_timeout: prng.between(200, 2_000) * MS,
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

/// Returns the number of voters, mostly three.
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

/// Returns the mean times between hangs and between orderly shutdowns, and whether only a
/// minority's clocks jump. Drawn from a separate stream.
fn rare(seed: u64) -> (u64, u64, bool) {
    let mut prng = Prng::stream(seed, "hangs and stops");
    let mut on = |from: u64, to: u64| if prng.chance(400_000) { prng.between(from, to) } else { 0 };
    let (hang, stop) = (on(3 * SECOND, 20 * SECOND), on(SECOND, 15 * SECOND));
    (hang, stop, prng.chance(500_000))
}

/// Returns the mean time between full disks, and the free space below which commands are refused.
/// Drawn from a separate stream.
fn full(seed: u64) -> (u64, u64) {
    let mut prng = Prng::stream(seed, "full disks");
    let every = if prng.chance(300_000) { prng.between(2 * SECOND, 15 * SECOND) } else { 0 };
    (every, prng.below(2) * prng.between(1, 32 << 10))
}

impl Profile {
    /// Returns how much too early a key may expire, in milliseconds; `None` if nothing is
    /// guaranteed.
    #[must_use]
    pub(crate) fn expiry_tolerance_ms(&self) -> Option<u64> {
        // One millisecond for rounding down.
        match (self.clock_jump > 0, self.log_time_is_anchored) {
            (false, false) => Some(1),
            (true, false) => None,
            (true, true) if !(self.clock_minority && self.nodes >= 3) => None,
            // `max_clock_offset_ms`, and what a leader's clock gains or loses between two
            // comparisons with the other clocks.
            (_, true) => Some(1_001 + self.clock_drift * 60_000 / 1_000_000),
        }
    }

    /// The nodes that are members at the cluster's birth.
    pub(crate) fn members_at_birth(&self) -> u64 {
        if self.members.at_birth == 0 { self.nodes } else { self.members.at_birth }
    }

    /// The membership at the cluster's birth.
    pub(crate) fn founded(&self) -> Membership {
        let members = (1..=self.members_at_birth()).map(|node| Member {
            node,
            peer_addr: format!("sim:{node}"),
            client_addr: format!("sim-client:{node}"),
            role: MemberRole::Voter,
            incarnation: None,
        });
        let founded = Membership::new(members).unwrap_or_default();
        founded.with_admission(self.members.admission)
    }

    /// The profile of a cluster whose members change. Clocks then jump at any node: there are no
    /// nodes that are a minority for the whole run.
    #[must_use]
    pub fn with_changing_members(self, seed: u64) -> Self {
        let members = MemberProfile::changing(seed);
        Self { members, nodes: members.at_birth, clock_minority: false, ..self }
    }

    /// Switches on the checks of all rules, including those that the engine is known to break.
    pub fn judge_all(&mut self) {
        (self.judges_traffic, self.slow_is_dead, self.judges_bounds) = (true, true, true);
        self.log_time_is_anchored = true;
    }
}
