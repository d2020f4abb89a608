//! How a run's nodes take snapshots, purge their logs and send what they have, and what goes wrong with it.
//! Drawn from a stream of its own.

use crate::prng::Prng;
use crate::profile::{MS, SECOND};

/// As much of the log as no run has.
pub(crate) const HELD_BYTES: u64 = 256 << 20;

/// A kind of state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// In memory, rebuilt at every start.
    Rebuilt,
    /// The simulator's own that keeps its state.
    Durable,
    /// The one that ships for that.
    Disk,
}

/// Snapshots in one run. Times are in simulated nanoseconds, chances in millionths.
#[derive(Clone, Debug)]
pub struct SnapshotProfile {
    /// A snapshot after so many applied entries; zero for never.
    pub after_entries: u64,
    /// Mean time between snapshots that somebody asks some node for; zero for none.
    pub asked_every: u64,
    /// Entries that stay in the log although a snapshot covers them.
    pub tail_entries: u64,
    /// How long a transfer keeps the log from being purged.
    pub purge_patience_ms: u64,
    /// Bytes of the log that a transfer keeps at most.
    pub held_bytes: u64,
    /// Snapshots that a node keeps.
    pub retained: usize,
    /// Chunks of an archive.
    pub chunk_bytes: u32,
    /// Bytes between two syncs of an archive that is written or received.
    pub sync_bytes: u64,
    /// Largest message of a transfer.
    pub piece_bytes: usize,
    /// Bytes per second of a transfer's connection.
    pub bytes_per_second: u64,
    /// Mean length of a build.
    pub build_mean: u64,
    /// Chance that a node crashes within a step of a build, a purge, a transfer or an install.
    pub crash_in_step: u64,
    /// Chance that an operation on the disk fails in such a step.
    pub disk_error: u64,
    /// Chance per message that a transfer's connection breaks.
    pub cut: u64,
    /// Chance that it breaks at the last piece.
    pub cut_at_end: u64,
    /// Chance that a bit in a node's newest snapshot has turned when it starts again.
    pub damage: u64,
    /// The nodes whose machine keeps its own state, as bits.
    pub durable: u64,
    /// Whether those machines are the one that ships, `d-engine-kv-disk`.
    pub on_disk: bool,
    /// Whether log segments are so small that purging removes many.
    pub small_segments: bool,
    /// Whether everything is done so that followers fall behind what the leader's log still has.
    pub storm: bool,
}

impl SnapshotProfile {
    /// The part of a seed's profile that is about snapshots.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "snapshot profile");
        let mut on = |from: u64, to: u64| if prng.chance(500_000) { prng.between(from, to) } else { 0 };
        let asked_every = on(SECOND, 10 * SECOND);
        let (crash_in_step, disk_error) = (on(10_000, 150_000), on(5_000, 50_000));
        let (cut, cut_at_end, damage) = (on(5_000, 150_000), on(100_000, 500_000), on(200_000, 800_000));
        let after_entries = match prng.below(10) {
            0 => 0,
            1..=5 => prng.between(5, 60),
            _ => prng.between(60, 500),
        };
        let tail_entries = if prng.chance(200_000) { 0 } else { prng.between(1, 60) };
        let durable = match prng.below(4) {
            0 => 0,
            1 => u64::MAX,
            _ => prng.next(),
        };
        let mut held = Prng::stream(seed, "held bytes");
        let held_bytes = if held.chance(150_000) { held.between(500, 10_000) } else { HELD_BYTES };
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        let profile = Self {
            after_entries,
            asked_every,
            tail_entries,
            purge_patience_ms: upto(100, 20_000),
            held_bytes,
            retained: usize::try_from(upto(1, 3)).unwrap_or(1),
            chunk_bytes: u32::try_from(upto(64, 2_048)).unwrap_or(256),
            sync_bytes: upto(256, 4_096),
            piece_bytes: usize::try_from(upto(100, 2_000)).unwrap_or(256),
            bytes_per_second: 1 << upto(10, 20),
            build_mean: upto(1, 500) * MS,
            crash_in_step,
            disk_error,
            cut,
            cut_at_end,
            damage,
            durable,
            on_disk: Prng::stream(seed, "kv-disk").chance(400_000),
            small_segments: upto(0, 1) == 1,
            storm: upto(1, 100) <= 40,
        };
        if profile.storm { profile.stormy(&mut prng) } else { profile }
    }

    /// Snapshots all the time, logs that keep next to nothing, and steps that are often cut short.
    fn stormy(self, prng: &mut Prng) -> Self {
        Self {
            after_entries: prng.between(2, 25),
            tail_entries: prng.below(6),
            purge_patience_ms: prng.between(100, 5_000),
            retained: usize::try_from(prng.between(1, 3)).unwrap_or(1),
            bytes_per_second: 1 << prng.between(11, 18),
            build_mean: prng.between(1, 200) * MS,
            crash_in_step: prng.below(3) * prng.between(10_000, 80_000),
            cut: prng.below(3) * prng.between(10_000, 80_000),
            cut_at_end: prng.below(2) * prng.between(200_000, 500_000),
            damage: prng.below(2) * prng.between(300_000, 900_000),
            ..self
        }
    }

    /// Which machine `node` has.
    pub(crate) fn machine_of(&self, node: u64) -> Kind {
        match self.durable >> (node % 64) & 1 {
            0 => Kind::Rebuilt,
            _ if self.on_disk => Kind::Disk,
            _ => Kind::Durable,
        }
    }
}
