//! One run: a phase of faults in which nothing may go wrong, then a calm phase in which the cluster
//! must recover.

use std::panic::{AssertUnwindSafe, catch_unwind};

use d_engine_core::RoleKind;

use crate::clients::LONGEST_TTL_MS;
use crate::faults::Counts;
use crate::profile::{MS, Profile, SECOND};
use crate::trace::Trace;
use crate::trials::trial;
use crate::world::World;

/// How a run is made.
#[derive(Clone, Copy, Debug)]
pub struct RunOptions {
    /// Simulated seconds of faults.
    pub seconds: u64,
    /// Whether, after the cluster has recovered, one thing is slow while writes go on.
    pub trials: bool,
    /// Whether rules are judged too that the product is known not to keep yet.
    pub all_rules: bool,
    /// Whether to keep a readable trace.
    pub trace: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self { seconds: 30, trials: true, all_rules: false, trace: false }
    }
}

/// What a run has shown.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What went wrong, if anything did.
    pub finding: Option<Finding>,
    /// Faults and rare states.
    pub counts: Counts,
    /// Simulated seconds, the calm at the end included.
    pub simulated_seconds: u64,
    /// Events handled.
    pub events: u64,
    /// Leaders elected.
    pub elections: u64,
    /// Client operations answered, refused, and of unknown outcome.
    pub operations: (u64, u64, u64),
    /// Entries committed.
    pub committed: u64,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// The readable trace, if it was asked for.
    pub trace: Vec<String>,
}

/// A rule that was broken.
#[derive(Clone, Debug)]
pub struct Finding {
    /// When, in simulated nanoseconds.
    pub at: u64,
    /// The rule and what broke it.
    pub what: String,
}

/// Runs one seed.
#[must_use]
pub fn run(seed: u64, options: RunOptions) -> Report {
    let mut profile = Profile::of(seed);
    if options.all_rules {
        profile.judge_all();
    }
    run_as(seed, profile, options)
}

/// Runs one seed under a profile of the caller's own.
#[must_use]
pub fn run_as(seed: u64, profile: Profile, options: RunOptions) -> Report {
    let trace = if options.trace { Trace::readable() } else { Trace::default() };
    let mut world = World::new(seed, profile, trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| phases(&mut world, seed, options)));
    let what = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(what),
        Err(panic) => Some(format!("panic: {}", panic_text(panic.as_ref()))),
    };
    Report {
        seed,
        finding: what.map(|what| Finding { at: world.now, what }),
        simulated_seconds: world.now / SECOND,
        events: world.events,
        elections: world.elections,
        operations: (world.clients.succeeded, world.clients.refused, world.clients.unknown),
        committed: world.monitors.committed_len(),
        trace_hash: world.trace.hash(),
        trace: world.trace.lines().to_vec(),
        counts: world.counts,
    }
}

/// How long the calm cluster may take to find a leader: ten election timeouts.
const LEADER_WITHIN: u64 = 10 * SECOND;

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

fn phases(world: &mut World, seed: u64, options: RunOptions) -> Result<(), String> {
    world.run_until(world.now + options.seconds * SECOND)?;
    world.clients.close();
    world.heal();
    world.trace.note(world.now, format_args!("all faults are over"));
    recover(world)?;
    if options.trials {
        trial(world, seed)?;
        recover(world)?;
    }
    expire(world)?;
    world.monitors.traffic.check(&world.profile)?;
    world.clients.judge()?;
    match world.profile.expiry_tolerance_ms() {
        Some(tolerance_ms) => world.clients.expiring.judge(tolerance_ms),
        None => Ok(()),
    }
}

/// After the faults: a leader within ten election timeouts, and then every node at the same state.
/// Messages that were on their way for many election timeouts may still arrive meanwhile.
fn recover(world: &mut World) -> Result<(), String> {
    let healed_at = world.now;
    let mut leader_at = None;
    while world.now < healed_at + 60 * SECOND {
        world.run_until(world.now + 50 * MS)?;
        let leader = leader(world);
        if leader.is_some() && leader_at.is_none() {
            leader_at = Some(world.now);
        }
        if leader_at.is_none() && world.now > healed_at + LEADER_WITHIN {
            return Err(format!("liveness: no leader {} s after the faults", LEADER_WITHIN / SECOND));
        }
        if leader.is_some_and(|leader| all_equal(world, leader)) {
            return Ok(());
        }
    }
    let describe = |node: &crate::node::Node| match &node.running {
        None => format!("node {} is down", node.id),
        Some(it) => {
            let status = it.replica.status();
            format!("{:?} callers wait; applied {}; {:?}", it.replica.callers(), status.applied, status.core)
        }
    };
    let state: Vec<String> = world.nodes.iter().map(describe).collect();
    let waited = leader_at
        .map_or_else(|| "no leader".to_owned(), |at| format!("leader after {} ms", (at - healed_at) / MS));
    Err(format!("liveness: the cluster does not recover within 60 s ({waited}): {}", state.join("\n")))
}

/// Keys with a time to live vanish from an idle cluster too, from all nodes alike. Where the wall clocks of
/// a majority jump by days, log time may stand still for as long: nothing is asked then.
fn expire(world: &mut World) -> Result<(), String> {
    if world.profile.expiry_tolerance_ms().is_none() {
        return Ok(());
    }
    // Log time goes by the leader's monotonic clock, which may be the slowest.
    let slowest = 1_000_000_u64.saturating_sub(world.profile.clock_drift).max(1);
    world.run_until(world.now + (LONGEST_TTL_MS + 2_000) * MS / slowest * 1_000_000)?;
    let waits = |node: &&crate::node::Node| {
        node.running.as_ref().is_some_and(|it| it.machine.next_expiry_ms().is_some())
    };
    match world.nodes.iter().find(waits) {
        Some(node) => Err(format!("expiry: node {} still holds keys whose time is over", node.id)),
        None if leader(world).is_some_and(|leader| all_equal(world, leader)) => Ok(()),
        None => Err("expiry: the nodes no longer agree after keys have expired".to_owned()),
    }
}

fn leader(world: &World) -> Option<u64> {
    let leads = |node: &&crate::node::Node| {
        node.running.as_ref().is_some_and(|it| {
            it.replica.core().role() == RoleKind::Leader && it.replica.core().leads_with_commit()
        })
    };
    world.nodes.iter().find(leads).map(|node| node.id)
}

fn all_equal(world: &World, leader: u64) -> bool {
    let Some(leading) =
        world.nodes.iter().find(|node| node.id == leader).and_then(|node| node.running.as_ref())
    else {
        return false;
    };
    let log = leading.replica.core().log();
    log.committed == log.last.index
        && world.nodes.iter().all(|node| {
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
