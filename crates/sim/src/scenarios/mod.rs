//! Scripted runs: one thing is slow, and no other fault occurs. They measure figures; they are not
//! searches for bugs.

pub(crate) mod removed;
pub(crate) mod snapshot;
pub(crate) mod trials;

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::RoleKind;
use d_engine_kv::KvCommand;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{Event, Proposal};

use crate::monitors::violation::{Rule, Violation};
use crate::profile::Profile;
use crate::profile::limits::LimitProfile;
use crate::profile::links::LinkProfile;
use crate::profile::members::MemberProfile;
use crate::profile::programs::ProgramProfile;
use crate::profile::snapshots::SnapshotProfile;
use crate::profile::standing::StandingProfile;
use crate::time::{MS, SECOND};
use crate::trace::Trace;
use crate::world::World;
use crate::world::script::Script;

/// A follower that was down, and the entries that it has to receive after its restart.
#[derive(Clone, Copy, Debug)]
pub struct CatchUp {
    /// Bytes of commands that it has missed.
    pub behind_bytes: u64,
    /// Bytes per command.
    pub command_bytes: u64,
    /// Largest append, in payload bytes.
    pub append_bytes: u64,
    /// Bits per second of the follower's links.
    pub bits_per_second: u64,
    /// Whether heartbeats have a connection of their own, so that they do not wait behind appends.
    pub heartbeats_apart: bool,
}

/// The result of `catch_up`.
#[derive(Clone, Copy, Debug)]
pub struct CaughtUp {
    /// Bytes of entries that were sent to it.
    pub sent: u64,
    /// Bytes of entries that it has stored.
    pub useful: u64,
    /// Simulated milliseconds until it had everything; `None` if that took more than twenty times
    /// as long as the link needs.
    pub millis: Option<u64>,
    /// Simulated milliseconds that the link needs for the missed bytes.
    pub link_millis: u64,
}

impl Profile {
    /// Three nodes with default limits on unlimited connections, without faults and without
    /// clients.
    #[must_use]
    pub fn quiet(seed: u64) -> Self {
        let snapshots = SnapshotProfile {
            after_entries: 0,
            asked_every: 0,
            crash_in_step: 0,
            disk_error: 0,
            cut: 0,
            cut_at_end: 0,
            damage: 0,
            durable: 0,
            storm: false,
            ..SnapshotProfile::of(seed)
        };
        Self {
            nodes: 3,
            members: MemberProfile::default(),
            clients: 0,
            drop: 0,
            duplicate: 0,
            museum: 0,
            long_delay: 0,
            delay_base: MS,
            delay_tail: MS / 10,
            partition_every: 0,
            crash_every: 0,
            crash_in_recovery: 0,
            pause_every: 0,
            transfer_every: 0,
            reconnect_every: 0,
            sync_mean: 2 * MS,
            sync_stall: 0,
            disk_error: 0,
            apply_mean: MS,
            clock_drift: 0,
            clock_drift_percent_max: 10,
            clock_jump: 0,
            segment_bytes: 4 << 20,
            cache_bytes: 32 << 20,
            append_bytes: 256 << 10,
            snapshots,
            links: LinkProfile::unlimited(),
            limits: LimitProfile::defaults(),
            programs: ProgramProfile::none(),
            clock_minority: true,
            log_time_is_anchored: false,
            slow_is_dead: false,
            hang_every: 0,
            stop_every: 0,
            standing: StandingProfile::none(),
            judges_bounds: false,
            judges_traffic: false,
            ..Self::of(seed)
        }
    }
}

/// Measures how a follower catches up over a slow link.
///
/// # Errors
/// The rule that was broken, or why the scenario could not be set up.
pub fn catch_up(what: CatchUp) -> Result<CaughtUp, Violation> {
    let profile = Profile { append_bytes: what.append_bytes, ..Profile::quiet(1) };
    let profile = Profile {
        links: LinkProfile {
            // Node 1 is the slow one.
            slow_node_bytes_per_second: what.bits_per_second / 8,
            urgent_apart: what.heartbeats_apart,
            silence: 60 * SECOND,
            ..LinkProfile::unlimited()
        },
        ..profile
    };
    let mut world = World::new(1, profile, Trace::default(), Script::default());
    world.node(1).held_back = true;
    let leader = wait_for_leader(&mut world)?;
    let mut behind = 0;
    let mut number = 0;
    while behind < what.behind_bytes {
        number += 1;
        put(&mut world, leader, number, what.command_bytes)?;
        behind += what.command_bytes;
        world.run_until(world.now + 20 * MS)?;
    }
    world.run_until(world.now + SECOND)?;
    let last = committed(&mut world, leader);
    world.node(1).held_back = false;
    let (started, before) = (world.now, world.monitors.traffic.account(1));
    world.start(1)?;
    let link_millis = what.behind_bytes * 8_000 / what.bits_per_second.max(1);
    let mut millis = None;
    while world.now < started + 20 * link_millis * MS {
        world.run_until(world.now + 10 * MS)?;
        if committed(&mut world, 1) >= last {
            millis = Some((world.now - started) / MS);
            break;
        }
    }
    let account = world.monitors.traffic.account(1);
    Ok(CaughtUp {
        sent: account.sent - before.sent,
        useful: account.useful - before.useful,
        millis,
        link_millis,
    })
}

fn committed(world: &mut World, node: u64) -> u64 {
    let running = world.node(node).running.as_ref();
    running.map_or(0, |it| it.replica.core().log().committed.get())
}

/// Waits for a leader that has committed an entry of its term; returns its id.
///
/// # Errors
/// There is no such leader within ten seconds of simulated time.
pub(crate) fn wait_for_leader(world: &mut World) -> Result<u64, Violation> {
    let until = world.now + 10 * SECOND;
    while world.now < until {
        world.run_until(world.now + 10 * MS)?;
        let leads = |node: &&crate::world::node::Node| {
            node.running.as_ref().is_some_and(|it| {
                it.replica.core().role() == RoleKind::Leader
                    && it.replica.core().leads_with_commit()
            })
        };
        if let Some(leader) = world.nodes.iter().find(leads).map(|node| node.id) {
            return Ok(leader);
        }
    }
    Rule::Liveness.broken(format_args!("no leader within 10 s"))
}

/// The outcome of each command: its number, and whether it was acknowledged.
pub(crate) type Acks = Arc<Mutex<Vec<(u64, bool)>>>;

fn put(world: &mut World, node: u64, number: u64, bytes: u64) -> Result<(), Violation> {
    propose(world, node, number, bytes, &Acks::default())
}

/// Proposes a command at `node`; its outcome goes to `acks`.
pub(crate) fn propose(
    world: &mut World,
    node: u64,
    number: u64,
    bytes: u64,
    acks: &Acks,
) -> Result<(), Violation> {
    let value = Bytes::from(vec![0x5a; usize::try_from(bytes).unwrap_or(0)]);
    let command = KvCommand::put(format!("scenario-{}", number % 16), value).encode();
    let acks = acks.clone();
    let responder = Box::new(move |result: Result<Bytes, _>| {
        acks.lock().unpoisoned().push((number, result.is_ok()));
    });
    world.tell(node, Event::Propose(vec![Proposal::new(command, None, responder)]))
}

/// The effect of one wrong wall clock on keys with a time to live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongClock {
    /// Whether a key that was written before, and had a minute left, exists after the leader with
    /// the wrong clock has written.
    pub kept: bool,
    /// Whether that key is gone once its minute is over.
    pub expired: bool,
    /// Whether a key that was written afterwards, with two seconds to live, is gone four seconds
    /// later.
    pub later_expired: bool,
}

/// Sets one node's wall clock wrong by `offset_ms` (negative: behind), makes it the leader, lets it
/// write, and makes another node the leader again.
///
/// # Errors
/// The rule that was broken, or why the scenario could not be set up.
pub fn wrong_clock(offset_ms: i64) -> Result<WrongClock, Violation> {
    let mut world = World::new(1, Profile::quiet(1), Trace::default(), Script::default());
    world.healed = true;
    let right = wait_for_leader(&mut world)?;
    put_for(&mut world, right, "minute", 60_000)?;
    let wrong = 1 + right % 3;
    let offset = crate::time::RIGHT_TIME_MS.saturating_add_signed(offset_ms);
    world.node(wrong).wall_offset_ms = offset;
    lead(&mut world, right, wrong)?;
    put(&mut world, wrong, 1, 16)?;
    world.run_until(world.now + SECOND)?;
    lead(&mut world, wrong, right)?;
    put(&mut world, right, 2, 16)?;
    world.run_until(world.now + SECOND)?;
    let kept = holds(&mut world, right, "minute");
    put_for(&mut world, right, "later", 2_000)?;
    world.run_until(world.now + 4 * SECOND)?;
    let later_expired = !holds(&mut world, right, "later");
    world.run_until(world.now + 62 * SECOND)?;
    let expired = !holds(&mut world, right, "minute");
    Ok(WrongClock { kept, expired, later_expired })
}

fn put_for(world: &mut World, node: u64, key: &'static str, ttl_ms: u64) -> Result<(), Violation> {
    let options = d_engine_kv::PutOptions::default().ttl(std::time::Duration::from_millis(ttl_ms));
    let command = KvCommand::put_with(key, Bytes::from_static(b"value"), options).encode();
    let responder = Box::new(|_| {});
    world.tell(node, Event::Propose(vec![Proposal::new(command, None, responder)]))?;
    world.run_until(world.now + SECOND)
}

fn holds(world: &mut World, node: u64, key: &str) -> bool {
    world.node(node).running.as_ref().is_some_and(|it| it.machine.get(key.as_bytes()).is_some())
}

/// Exchange leadership from one node to another.
fn lead(world: &mut World, from: u64, to: u64) -> Result<(), Violation> {
    let target = Some(crate::names::node_id(to));
    world.tell(from, Event::TransferLeadership { to: target, responder: Box::new(|_| {}) })?;
    world.run_until(world.now + SECOND)?;
    if world.leads(to) {
        Ok(())
    } else {
        Rule::Liveness.broken(format_args!("node {to} was not made the leader"))
    }
}
