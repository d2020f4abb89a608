//! The network: who can reach whom, and when a message arrives, if it does. Messages are wire bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::faults::{Counts, Fault};
use crate::prng::Prng;
use crate::profile::{MS, Profile, SECOND};

/// How many old messages the museum keeps.
const MUSEUM_SIZE: usize = 256;

/// A message on its way.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// The sender.
    pub(crate) from: u64,
    /// The receiver.
    pub(crate) to: u64,
    /// The wire form.
    pub(crate) frame: Bytes,
}

/// The network of one run.
#[derive(Debug)]
pub(crate) struct Network {
    prng: Prng,
    /// Directed links that carry nothing.
    blocked: BTreeSet<(u64, u64)>,
    museum: VecDeque<Packet>,
    /// The latest arrival per link, to count overtaking.
    latest: BTreeMap<(u64, u64), u64>,
    calm: bool,
}

impl Network {
    /// A whole network.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            prng: Prng::stream(seed, "network"),
            blocked: BTreeSet::new(),
            museum: VecDeque::new(),
            latest: BTreeMap::new(),
            calm: false,
        }
    }

    /// Whether a message from `from` can reach `to` now.
    #[must_use]
    pub(crate) fn carries(&self, from: u64, to: u64) -> bool {
        !self.blocked.contains(&(from, to))
    }

    /// All faults are over for good.
    pub(crate) fn calm_down(&mut self) {
        self.blocked.clear();
        self.museum.clear();
        self.calm = true;
    }

    /// The partition is over.
    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }

    /// Sends `packet` at `now`; returns what will arrive, and when.
    pub(crate) fn send(
        &mut self,
        packet: Packet,
        now: u64,
        profile: &Profile,
        counts: &mut Counts,
    ) -> Vec<(u64, Packet)> {
        if self.calm {
            let at = now + self.prng.between(MS / 10, MS);
            return vec![(at, packet)];
        }
        let mut arrivals = Vec::new();
        if self.prng.chance(profile.museum)
            && let Some(old) = self.prng.pick(self.museum.make_contiguous()).cloned()
        {
            counts.fault(Fault::MessageReplayed);
            arrivals.push((now + self.delay(profile), old));
        }
        if self.museum.len() >= MUSEUM_SIZE {
            self.museum.pop_front();
        }
        self.museum.push_back(packet.clone());
        if self.prng.chance(profile.drop) || !self.carries(packet.from, packet.to) {
            counts.fault(Fault::MessageDropped);
            return arrivals;
        }
        if self.prng.chance(profile.duplicate) {
            counts.fault(Fault::MessageDuplicated);
            arrivals.push((now + self.delay(profile), packet.clone()));
        }
        let mut at = now + self.delay(profile);
        if self.prng.chance(profile.long_delay) {
            counts.fault(Fault::MessageLongDelayed);
            at += self.prng.between(SECOND / 2, 20 * SECOND);
        }
        let latest = self.latest.entry((packet.from, packet.to)).or_default();
        if at < *latest {
            counts.fault(Fault::MessageOvertaken);
        }
        *latest = at.max(*latest);
        arrivals.push((at, packet));
        arrivals
    }

    fn delay(&mut self, profile: &Profile) -> u64 {
        profile.delay_base + self.prng.tail(profile.delay_tail)
    }

    /// Cuts links in one of the shapes that have broken real systems.
    pub(crate) fn partition(&mut self, nodes: u64, counts: &mut Counts) -> Fault {
        self.blocked.clear();
        let mut all: Vec<u64> = (1..=nodes).collect();
        for place in (1..all.len()).rev() {
            let other = self.prng.below(place as u64 + 1);
            all.swap(place, usize::try_from(other).unwrap_or(0));
        }
        let fault = match self.prng.below(5) {
            0 => Fault::PartitionIsolate,
            1 => Fault::PartitionSplit,
            2 => Fault::PartitionBridge,
            3 => Fault::PartitionChain,
            _ => Fault::PartitionOneWay,
        };
        let (one_side, other_side) = all.split_at(match fault {
            Fault::PartitionIsolate | Fault::PartitionOneWay => 1.min(all.len()),
            _ => all.len() / 2,
        });
        match fault {
            // Both halves reach the bridge, but not each other.
            Fault::PartitionBridge => {
                let bridged = other_side.iter().skip(1).copied().collect::<Vec<_>>();
                self.cut(one_side, &bridged, true);
            }
            // Everybody reaches only the neighbours.
            Fault::PartitionChain => {
                for (place, node) in all.iter().enumerate() {
                    let far: Vec<u64> = all.iter().skip(place + 2).copied().collect();
                    self.cut(&[*node], &far, true);
                }
            }
            Fault::PartitionOneWay => {
                let outwards = self.prng.chance(500_000);
                let (from, to) = if outwards { (one_side, other_side) } else { (other_side, one_side) };
                self.cut(from, to, false);
            }
            _ => self.cut(one_side, other_side, true),
        }
        counts.fault(fault);
        fault
    }

    fn cut(&mut self, one_side: &[u64], other_side: &[u64], both_ways: bool) {
        for one in one_side {
            for other in other_side {
                self.blocked.insert((*one, *other));
                if both_ways {
                    self.blocked.insert((*other, *one));
                }
            }
        }
    }
}
