//! Slow instead of crashed: after the cluster has recovered from all faults, one thing hangs or is
//! slow while writes continue. They must be acknowledged again soon; and after the end all nodes
//! must reach the same state.

use d_engine_core::RoleKind;
use d_engine_locks::Unpoisoned;

use crate::faults::Sometimes;
use crate::monitors::violation::{Rule, Violation};
use crate::prng::Prng;
use crate::profile::Profile;
use crate::scenarios::{Acks, propose, wait_for_leader};
use crate::time::{MS, SECOND};
use crate::trace::Trace;
use crate::world::World;
use crate::world::event::SimEvent;
use crate::world::script::Script;

/// Two of the longest election timeouts, and the time of a few messages.
const SOON: u64 = 2 * SECOND + 300 * MS;
/// A leader that shuts down names its successor, so that no election timeout passes.
const HANDED_OVER: u64 = 500 * MS;

/// What is slow, full or shut down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slow {
    /// No operation of the leader's disk completes.
    LeaderDisk,
    /// The leader's state machine does not return.
    LeaderApply,
    /// No operation of some follower's disk completes.
    FollowerDisk,
    /// Some follower's state machine does not return.
    FollowerApply,
    /// The links between the leader and one follower are nearly unusable.
    Link,
    /// The leader shuts down in an orderly way.
    LeaderStops,
    /// The leader's disk is full.
    LeaderFull,
    /// Some follower's disk is full.
    FollowerFull,
    /// All disks are full: nothing can be acknowledged until there is space again.
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

/// Runs the trial of a seed on the cluster after the end of all faults.
///
/// # Errors
/// Writes were not acknowledged again in time, or a rule was broken.
pub(crate) fn trial(world: &mut World, seed: u64) -> Result<(), Violation> {
    if world.leader().is_none_or(|leader| world.voters_of(leader).len() < 3) {
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
        return Rule::Liveness.broken(format_args!(
            "{what:?} for {} s: no write was acknowledged for {} ms; allowed are {} ms",
            length / SECOND,
            gap / MS,
            bound / MS
        ));
    }
    Ok(())
}

/// Makes `what` slow for `length` while writes continue; returns the longest time in which none was
/// acknowledged.
pub(crate) fn run(world: &mut World, what: Slow, length: u64) -> Result<u64, Violation> {
    settle(world)?;
    world.counts.reached(what.marker());
    let acks = Acks::default();
    let mut number = 0;
    // Writes begin before anything is slow.
    let mut last_ack = world.now;
    let mut longest = 0;
    // A load that every state machine keeps up with: a new leader must first apply what it lacks.
    let pause = 20 * MS + 2 * world.profile.apply_mean;
    let warm_up = 500 * MS;
    let begins = world.now + warm_up;
    let ends = begins + length;
    let mut begun = false;
    while world.now < ends + 2 * SOON {
        if !begun && world.now >= begins {
            begun = true;
            let leader = wait_for_leader(world)?;
            let voters = world.voters_of(leader);
            let next = voters.iter().find(|voter| **voter > leader).or(voters.first());
            begin(world, what, leader, next.copied().unwrap_or(leader), length)?;
            last_ack = world.now;
        }
        // Propose at every node that considers itself leader: callers cannot know which one is.
        for node in 1..=world.profile.nodes {
            if world.leads(node) {
                number += 1;
                propose(world, node, number, 16, &acks)?;
            }
        }
        world.run_until(world.now + pause)?;
        let done = std::mem::take(&mut *acks.lock().unpoisoned());
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

/// Waits until every node that is shutting down has ended and started again, and a leader exists.
fn settle(world: &mut World) -> Result<(), Violation> {
    let until = world.now + 5 * SECOND;
    let is_up = |node: &crate::world::node::Node| {
        node.is_lost || node.running.as_ref().is_some_and(|it| it.stops_by.is_none())
    };
    while world.now < until && !world.nodes.iter().all(is_up) {
        world.run_until(world.now + 50 * MS)?;
    }
    world.run_until(world.now + 2 * SECOND)?;
    wait_for_leader(world).map(|_| ())
}

fn begin(
    world: &mut World,
    what: Slow,
    leader: u64,
    follower: u64,
    length: u64,
) -> Result<(), Violation> {
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
            world.after(length, SimEvent::SlowLinkEnds { one: leader, other: follower });
        }
        Slow::LeaderStops => return world.stop(leader),
        Slow::LeaderFull => world.fill(leader, 0, length),
        Slow::FollowerFull => world.fill(follower, 0, length),
        Slow::AllFull => (1..=world.profile.nodes).for_each(|node| world.fill(node, 0, length)),
    }
    Ok(())
}

/// Runs `what` for `seconds` on three nodes without other faults; returns the longest time, in
/// milliseconds, in which no write was acknowledged.
///
/// # Errors
/// The rule that was broken, or that there is not exactly one leader at the end.
pub fn longest_gap(what: Slow, seconds: u64) -> Result<u64, Violation> {
    let mut world = World::new(1, Profile::quiet(1), Trace::default(), Script::default());
    world.healed = true;
    let gap = run(&mut world, what, seconds * SECOND)?;
    let leaders = world.nodes.iter().filter(|node| {
        node.running.as_ref().is_some_and(|it| it.replica.core().role() == RoleKind::Leader)
    });
    if leaders.count() != 1 {
        return Rule::Liveness.broken(format_args!("there is not exactly one leader at the end"));
    }
    Ok(gap / MS)
}
