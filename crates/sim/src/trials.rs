//! Slow instead of dead: after the calm cluster has recovered, one thing hangs or is slow while writes go on. They
//! must be acknowledged again soon; and when it is over, everybody must come to one state.

use std::sync::PoisonError;

use d_engine_core::RoleKind;

use crate::faults::{Fault, Sometimes};
use crate::prng::Prng;
use crate::profile::{MS, Profile, SECOND};
use crate::scenarios::{Acks, propose, wait_for_leader};
use crate::trace::Trace;
use crate::world::{Happening, World};

/// Two of the longest election timeouts, and the time of a few messages.
const SOON: u64 = 2 * SECOND + 300 * MS;
/// A leader that shuts down names its successor: nobody waits for an election timeout.
const HANDED_OVER: u64 = 500 * MS;

/// What is slow, or goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// No operation of the leader's disk comes to an end.
    LeaderDisk,
    /// The leader's state machine does not return.
    LeaderApply,
    /// No operation of some follower's disk comes to an end.
    FollowerDisk,
    /// Some follower's state machine does not return.
    FollowerApply,
    /// The leader's links to one follower carry next to nothing.
    Link,
    /// The leader shuts down in an orderly way.
    LeaderStops,
    /// The leader's disk is full.
    LeaderFull,
    /// Some follower's disk is full.
    FollowerFull,
    /// All disks are full: nothing can be acknowledged until there is room again.
    AllFull,
}

impl Slow {
    const ALL: [Self; 9] = [
        Self::LeaderDisk,
        Self::LeaderApply,
        Self::FollowerDisk,
        Self::FollowerApply,
        Self::Link,
        Self::LeaderStops,
        Self::LeaderFull,
        Self::FollowerFull,
        Self::AllFull,
    ];

    fn marker(self) -> Sometimes {
        match self {
            Self::LeaderDisk => Sometimes::TrialLeaderDisk,
            Self::LeaderApply => Sometimes::TrialLeaderApply,
            Self::FollowerDisk => Sometimes::TrialFollowerDisk,
            Self::FollowerApply => Sometimes::TrialFollowerApply,
            Self::Link => Sometimes::TrialLink,
            Self::LeaderStops => Sometimes::TrialLeaderStops,
            Self::LeaderFull => Sometimes::TrialLeaderFull,
            Self::FollowerFull => Sometimes::TrialFollowerFull,
            Self::AllFull => Sometimes::TrialAllFull,
        }
    }
}

/// The trial of a seed, on the calm cluster.
///
/// # Errors
/// Writes were not acknowledged again in time.
pub(crate) fn trial(world: &mut World, seed: u64) -> Result<(), String> {
    if world.profile.nodes < 3 {
        return Ok(());
    }
    let mut prng = Prng::stream(seed, "trial");
    let what = prng.pick(&Slow::ALL).copied().unwrap_or(Slow::Link);
    let is_of_leader = matches!(what, Slow::LeaderDisk | Slow::LeaderApply);
    if is_of_leader && !world.profile.slow_is_dead {
        return Ok(());
    }
    let length = prng.between(2, 20) * SECOND;
    let gap = run(world, what, length)?;
    let bound = if what == Slow::LeaderStops { HANDED_OVER } else { SOON };
    if gap > bound {
        return Err(format!(
            "liveness: {what:?} for {} s: for {} ms no write was acknowledged; {} ms are bearable",
            length / SECOND,
            gap / MS,
            bound / MS
        ));
    }
    Ok(())
}

/// Lets `what` be slow for `length` while writes go on; returns the longest time in which none was acknowledged.
pub(crate) fn run(world: &mut World, what: Slow, length: u64) -> Result<u64, String> {
    settle(world)?;
    world.counts.reached(what.marker());
    let acks = Acks::default();
    let mut number = 0;
    // The writers are under way before anything is slow.
    let mut last_ack = world.now;
    let mut longest = 0;
    let warm_up = 500 * MS;
    let begins = world.now + warm_up;
    let ends = begins + length;
    let mut begun = false;
    while world.now < ends + 2 * SOON {
        if !begun && world.now >= begins {
            begun = true;
            let leader = wait_for_leader(world)?;
            begin(world, what, leader, 1 + leader % world.profile.nodes, length)?;
            last_ack = world.now;
        }
        // Callers know no better than to ask whoever says that it leads.
        for node in 1..=world.profile.nodes {
            if world.leads(node) {
                number += 1;
                propose(world, node, number, 16, &acks)?;
            }
        }
        world.run_until(world.now + 20 * MS)?;
        let done = std::mem::take(&mut *acks.lock().unwrap_or_else(PoisonError::into_inner));
        if done.iter().any(|(_, acknowledged)| *acknowledged) {
            last_ack = world.now;
        }
        if begun && (what != Slow::AllFull || world.now >= ends) {
            last_ack = if what == Slow::AllFull { last_ack.max(ends) } else { last_ack };
            longest = longest.max(world.now - last_ack);
        }
    }
    Ok(longest)
}

/// Whoever is still shutting down has ended and come back.
fn settle(world: &mut World) -> Result<(), String> {
    let until = world.now + 5 * SECOND;
    let is_up = |node: &crate::node::Node| node.running.as_ref().is_some_and(|it| it.stops_by.is_none());
    while world.now < until && !world.nodes.iter().all(is_up) {
        world.run_until(world.now + 50 * MS)?;
    }
    world.run_until(world.now + 2 * SECOND)?;
    wait_for_leader(world).map(|_| ())
}

fn begin(world: &mut World, what: Slow, leader: u64, follower: u64, length: u64) -> Result<(), String> {
    let (now, until) = (world.now, world.now + length);
    world.trace.note(now, format_args!("{what:?} of leader {leader} and follower {follower}"));
    match what {
        Slow::LeaderDisk => world.node(leader).disk_hangs_until = until,
        Slow::LeaderApply => world.node(leader).apply_hangs_until = until,
        Slow::FollowerDisk => world.node(follower).disk_hangs_until = until,
        Slow::FollowerApply => world.node(follower).apply_hangs_until = until,
        Slow::Link => {
            for ends in [(leader, follower), (follower, leader)] {
                world.links.slowed.insert(ends, 2_000);
            }
            world.after(length, Happening::SlowLinkEnds { one: leader, other: follower });
        }
        Slow::LeaderStops => return world.stop(leader),
        Slow::LeaderFull => world.fill(leader, 0, length),
        Slow::FollowerFull => world.fill(follower, 0, length),
        Slow::AllFull => (1..=world.profile.nodes).for_each(|node| world.fill(node, 0, length)),
    }
    Ok(())
}

/// How long three healthy nodes without any other trouble leave writes without an answer while `what` is slow for
/// `seconds`, in milliseconds.
///
/// # Errors
/// The rule that was broken.
pub fn longest_gap(what: Slow, seconds: u64) -> Result<u64, String> {
    let mut world = World::new(1, Profile::quiet(1), Trace::default());
    world.healed = true;
    let gap = run(&mut world, what, seconds * SECOND)?;
    let leaders = world
        .nodes
        .iter()
        .filter(|node| node.running.as_ref().is_some_and(|it| it.replica.core().role() == RoleKind::Leader));
    if leaders.count() != 1 {
        return Err("there is not one leader at the end".to_owned());
    }
    Ok(gap / MS)
}

impl World {
    /// A disk or a state machine hangs for a while.
    pub(crate) fn hang_some(&mut self) {
        if self.healed {
            return;
        }
        let node = self.turn_prng.between(1, self.profile.nodes);
        let (is_disk, length) = (self.turn_prng.chance(600_000), self.turn_prng.between(2, 20) * SECOND);
        let until = self.now + length;
        let now = self.now;
        self.trace.note(now, format_args!("node {node} hangs for {} s (disk: {is_disk})", length / SECOND));
        if is_disk {
            self.counts.fault(Fault::DiskHang);
            self.node(node).disk_hangs_until = until;
        } else {
            self.counts.fault(Fault::ApplyHang);
            self.node(node).apply_hangs_until = until;
        }
        self.plan(self.profile.hang_every, Happening::HangSome);
    }

    /// Some disk has hardly any room for a while.
    pub(crate) fn fill_some(&mut self) {
        if self.healed {
            return;
        }
        let node = self.turn_prng.between(1, self.profile.nodes);
        let (left, length) = (self.turn_prng.below(64 << 10), self.turn_prng.between(1, 15) * SECOND);
        self.fill(node, left, length);
        self.plan(self.profile.fill_every, Happening::FillSome);
    }

    /// A disk has `left` bytes of room for a while.
    pub(crate) fn fill(&mut self, id: u64, left: u64, length: u64) {
        let now = self.now;
        self.trace.note(now, format_args!("{left} bytes are free on node {id} for {} s", length / SECOND));
        self.counts.fault(Fault::DiskFull);
        let node = self.node(id);
        node.is_full = true;
        node.fs.set_capacity(Some(node.fs.used_bytes() + left));
        self.after(length, Happening::RoomAgain { node: id });
    }

    /// A disk has room without end again.
    pub(crate) fn room_again(&mut self, id: u64) {
        let node = self.node(id);
        node.is_full = false;
        node.fs.set_capacity(None);
    }
}
