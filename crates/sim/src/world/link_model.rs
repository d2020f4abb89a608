//! Links as the server's transport makes them (`crates/server/src/transport/framed/`): one
//! connection per direction, dialled by the sender; two bounded lanes in front of it; then a kernel
//! buffer, in which no message overtakes another; then bandwidth and delay. Messages of a
//! connection arrive in order. When a connection breaks, the messages that were written to it are
//! lost, or still arrive from the old connection.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use crate::prng::Prng;
use crate::profile::links::LinkProfile;
use crate::time::{MS, SECOND};

/// Bytes of the header of each frame on the wire.
const HEADER_BYTES: u64 = 8;
/// The lowest speed of a link after the end of all faults.
const CALM_BYTES_PER_SECOND: u64 = 4 << 20;

/// Which connections a fault affects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Affected {
    All,
    /// A few, chosen at random.
    Few,
}

/// The lane of a message; urgent ones go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Lane {
    Urgent,
    Bulk,
}

/// What happened to a message that was to be enqueued; mirrors the server's `Sent`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sent {
    Queued,
    /// There is no connection.
    NoConnection,
    /// The lane is full.
    LaneFull,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<Bytes>,
    bytes: usize,
}

impl Queue {
    /// Takes frames until they have at least `bytes` bytes.
    fn take(&mut self, bytes: usize) -> impl Iterator<Item = Bytes> + '_ {
        let mut taken = 0;
        std::iter::from_fn(move || {
            let frame = (taken < bytes).then(|| self.pop()).flatten()?;
            taken += frame.len();
            Some(frame)
        })
    }

    fn pop(&mut self) -> Option<Bytes> {
        let frame = self.frames.pop_front()?;
        self.bytes -= frame.len();
        Some(frame)
    }
}

/// One direction between two nodes: its present connection, and the messages that wait for it.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) connection: Option<u64>,
    /// The upper bound of the next wait before dialling, before it is clamped.
    pub(crate) backoff: u64,
    urgent: Queue,
    bulk: Queue,
}

/// One stream of bytes: the frames that were written and have not arrived.
#[derive(Debug, Default)]
struct Wire {
    /// When the last byte written so far has left the node.
    free_at: u64,
    /// When the last frame written so far arrives.
    latest: u64,
    /// Empty frames are pings.
    frames: VecDeque<(u64, Bytes)>,
}

impl Wire {
    fn speed_up(&mut self, now: u64, speed: u64) {
        let (mut free_at, mut latest) = (now, now);
        for (at, frame) in &mut self.frames {
            free_at += lasts(frame.len() as u64 + HEADER_BYTES, speed);
            latest = latest.max(free_at);
            *at = latest.min(*at);
        }
        self.free_at = self.free_at.min(free_at);
        self.latest = self.latest.min(latest);
    }
}

/// How long `bytes` take at `speed` bytes per second; 0 stands for no limit.
fn lasts(bytes: u64, speed: u64) -> u64 {
    bytes.saturating_mul(SECOND).checked_div(speed).unwrap_or(0)
}

/// A connection between two processes.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) from: u64,
    pub(crate) from_life: u64,
    pub(crate) to: u64,
    pub(crate) to_life: u64,
    /// When the last response to a ping came.
    pub(crate) answered_at: u64,
    pub(crate) ping_due: bool,
    /// Whether a write is scheduled.
    pub(crate) writes: bool,
    /// Whether an arrival is scheduled, by lane.
    arrives: BTreeMap<Lane, bool>,
    wires: BTreeMap<Lane, Wire>,
}

/// All links of a run.
#[derive(Debug)]
pub(crate) struct Links {
    pub(crate) prng: Prng,
    links: BTreeMap<(u64, u64), Link>,
    last: u64,
    pub(crate) open: BTreeMap<u64, Connection>,
    /// Bytes per second of links that are slower than the profile says, for now.
    pub(crate) slowed: BTreeMap<(u64, u64), u64>,
}

/// When a connection writes next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    Nothing,
    At(u64),
}

impl Links {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            prng: Prng::stream(seed, "link delays"),
            links: BTreeMap::new(),
            last: 0,
            open: BTreeMap::new(),
            slowed: BTreeMap::new(),
        }
    }

    pub(crate) fn link(&mut self, from: u64, to: u64) -> &mut Link {
        self.links.entry((from, to)).or_default()
    }

    /// The present connection for messages from `from` to `to`.
    pub(crate) fn connection(&self, from: u64, to: u64) -> Option<u64> {
        self.links.get(&(from, to)).and_then(|link| link.connection)
    }

    /// The ends of the present connections from or to this node.
    pub(crate) fn of(&self, node: u64) -> Vec<(u64, u64)> {
        let ends = self.links.iter().filter(|((from, to), link)| {
            link.connection.is_some() && (*from == node || *to == node)
        });
        ends.map(|(ends, _)| *ends).collect()
    }

    /// Enqueues a frame, or drops it when its lane is full. An empty lane takes a frame of any
    /// size.
    pub(crate) fn push(
        &mut self,
        ends: (u64, u64),
        lane: Lane,
        frame: Bytes,
        profile: &LinkProfile,
    ) -> Sent {
        let link = self.links.entry(ends).or_default();
        if link.connection.is_none() {
            return Sent::NoConnection;
        }
        let queue = if lane == Lane::Urgent { &mut link.urgent } else { &mut link.bulk };
        let full = queue.frames.len() >= profile.queue_frames
            || queue.bytes + frame.len() > profile.queue_bytes;
        if full && !queue.frames.is_empty() {
            return Sent::LaneFull;
        }
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        Sent::Queued
    }

    /// Opens a connection; returns its number.
    pub(crate) fn connect(&mut self, ends: (u64, u64), boots: (u64, u64), now: u64) -> u64 {
        self.last += 1;
        let connection = Connection {
            from: ends.0,
            from_life: boots.0,
            to: ends.1,
            to_life: boots.1,
            answered_at: now,
            ping_due: true,
            writes: false,
            arrives: BTreeMap::new(),
            wires: BTreeMap::new(),
        };
        self.open.insert(self.last, connection);
        *self.link(ends.0, ends.1) = Link { connection: Some(self.last), ..Link::default() };
        self.last
    }

    /// Closes the connection and drops the messages that waited for it; the messages that were
    /// already written still arrive. Returns the number of the connection, if there was one.
    pub(crate) fn close(&mut self, ends: (u64, u64)) -> Option<u64> {
        let link = self.links.entry(ends).or_default();
        let number = link.connection?;
        *link = Link::default();
        Some(number)
    }

    /// Closes the connection; the messages that were already written are lost as well.
    pub(crate) fn cut(&mut self, ends: (u64, u64)) {
        if let Some(number) = self.close(ends) {
            self.open.remove(&number);
        }
    }

    /// Bytes per second of a link, after the end of all faults at least [`CALM_BYTES_PER_SECOND`]
    /// unless it is slowed; 0 stands for no limit.
    pub(crate) fn speed(&self, ends: (u64, u64), healed: bool, profile: &LinkProfile) -> u64 {
        let slow = profile.slow_node_bytes_per_second;
        let own =
            if slow > 0 && (ends.0 == 1 || ends.1 == 1) { slow } else { profile.bytes_per_second };
        let own = if healed && own > 0 { own.max(CALM_BYTES_PER_SECOND) } else { own };
        self.slowed.get(&ends).copied().unwrap_or(own)
    }

    /// What was written to the connections of a link leaves at `speed` from now on, if that is
    /// sooner; returns the connections that may write and deliver earlier than was planned.
    pub(crate) fn speed_up(&mut self, ends: (u64, u64), now: u64, speed: u64) -> Vec<u64> {
        let of_link = self.open.iter_mut().filter(|(_, it)| (it.from, it.to) == ends);
        let sped_up = of_link.map(|(number, connection)| {
            connection.writes = false;
            connection.arrives.clear();
            connection.wires.values_mut().for_each(|wire| wire.speed_up(now, speed));
            *number
        });
        sped_up.collect()
    }

    /// Writes waiting messages as far as the kernel's buffer takes them; returns how many bytes of
    /// appends were written, and when to continue. One write takes everything urgent and appends up
    /// to `batch_bytes`; the next one begins when the kernel's buffer has space again.
    pub(crate) fn write(
        &mut self,
        number: u64,
        now: u64,
        speed: u64,
        delays: &mut dyn FnMut(&mut Prng) -> u64,
        profile: &LinkProfile,
    ) -> (u64, Next) {
        let Some(connection) = self.open.get_mut(&number) else { return (0, Next::Nothing) };
        let ends = (connection.from, connection.to);
        let Some(link) = self.links.get_mut(&ends).filter(|link| link.connection == Some(number))
        else {
            return (0, Next::Nothing);
        };
        let lasts = |bytes: u64| lasts(bytes, speed);
        let mut appended = 0;
        loop {
            let urgent_lane = if profile.urgent_apart { Lane::Urgent } else { Lane::Bulk };
            let kernel_is_full_until = |wire: Option<&Wire>| {
                let free_at = wire.map_or(0, |wire| wire.free_at);
                free_at.saturating_sub(lasts(profile.kernel_bytes))
            };
            let urgent_at = kernel_is_full_until(connection.wires.get(&urgent_lane));
            let bulk_at = kernel_is_full_until(connection.wires.get(&Lane::Bulk));
            let mut taken = Vec::new();
            if urgent_at <= now {
                let pings = std::mem::take(&mut connection.ping_due).then(Bytes::new);
                taken.extend(pings.into_iter().map(|ping| (urgent_lane, ping)));
                taken.extend(link.urgent.take(usize::MAX).map(|frame| (urgent_lane, frame)));
            }
            if bulk_at <= now {
                let before = taken.len();
                taken.extend(link.bulk.take(profile.batch_bytes).map(|frame| (Lane::Bulk, frame)));
                let bulk = taken.iter().skip(before).map(|(_, frame)| frame.len() as u64);
                appended += bulk.sum::<u64>();
            }
            if taken.is_empty() {
                let mut at = Vec::new();
                if !link.urgent.frames.is_empty() || connection.ping_due {
                    at.push(urgent_at);
                }
                if !link.bulk.frames.is_empty() {
                    at.push(bulk_at);
                }
                let next = at.into_iter().min().map_or(Next::Nothing, Next::At);
                return (appended, next);
            }
            for (lane, frame) in taken {
                let wire = connection.wires.entry(lane).or_default();
                wire.free_at = wire.free_at.max(now) + lasts(frame.len() as u64 + HEADER_BYTES);
                wire.latest = wire.latest.max(wire.free_at + delays(&mut self.prng));
                wire.frames.push_back((wire.latest, frame));
            }
        }
    }

    /// Returns when the next frame of this lane arrives, unless an arrival is scheduled already.
    pub(crate) fn next_arrival(&mut self, number: u64, lane: Lane) -> Option<u64> {
        let connection = self.open.get_mut(&number)?;
        let planned = connection.arrives.entry(lane).or_default();
        let at = connection.wires.get(&lane)?.frames.front()?.0;
        (!std::mem::replace(planned, true)).then_some(at)
    }

    /// Takes the frames that have arrived by now.
    pub(crate) fn take_arrived(&mut self, number: u64, lane: Lane, now: u64) -> Vec<Bytes> {
        let Some(connection) = self.open.get_mut(&number) else { return Vec::new() };
        connection.arrives.insert(lane, false);
        let Some(wire) = connection.wires.get_mut(&lane) else { return Vec::new() };
        let mut arrived = Vec::new();
        while let Some((_, frame)) = wire.frames.pop_front_if(|(at, _)| *at <= now) {
            arrived.push(frame);
        }
        arrived
    }

    /// Removes a connection that was replaced or closed, once all its frames have arrived.
    pub(crate) fn forget_drained(&mut self, number: u64) {
        let Some(connection) = self.open.get(&number) else { return };
        let current = self.connection(connection.from, connection.to) == Some(number);
        if !current && connection.wires.values().all(|wire| wire.frames.is_empty()) {
            self.open.remove(&number);
        }
    }

    /// The wait before the next dial: doubled each time, from 20 ms to a second, with a random
    /// part.
    pub(crate) fn backoff(&mut self, ends: (u64, u64)) -> u64 {
        let link = self.links.entry(ends).or_default();
        let step = link.backoff.clamp(20 * MS, SECOND);
        link.backoff = step.saturating_mul(2);
        step / 2 + self.prng.below(step / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(kernel_bytes: u64, batch_bytes: usize, urgent_apart: bool) -> LinkProfile {
        LinkProfile { kernel_bytes, batch_bytes, urgent_apart, ..LinkProfile::unlimited() }
    }

    fn frame(byte: u8, length: usize) -> Bytes {
        Bytes::from(vec![byte; length])
    }

    /// Returns the first byte of each frame that arrives, with its time in milliseconds.
    fn run(profile: &LinkProfile, speed: u64, frames: &[(Lane, Bytes)]) -> Vec<(u8, u64)> {
        let mut links = Links::new(1);
        let number = links.connect((1, 2), (0, 0), 0);
        links.open.get_mut(&number).unwrap().ping_due = false;
        for (lane, frame) in frames {
            assert_eq!(links.push((1, 2), *lane, frame.clone(), profile), Sent::Queued);
        }
        let mut now = 0;
        while let (_, Next::At(at)) = links.write(number, now, speed, &mut |_| 0, profile) {
            assert!(at > now, "it makes progress");
            now = at;
        }
        let mut arrived = Vec::new();
        for lane in [Lane::Urgent, Lane::Bulk] {
            if let Some(wire) = links.open.get(&number).unwrap().wires.get(&lane) {
                arrived.extend(wire.frames.iter().map(|(at, frame)| (*at / MS, frame[0])));
            }
        }
        arrived.sort_unstable();
        arrived.into_iter().map(|(at, byte)| (byte, at)).collect()
    }

    #[test]
    fn bytes_take_their_time_and_what_is_urgent_overtakes_what_is_not_in_the_kernel() {
        let bulk = (1..=4).map(|byte| (Lane::Bulk, frame(byte, 992)));
        let frames: Vec<_> = bulk.chain([(Lane::Urgent, frame(9, 92))]).collect();
        let arrived = run(&profile(0, 900, false), 10_000, &frames);
        assert_eq!(arrived, [(9, 10), (1, 110), (2, 210), (3, 310), (4, 410)]);
        let apart = run(&profile(0, 900, true), 10_000, &frames);
        assert_eq!(apart, [(9, 10), (1, 100), (2, 200), (3, 300), (4, 400)]);
    }

    #[test]
    fn what_was_written_to_a_slow_link_leaves_faster_once_it_is_fast_again() {
        let mut links = Links::new(1);
        let number = links.connect((1, 2), (0, 0), 0);
        links.open.get_mut(&number).unwrap().ping_due = false;
        let profile = profile(4_000, 4_000, false);
        for byte in 1..=3 {
            links.push((1, 2), Lane::Bulk, frame(byte, 992), &profile);
        }
        links.write(number, 0, 1_000, &mut |_| 0, &profile);
        assert_eq!(links.next_arrival(number, Lane::Bulk), Some(1_000 * MS));
        assert_eq!(links.speed_up((2, 1), 500 * MS, 100_000), []);
        assert_eq!(links.speed_up((1, 2), 500 * MS, 100_000), [number]);
        assert_eq!(links.next_arrival(number, Lane::Bulk), Some(510 * MS));
        assert_eq!(links.take_arrived(number, Lane::Bulk, 529 * MS).len(), 2);
        assert_eq!(links.take_arrived(number, Lane::Bulk, 530 * MS).len(), 1);
    }

    #[test]
    fn a_full_lane_loses_the_newest_and_an_empty_one_takes_any_frame() {
        let profile = LinkProfile { queue_bytes: 100, ..LinkProfile::unlimited() };
        let mut links = Links::new(1);
        assert_eq!(links.push((1, 2), Lane::Bulk, frame(1, 500), &profile), Sent::NoConnection);
        links.connect((1, 2), (0, 0), 0);
        assert_eq!(links.push((1, 2), Lane::Bulk, frame(1, 500), &profile), Sent::Queued);
        assert_eq!(links.push((1, 2), Lane::Bulk, frame(2, 1), &profile), Sent::LaneFull);
        assert_eq!(links.push((1, 2), Lane::Urgent, frame(2, 1), &profile), Sent::Queued);
    }
}
