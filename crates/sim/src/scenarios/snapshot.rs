//! A scripted run: a follower needs a snapshot while callers continue to write.

use d_engine_locks::Unpoisoned;

use crate::faults::Sometimes;
use crate::monitors::violation::Violation;
use crate::profile::Profile;
use crate::profile::links::LinkProfile;
use crate::profile::snapshots::SnapshotProfile;
use crate::scenarios::{Acks, propose, wait_for_leader};
use crate::time::{MS, SECOND};
use crate::trace::Trace;
use crate::world::World;
use crate::world::script::Script;

/// The number of keys; they are overwritten again and again, so that the state has this many
/// values.
const KEYS: u64 = 16;
/// The follower's link, and the load during its catch-up.
#[derive(Clone, Copy, Debug)]
pub struct UnderLoad {
    /// Bytes per value; the state has sixteen values.
    pub value_bytes: u64,
    /// Bytes per second of the links to the follower, both for the snapshot and for the entries.
    pub link: u64,
    /// Bytes per second that are written.
    pub load: u64,
    /// Bytes free on the leader's disk when the follower restarts; `None` if the free space is
    /// unknown.
    pub free: Option<u64>,
    /// Simulated seconds that the follower has to catch up.
    pub seconds: u64,
}

impl UnderLoad {
    /// The nodes refuse commands below this many free bytes.
    pub const MIN_FREE: u64 = 64 << 10;
}

/// The result of `catch_up_under_load`.
#[derive(Clone, Debug)]
pub struct CaughtUpUnderLoad {
    /// Simulated milliseconds until the follower had caught up; `None` if it did not.
    pub millis: Option<u64>,
    /// Snapshots that it has installed.
    pub installs: u64,
    /// The share of commands that were refused, in percent.
    pub refused_percent: u64,
    /// The smallest number of bytes that were free on the leader's disk.
    pub least_free: Option<u64>,
    /// The alarms that the leader reported; alarms that differ only in their figures appear once.
    pub alarms: Vec<String>,
}

fn profile(what: UnderLoad) -> Profile {
    let quiet = Profile::quiet(1);
    Profile {
        fill_every: 0,
        segment_bytes: 256 << 10,
        append_bytes: what.value_bytes,
        min_free_bytes: UnderLoad::MIN_FREE,
        links: LinkProfile {
            // Node 1 is the follower.
            slow_node_bytes_per_second: what.link,
            urgent_apart: true,
            silence: 60 * SECOND,
            ..LinkProfile::unlimited()
        },
        snapshots: SnapshotProfile {
            after_entries: KEYS / 4,
            tail_entries: 2,
            // A fraction of what is written while a snapshot is sent.
            held_bytes: what.value_bytes,
            purge_timeout_ms: 20_000,
            retained: 1,
            chunk_bytes: 4 << 10,
            sync_bytes: 256 << 10,
            piece_bytes: 4 << 10,
            bytes_per_second: what.link,
            build_mean: 50 * MS,
            small_segments: false,
            ..quiet.snapshots.clone()
        },
        ..quiet
    }
}

/// Runs three nodes. Node 1 is down until it needs a snapshot, and starts while writes continue.
///
/// # Errors
/// The rule that was broken.
pub fn catch_up_under_load(what: UnderLoad) -> Result<CaughtUpUnderLoad, Violation> {
    let mut world = World::new(1, profile(what), Trace::default(), Script::default());
    world.node(1).held_back = true;
    let leader = wait_for_leader(&mut world)?;
    let gap = what.value_bytes * SECOND / what.load.max(1);
    let acks = Acks::default();
    let mut number = 0;
    for _ in 0..4 * KEYS {
        number += 1;
        propose(&mut world, leader, number, what.value_bytes, &acks)?;
        world.run_until(world.now + gap)?;
    }
    if let Some(free) = what.free {
        let fs = &world.node(leader).fs;
        fs.set_capacity(Some(fs.used_bytes() + free));
    }
    acks.lock().unpoisoned().clear();
    world.node(1).held_back = false;
    let started = world.now;
    world.start(1)?;
    let mut outcome = CaughtUpUnderLoad {
        millis: None,
        installs: 0,
        refused_percent: 0,
        least_free: what.free,
        alarms: Vec::new(),
    };
    let first = number;
    while world.now < started + what.seconds * SECOND {
        number += 1;
        propose(&mut world, leader, number, what.value_bytes, &acks)?;
        world.run_until(world.now + gap)?;
        outcome.look_at(&mut world, leader);
        outcome.installs = installs(&world);
        if outcome.installs > 0 && stored(&mut world, 1) + 1 >= stored(&mut world, leader) {
            outcome.millis = Some((world.now - started) / MS);
            break;
        }
    }
    let acks = acks.lock().unpoisoned();
    let refused = acks.iter().filter(|(_, acknowledged)| !acknowledged).count() as u64;
    outcome.refused_percent = refused * 100 / (number - first).max(1);
    Ok(outcome)
}

impl CaughtUpUnderLoad {
    fn look_at(&mut self, world: &mut World, leader: u64) {
        let node = world.node(leader);
        let Some(running) = node.running.as_ref() else { return };
        if let (Some(least), Some(free)) = (self.least_free, running.replica.log_disk().free_bytes)
        {
            self.least_free = Some(least.min(free));
        }
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        for alarm in running.replica.status().alarms {
            if !self.alarms.iter().any(|known| words(known) == words(&alarm)) {
                self.alarms.push(alarm);
            }
        }
    }
}

fn installs(world: &World) -> u64 {
    let installed = world.counts.states().find(|(state, _)| *state == Sometimes::SnapshotInstalled);
    installed.map_or(0, |(_, count)| count)
}

fn stored(world: &mut World, node: u64) -> u64 {
    world.node(node).running.as_ref().map_or(0, |it| it.replica.core().log().persisted.get())
}
