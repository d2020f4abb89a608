//! One run of the simulator. A phase with faults, in which no rule may be broken, is followed by a
//! calm phase without faults, in which the cluster must recover.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::clients::LONGEST_TTL_MS;
use crate::faults::{Counts, Sometimes};
use crate::monitors::violation::{Rule, Violation};
use crate::profile::Profile;
use crate::reduction::{Disturbance, Reduction};
use crate::scenarios::removed::come_back;
use crate::scenarios::trials::trial;
use crate::time::{MS, SECOND};
use crate::trace::Trace;
use crate::world::World;
use crate::world::script::{Script, Step};

/// Options of a run.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Simulated seconds of faults.
    pub seconds: u64,
    /// Whether the recovered cluster then has to keep working while one component is slow.
    pub trials: bool,
    /// Whether to check also the rules that the engine is known to break.
    pub all_rules: bool,
    /// Whether the members of the cluster change in every run, and not only in half of them.
    pub members: bool,
    /// Whether to record a readable trace.
    pub trace: bool,
    /// A rare state whose first visit counts as a broken rule.
    pub fail_on: Option<Sometimes>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            seconds: 30,
            trials: true,
            all_rules: false,
            members: false,
            trace: false,
            fail_on: None,
        }
    }
}

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first rule that was broken, or `None`.
    pub finding: Option<Finding>,
    /// How often each fault occurred and each rare state was reached.
    pub counts: Counts,
    /// Simulated seconds, including the calm phase at the end.
    pub simulated_seconds: u64,
    /// Events handled.
    pub events: u64,
    /// Leaders elected.
    pub elections: u64,
    /// Number of client operations answered, refused, and of unknown outcome.
    pub operations: (u64, u64, u64),
    /// Entries committed.
    pub committed: u64,
    /// Hash of all events of the run. Two runs of one seed have the same hash.
    pub trace_hash: u64,
    /// The readable trace; empty unless [`RunOptions::trace`] is set.
    pub trace: Vec<String>,
    /// The numbered faults of a reduced run; otherwise empty.
    pub faults: Vec<Step>,
}

/// A broken rule.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Simulated time of the finding, in nanoseconds.
    pub at: u64,
    /// The rule, and what broke it.
    pub violation: Violation,
}

/// Runs one seed with the profile that is drawn from it.
#[must_use]
pub fn run(seed: u64, options: RunOptions) -> Report {
    run_as(seed, profile_of(seed, options), options)
}

/// Runs one seed with the given profile instead of the one drawn from the seed.
#[must_use]
pub fn run_as(seed: u64, profile: Profile, options: RunOptions) -> Report {
    execute(seed, profile, options, None, Script::default()).0
}

/// Runs a part of a seed's run. The whole run is run first, because it determines the numbers,
/// times and details of faults and calls.
#[must_use]
pub fn run_reduced(seed: u64, options: RunOptions, reduction: &Reduction) -> Report {
    let (_, record) = record(seed, RunOptions { trace: false, ..options });
    follow(seed, options, &record, reduction)
}

/// Runs one seed, and records its faults and calls.
pub(crate) fn record(seed: u64, options: RunOptions) -> (Report, Script) {
    execute(seed, profile_of(seed, options), options, None, Script::record())
}

/// Runs a part of the run that was recorded.
pub(crate) fn follow(
    seed: u64,
    options: RunOptions,
    record: &Script,
    reduction: &Reduction,
) -> Report {
    let mut profile = profile_of(seed, options);
    reduction.remove_from(&mut profile);
    let trials = options.trials && reduction.has(Disturbance::Trial);
    let options = RunOptions { trials, ..options };
    execute(seed, profile, options, reduction.until, record.reduced(reduction)).0
}

/// The profile with which [`run`] runs a seed.
#[must_use]
pub fn profile_of(seed: u64, options: RunOptions) -> Profile {
    let mut profile = Profile::of(seed);
    if options.members {
        profile = profile.with_changing_members(seed);
    }
    if options.all_rules {
        profile.judge_all();
    }
    profile
}

fn execute(
    seed: u64,
    profile: Profile,
    options: RunOptions,
    until: Option<u64>,
    script: Script,
) -> (Report, Script) {
    let trace = if options.trace { Trace::readable() } else { Trace::default() };
    let mut world = World::new(seed, profile, trace, script);
    world.fail_on = options.fail_on;
    let end = world.now + options.seconds * SECOND;
    let end = until.map_or(end, |until| until.min(end));
    let outcome = catch_unwind(AssertUnwindSafe(|| phases(&mut world, seed, end, options)));
    let violation = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(violation)) => Some(violation),
        Err(panic) => {
            Some(Violation::of(Rule::Panic, format_args!("{}", panic_text(panic.as_ref()))))
        }
    };
    let report = Report {
        seed,
        finding: violation.map(|violation| Finding { at: world.now, violation }),
        simulated_seconds: world.now / SECOND,
        events: world.events,
        elections: world.elections,
        operations: (world.clients.succeeded, world.clients.refused, world.clients.unknown),
        committed: world.monitors.committed.len(),
        trace_hash: world.trace.hash(),
        trace: world.trace.lines().to_vec(),
        counts: world.counts,
        faults: world.script.happened(),
    };
    (report, world.script)
}

/// Time within which the calm cluster must have a leader: ten election timeouts.
const LEADER_WITHIN: u64 = 10 * SECOND;

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn phases(world: &mut World, seed: u64, end: u64, options: RunOptions) -> Result<(), Violation> {
    world.run_until(end.max(world.now))?;
    world.clients.close();
    world.heal();
    world.trace.note(world.now, format_args!("all faults are over"));
    recover(world)?;
    check_membership(world)?;
    if options.trials {
        trial(world, seed)?;
        recover(world)?;
    }
    come_back(world)?;
    expire(world)?;
    world.monitors.traffic.check(&world.profile)?;
    world.clients.judge()?;
    let Some(tolerance_ms) = world.profile.expiry_tolerance_ms() else { return Ok(()) };
    let alone_since = world.monitors.log_times.alone_since;
    let alone_since = alone_since.filter(|_| world.profile.clock_jump > 0);
    if alone_since.is_some() {
        world.counts.reached(Sometimes::LogTimeAlone);
    }
    world.clients.expiring.judge(tolerance_ms, alone_since)
}

/// Checks that the cluster recovers after the faults: it has a leader within ten election
/// timeouts, and then every node reaches the same state. Messages that were delayed for many
/// election timeouts may still arrive in this phase.
fn recover(world: &mut World) -> Result<(), Violation> {
    let healed_at = world.now;
    let mut leader_at = None;
    while world.now < healed_at + 60 * SECOND {
        world.run_until(world.now + 50 * MS)?;
        let leader = world.leader();
        if leader.is_some() && leader_at.is_none() {
            leader_at = Some(world.now);
        }
        if leader_at.is_none() && world.now > healed_at + LEADER_WITHIN {
            return Rule::Liveness.broken(format_args!(
                "no leader within {} s after the faults ended",
                LEADER_WITHIN / SECOND
            ));
        }
        if leader.is_some_and(|leader| all_equal(world, leader)) {
            return Ok(());
        }
    }
    let describe = |node: &crate::world::node::Node| match &node.running {
        None => format!("node {} is down", node.id),
        Some(it) => {
            let status = it.replica.status();
            format!(
                "waiting commands and reads: {:?}; applied {}; {:?}",
                it.replica.callers(),
                status.applied,
                status.core
            )
        }
    };
    let state: Vec<String> = world.nodes.iter().map(describe).collect();
    let waited = leader_at.map_or_else(
        || "no leader".to_owned(),
        |at| format!("a leader after {} ms", (at - healed_at) / MS),
    );
    Rule::Liveness.broken(format_args!(
        "the cluster did not recover within 60 s ({waited}): {}",
        state.join("\n")
    ))
}

/// Checks that every request for a change of the members has reached its goal.
fn check_membership(world: &World) -> Result<(), Violation> {
    let leading = world.leader().and_then(|leader| world.running(leader));
    let monitors = &world.monitors;
    match leading {
        Some(it) => monitors.intents.check_end(it.replica.membership(), &monitors.memberships),
        None => Ok(()),
    }
}

/// Checks that keys with a time to live also expire on an idle cluster, on all nodes alike. The
/// check is skipped where the wall clocks of a majority may jump by days: log time may then stand
/// still for as long.
fn expire(world: &mut World) -> Result<(), Violation> {
    if world.profile.expiry_tolerance_ms().is_none() {
        return Ok(());
    }
    // Log time follows the leader's monotonic clock, which may be the slowest one.
    let slowest = 1_000_000_u64.saturating_sub(world.profile.clock_drift).max(1);
    world.run_until(world.now + (LONGEST_TTL_MS + 2_000) * MS / slowest * 1_000_000)?;
    let waits = |node: &&crate::world::node::Node| {
        node.running.as_ref().is_some_and(|it| it.machine.next_expiry_ms().is_some())
    };
    let leads = world.leader();
    let members = leads.map(|leader| world.members_of(leader)).unwrap_or_default();
    match world.nodes.iter().filter(|node| members.contains(&node.id)).find(waits) {
        Some(node) => Rule::Expiry
            .broken(format_args!("node {} still holds keys that should have expired", node.id)),
        None if world.leader().is_some_and(|leader| all_equal(world, leader)) => Ok(()),
        None => Rule::Expiry.broken(format_args!("the nodes differ after keys have expired")),
    }
}

fn all_equal(world: &World, leader: u64) -> bool {
    let Some(leading) =
        world.nodes.iter().find(|node| node.id == leader).and_then(|node| node.running.as_ref())
    else {
        return false;
    };
    let log = leading.replica.core().log();
    let membership = leading.replica.membership();
    let members = world.members_of(leader);
    world.operator.joiners.is_empty()
        && log.committed == log.last.index
        && !membership.is_joint()
        && !membership.has_intents()
        && world.nodes.iter().filter(|node| members.contains(&node.id)).all(|node| {
            node.running.as_ref().is_some_and(|it| {
                let core = it.replica.core();
                !it.replica.has_callers()
                    && core.log().last == log.last
                    && core.log().committed == log.committed
                    && it.replica.applied() == log.committed
                    && core.term() == leading.replica.core().term()
                    && it.machine.state_hash() == leading.machine.state_hash()
            })
        })
}
