//! Scripted runs: one thing is slow, nothing else goes wrong. What they measure is a figure, not a finding.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use d_engine_core::RoleKind;
use d_engine_kv::KvCommand;
use d_engine_replica::{Event, Proposal};

use crate::limits::LimitProfile;
use crate::links::LinkProfile;
use crate::profile::{MS, Profile, SECOND};
use crate::program::ProgramProfile;
use crate::snapshot_profile::SnapshotProfile;
use crate::trace::Trace;
use crate::world::World;
use crate::world_standing::StandingProfile;

/// A follower that was away, and what it has to catch up with.
#[derive(Clone, Copy, Debug)]
pub struct CatchUp {
    /// Bytes of commands that it has missed.
    pub behind_bytes: u64,
    /// Bytes of a command.
    pub command_bytes: u64,
    /// Largest append in payload bytes.
    pub append_bytes: u64,
    /// Bits per second of the follower's links.
    pub bits_per_second: u64,
    /// Whether heartbeats have a connection of their own, so that they do not wait behind appends.
    pub heartbeats_apart: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct CaughtUp {
    /// Bytes of entries that were sent to it.
    pub sent: u64,
    /// Bytes of entries that it has stored.
    pub useful: u64,
    /// Simulated milliseconds until it had everything; `None` if that took more than twenty times what the link
    /// needs.
    pub millis: Option<u64>,
    /// Simulated milliseconds that the link needs for these bytes.
    pub link_millis: u64,
}

impl Profile {
    /// Three nodes with default limits on whole connections; nothing goes wrong, nobody calls.
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

/// Lets a follower catch up over a slow link.
///
/// # Errors
/// The rule that was broken, or why the cluster did not come so far.
pub fn catch_up(what: CatchUp) -> Result<CaughtUp, String> {
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
    let mut world = World::new(1, profile, Trace::default());
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

/// The leader of the calm cluster, once it has committed something.
///
/// # Errors
/// There is none within ten seconds.
pub(crate) fn wait_for_leader(world: &mut World) -> Result<u64, String> {
    let until = world.now + 10 * SECOND;
    while world.now < until {
        world.run_until(world.now + 10 * MS)?;
        let leads = |node: &&crate::node::Node| {
            node.running.as_ref().is_some_and(|it| {
                it.replica.core().role() == RoleKind::Leader && it.replica.core().leads_with_commit()
            })
        };
        if let Some(leader) = world.nodes.iter().find(leads).map(|node| node.id) {
            return Ok(leader);
        }
    }
    Err("no leader within 10 s".to_owned())
}

/// When each command was acknowledged.
pub(crate) type Acks = Arc<Mutex<Vec<(u64, bool)>>>;

fn put(world: &mut World, node: u64, number: u64, bytes: u64) -> Result<(), String> {
    propose(world, node, number, bytes, &Acks::default())
}

/// Proposes a command at `node`; its answer goes to `acks`.
pub(crate) fn propose(
    world: &mut World,
    node: u64,
    number: u64,
    bytes: u64,
    acks: &Acks,
) -> Result<(), String> {
    let value = Bytes::from(vec![0x5a; usize::try_from(bytes).unwrap_or(0)]);
    let command = KvCommand::put(format!("scenario-{}", number % 16), value).encode();
    let acks = acks.clone();
    let responder = Box::new(move |result: Result<Bytes, _>| {
        acks.lock().unwrap_or_else(PoisonError::into_inner).push((number, result.is_ok()));
    });
    world.tell(node, Event::Propose(vec![Proposal::new(command, None, responder)]))
}

/// What one wrong wall clock has done to keys with a time to live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WrongClock {
    /// A key that was written before, and had a minute left, is there after the wrong clock's leader has written.
    pub kept: bool,
    /// It is gone once its minute is over.
    pub expired: bool,
    /// A key that was written afterwards, for two seconds, is gone four seconds later.
    pub later_expired: bool,
}

/// One node's wall clock is wrong by `offset_ms` (negative: behind). It is made the leader, writes, and another one
/// leads again.
///
/// # Errors
/// The rule that was broken, or why the cluster did not come so far.
pub fn wrong_clock(offset_ms: i64) -> Result<WrongClock, String> {
    let mut world = World::new(1, Profile::quiet(1), Trace::default());
    world.healed = true;
    let right = wait_for_leader(&mut world)?;
    put_for(&mut world, right, "minute", 60_000)?;
    let wrong = 1 + right % 3;
    let offset = crate::node::RIGHT_TIME_MS.saturating_add_signed(offset_ms);
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

fn put_for(world: &mut World, node: u64, key: &'static str, ttl_ms: u64) -> Result<(), String> {
    let options = d_engine_kv::PutOptions::default().ttl(std::time::Duration::from_millis(ttl_ms));
    let command = KvCommand::put_with(key, Bytes::from_static(b"value"), options).encode();
    let responder = Box::new(|_| {});
    world.tell(node, Event::Propose(vec![Proposal::new(command, None, responder)]))?;
    world.run_until(world.now + SECOND)
}

fn holds(world: &mut World, node: u64, key: &str) -> bool {
    world.node(node).running.as_ref().is_some_and(|it| it.machine.get(key.as_bytes()).is_some())
}

/// Leadership goes from one node to another.
fn lead(world: &mut World, from: u64, to: u64) -> Result<(), String> {
    let target = Some(crate::node::node_id(to));
    world.tell(from, Event::TransferLeadership { to: target, responder: Box::new(|_| {}) })?;
    world.run_until(world.now + SECOND)?;
    if world.leads(to) { Ok(()) } else { Err(format!("node {to} was not made the leader")) }
}
