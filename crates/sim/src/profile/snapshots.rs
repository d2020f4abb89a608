//! How the nodes of a run take and send snapshots and purge their logs, and which faults occur
//! there. Drawn from a separate stream.

use crate::prng::Prng;
use crate::time::{MS, SECOND};

/// More log than any run has, in bytes.
pub(crate) const HELD_BYTES: u64 = 256 << 20;

/// The kind of a node's state machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// In memory, rebuilt at every start.
    Rebuilt,
    /// The simulator's own durable machine.
    Durable,
    /// The durable machine that is shipped, `d-engine-kv-disk`.
    Disk,
}

/// How snapshots are taken, sent and disturbed in one run. Times are in simulated nanoseconds,
/// chances in millionths.
#[derive(Clone, Debug)]
pub struct SnapshotProfile {
    /// Number of applied entries after which a snapshot is taken; zero for never.
    pub after_entries: u64,
    /// Mean time between explicit requests for a snapshot; zero for none.
    pub asked_every: u64,
    /// Number of entries that stay in the log although a snapshot covers them.
    pub tail_entries: u64,
    /// Time in milliseconds for which sending a snapshot keeps the log from being purged.
    pub purge_timeout_ms: u64,
    /// Bytes of the log that sending a snapshot keeps at most.
    pub held_bytes: u64,
    /// Number of snapshots that a node keeps.
    pub retained: usize,
    /// Size of an archive's chunks, in bytes.
    pub chunk_bytes: u32,
    /// Bytes between two syncs while an archive is written or received.
    pub sync_bytes: u64,
    /// Largest piece of a snapshot that is sent in one message, in bytes.
    pub piece_bytes: usize,
    /// Bandwidth of the connection over which a snapshot is sent, in bytes per second.
    pub bytes_per_second: u64,
    /// The waits between attempts to send a snapshot are shorter by this factor, as the other times
    /// of a run are.
    pub send_waits_divided_by: u64,
    /// Mean duration of building a snapshot.
    pub build_mean: u64,
    /// Chance that a node crashes in a step of building, purging, sending, receiving or installing.
    pub crash_in_step: u64,
    /// Chance that a disk operation fails in such a step.
    pub disk_error: u64,
    /// Chance, per message, that the connection over which a snapshot is sent breaks.
    pub cut: u64,
    /// Chance that the connection breaks at the last piece.
    pub cut_at_end: u64,
    /// Chance that a bit of a node's newest snapshot is flipped before the node starts again.
    pub damage: u64,
    /// The nodes with a durable state machine, as a bit set.
    pub durable: u64,
    /// Whether the durable machines are the shipped one, `d-engine-kv-disk`.
    pub on_disk: bool,
    /// Whether log segments are so small that a purge removes many of them.
    pub small_segments: bool,
    /// Whether the run is set up so that followers often fall behind the first entry of the
    /// leader's log.
    pub storm: bool,
}

impl SnapshotProfile {
    /// Draws the part of a seed's profile that concerns snapshots.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "snapshot profile");
        let mut on =
            |from: u64, to: u64| if prng.chance(500_000) { prng.between(from, to) } else { 0 };
        let asked_every = on(SECOND, 10 * SECOND);
        let (crash_in_step, disk_error) = (on(10_000, 150_000), on(5_000, 50_000));
        let (cut, cut_at_end, damage) =
            (on(5_000, 150_000), on(100_000, 500_000), on(200_000, 800_000));
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
        let mut waits = Prng::stream(seed, "waits between sends");
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        let profile = Self {
            after_entries,
            asked_every,
            tail_entries,
            purge_timeout_ms: upto(100, 20_000),
            held_bytes,
            retained: usize::try_from(upto(1, 3)).unwrap_or(1),
            chunk_bytes: u32::try_from(upto(64, 2_048)).unwrap_or(256),
            sync_bytes: upto(256, 4_096),
            piece_bytes: usize::try_from(upto(100, 2_000)).unwrap_or(256),
            bytes_per_second: 1 << upto(10, 20),
            send_waits_divided_by: if waits.chance(300_000) { 1 } else { 10 },
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

    /// Returns a profile with frequent snapshots, short logs, and steps that are often interrupted.
    fn stormy(self, prng: &mut Prng) -> Self {
        Self {
            after_entries: prng.between(2, 25),
            tail_entries: prng.below(6),
            purge_timeout_ms: prng.between(100, 5_000),
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

    /// Returns the kind of state machine that `node` runs.
    pub(crate) fn machine_of(&self, node: u64) -> Kind {
        match self.durable >> (node % 64) & 1 {
            0 => Kind::Rebuilt,
            _ if self.on_disk => Kind::Disk,
            _ => Kind::Durable,
        }
    }
}
