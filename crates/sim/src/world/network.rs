//! The network: which node can reach which, and when a message arrives, if it does. Messages are
//! wire bytes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use crate::faults::{Counts, Fault};
use crate::prng::Prng;
use crate::profile::Profile;
use crate::time::{MS, SECOND};

/// How many old messages are kept for replay (the "museum").
const MUSEUM_SIZE: usize = 256;

/// A message in the network.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    /// The sender.
    pub(crate) from: u64,
    /// The receiver.
    pub(crate) to: u64,
    /// The message in its wire format.
    pub(crate) frame: Bytes,
}

/// Which directions between two groups of nodes are cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ways {
    /// Only messages from the first group to the second are lost.
    One,
    Both,
}

/// The network of one run.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) prng: Prng,
    /// Directed links that are cut.
    blocked: BTreeSet<(u64, u64)>,
    /// Nodes that were cut off when they were removed.
    cut_off: BTreeSet<u64>,
    museum: VecDeque<Packet>,
    /// The latest arrival time per link, to count messages that overtake others.
    latest: BTreeMap<(u64, u64), u64>,
    calm: bool,
}

impl Network {
    /// A network without cuts.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            prng: Prng::stream(seed, "network"),
            blocked: BTreeSet::new(),
            cut_off: BTreeSet::new(),
            museum: VecDeque::new(),
            latest: BTreeMap::new(),
            calm: false,
        }
    }

    /// Returns whether a message from `from` can reach `to` now.
    #[must_use]
    pub(crate) fn carries(&self, from: u64, to: u64) -> bool {
        let is_cut_off = |node: u64| self.cut_off.contains(&node);
        !self.blocked.contains(&(from, to)) && !is_cut_off(from) && !is_cut_off(to)
    }

    /// Cuts a node off from all others.
    pub(crate) fn cut_off(&mut self, node: u64) {
        self.cut_off.insert(node);
    }

    /// The nodes that are cut off.
    pub(crate) fn are_cut_off(&self) -> Vec<u64> {
        self.cut_off.iter().copied().collect()
    }

    /// A node that was cut off is connected again.
    pub(crate) fn reconnect(&mut self, node: u64) {
        self.cut_off.remove(&node);
    }

    /// The directed links that are cut, for the trace.
    pub(crate) fn cuts(&self) -> String {
        let links = self.blocked.iter().map(|(from, to)| format!("{from} -> {to}"));
        format!("cut {}", links.collect::<Vec<_>>().join(", "))
    }

    /// Ends all faults for the rest of the run.
    pub(crate) fn calm_down(&mut self) {
        self.blocked.clear();
        self.museum.clear();
        self.calm = true;
    }

    /// Ends the partition.
    pub(crate) fn heal(&mut self) {
        self.blocked.clear();
    }

    /// Sends `packet` at `now`; returns the packets that will arrive, with their times.
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

    /// Partitions the network in one of the shapes that have broken real systems.
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
            // Both halves reach the bridge node, but not each other.
            Fault::PartitionBridge => {
                let bridged = other_side.iter().skip(1).copied().collect::<Vec<_>>();
                self.cut(one_side, &bridged, Ways::Both);
            }
            // Every node reaches only its neighbours in the chain.
            Fault::PartitionChain => {
                for (place, node) in all.iter().enumerate() {
                    let far: Vec<u64> = all.iter().skip(place + 2).copied().collect();
                    self.cut(&[*node], &far, Ways::Both);
                }
            }
            Fault::PartitionOneWay => {
                let outwards = self.prng.chance(500_000);
                let (from, to) =
                    if outwards { (one_side, other_side) } else { (other_side, one_side) };
                self.cut(from, to, Ways::One);
            }
            _ => self.cut(one_side, other_side, Ways::Both),
        }
        counts.fault(fault);
        fault
    }

    fn cut(&mut self, one_side: &[u64], other_side: &[u64], ways: Ways) {
        for one in one_side {
            for other in other_side {
                self.blocked.insert((*one, *other));
                if ways == Ways::Both {
                    self.blocked.insert((*other, *one));
                }
            }
        }
    }
}
