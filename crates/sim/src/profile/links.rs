//! The properties of the links between the nodes of a run. Drawn from a separate stream.

use crate::prng::Prng;
use crate::time::SECOND;

/// The properties of the links of one run. Times are in simulated nanoseconds, chances in
/// millionths.
#[derive(Clone, Debug)]
pub struct LinkProfile {
    /// Whether messages travel on connections. Otherwise each message travels by itself and is
    /// lost, repeated and overtaken at random.
    pub connections: bool,
    /// Bytes per second of every link; zero for no limit.
    pub bytes_per_second: u64,
    /// Bytes per second of the links of node 1, if they are slower than the others; zero if they
    /// are not.
    pub slow_node_bytes_per_second: u64,
    /// The most frames that wait in one lane.
    pub queue_frames: usize,
    /// The most bytes that wait in one lane.
    pub queue_bytes: usize,
    /// Bytes of appends after which one write takes no more of them.
    pub batch_bytes: usize,
    /// Size of the kernel's buffer in bytes; in it no message overtakes another.
    pub kernel_bytes: u64,
    /// Whether heartbeats, votes and responses have a connection of their own.
    pub urgent_apart: bool,
    /// How long pings may stay unanswered before the connection is closed.
    pub silence: u64,
    /// Mean time between slow periods of a link; zero for none.
    pub slow_every: u64,
    /// Mean length of a slow period.
    pub slow_length: u64,
}

impl LinkProfile {
    /// Draws a seed's links.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "links");
        let connections = prng.chance(600_000);
        let slow = prng.chance(300_000);
        let slow_node = prng.chance(300_000);
        let small_queues = prng.chance(250_000);
        let slow_times = prng.chance(400_000);
        let mut upto = |from: u64, to: u64| prng.between(from, to);
        Self {
            connections,
            bytes_per_second: if slow { 1 << upto(14, 18) } else { 1 << upto(20, 27) },
            slow_node_bytes_per_second: if slow_node { 1 << upto(13, 16) } else { 0 },
            queue_frames: usize::try_from(if small_queues { upto(2, 32) } else { 4_096 })
                .unwrap_or(32),
            queue_bytes: usize::try_from(if small_queues { upto(1, 32) << 10 } else { 16 << 20 })
                .unwrap_or(1 << 20),
            batch_bytes: usize::try_from(upto(1, 128) << 10).unwrap_or(128 << 10),
            kernel_bytes: upto(1, 64) << 10,
            urgent_apart: upto(0, 2) == 0,
            silence: upto(2, 8) * SECOND,
            slow_every: if slow_times { upto(SECOND, 15 * SECOND) } else { 0 },
            slow_length: upto(SECOND / 2, 10 * SECOND),
        }
    }

    /// Connections without a limit of bandwidth, with queues as the server's defaults make them.
    #[must_use]
    pub fn unlimited() -> Self {
        Self {
            connections: true,
            bytes_per_second: 0,
            slow_node_bytes_per_second: 0,
            queue_frames: 4_096,
            queue_bytes: 16 << 20,
            batch_bytes: 128 << 10,
            kernel_bytes: 512 << 10,
            urgent_apart: false,
            silence: 5 * SECOND,
            slow_every: 0,
            slow_length: SECOND,
        }
    }

    /// No connections: every message travels by itself.
    #[must_use]
    pub fn none() -> Self {
        Self { connections: false, ..Self::unlimited() }
    }
}
