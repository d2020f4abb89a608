//! The kinds of faults, and how each begins and ends.

use d_engine_sim::Prng;
use rustix::process::Signal;

use crate::net::{NODES, connect, cut, directions, fast, slow};
use crate::node::Node;
use crate::shell::Outcome;

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// SIGKILL, and a later start.
    Kill,
    /// SIGTERM, and a later start.
    Stop,
    /// SIGSTOP, and a later SIGCONT.
    Pause,
    /// The node's file system is frozen.
    FreezeDisk,
    /// The node's file system is filled.
    FillDisk,
    /// The node runs with a wrong wall clock.
    WrongClock,
    /// Some directions between nodes are cut.
    Cut,
    /// A node's outgoing traffic is slow.
    Slow,
    /// Leadership is transferred.
    Transfer,
    /// A node takes a snapshot.
    Snapshot,
}

/// The kinds to draw from; a kind that is listed twice is drawn twice as often.
const DRAWN: &[Kind] = &[
    Kind::Kill,
    Kind::Kill,
    Kind::Stop,
    Kind::Pause,
    Kind::FreezeDisk,
    Kind::FreezeDisk,
    Kind::FillDisk,
    Kind::FillDisk,
    Kind::WrongClock,
    Kind::Cut,
    Kind::Cut,
    Kind::Slow,
    Kind::Transfer,
    Kind::Snapshot,
];

/// The errors of wrong clocks, in the syntax of libfaketime.
const CLOCKS: &[&str] = &["+3650d", "+1d", "+90s", "+2s", "-2s", "-1h", "-3000d"];

impl Kind {
    /// Draws a kind.
    pub(crate) fn draw(prng: &mut Prng) -> Self {
        prng.pick(DRAWN).copied().unwrap_or(Self::Kill)
    }

    /// Returns the kind's name in the summary.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "orderly stop",
            Self::Pause => "pause",
            Self::FreezeDisk => "frozen disk",
            Self::FillDisk => "full disk",
            Self::WrongClock => "wrong clock",
            Self::Cut => "cut network",
            Self::Slow => "slow link",
            Self::Transfer => "leadership transfer",
            Self::Snapshot => "snapshot",
        }
    }

    /// Returns the shortest and the longest duration, in milliseconds.
    pub(crate) fn lasts(self) -> (u64, u64) {
        match self {
            Self::Kill | Self::Stop | Self::Pause => (200, 6_000),
            Self::FreezeDisk => (1_000, 8_000),
            Self::FillDisk => (3_000, 12_000),
            Self::WrongClock => (8_000, 20_000),
            Self::Cut | Self::Slow => (500, 8_000),
            Self::Transfer | Self::Snapshot => (0, 0),
        }
    }
}

/// A fault that has begun.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A fault of one node.
    OfNode(Kind, u64),
    /// A cut of these directions of the network.
    Cut(Vec<(u64, u64)>),
}

impl Fault {
    /// Begins a fault; returns it with a description for the log.
    pub(crate) fn begin(kind: Kind, node: &mut Node, prng: &mut Prng) -> Outcome<(Self, String)> {
        let id = node.id;
        let name = kind.name();
        let mut words = format!("{name}: node {id}");
        match kind {
            Kind::Kill => node.kill()?,
            Kind::Stop => node.stop()?,
            Kind::Pause => node.signal(Signal::STOP)?,
            Kind::FreezeDisk => node.disk.freeze()?,
            Kind::FillDisk => {
                let left =
                    prng.pick(&[0, 0, 64 << 10, 1 << 20, 2 << 20]).copied().unwrap_or_default();
                node.disk.fill(left)?;
                words.push_str(&format!(", {left} bytes left"));
            }
            Kind::WrongClock => {
                let clock = prng.pick(CLOCKS).copied().unwrap_or("+1d");
                node.stop()?;
                node.start(Some(clock))?;
                words.push_str(&format!(", {clock}"));
            }
            Kind::Slow => {
                let kbit = prng.pick(&[256, 1_000, 4_000, 10_000]).copied().unwrap_or(1_000);
                slow(id, kbit)?;
                words.push_str(&format!(", {kbit} kbit/s"));
            }
            Kind::Cut => return Self::begin_cut(id, prng),
            Kind::Transfer | Kind::Snapshot => {}
        }
        Ok((Self::OfNode(kind, id), words))
    }

    fn begin_cut(id: u64, prng: &mut Prng) -> Outcome<(Self, String)> {
        let all = directions();
        let concerns = |(from, to): &(u64, u64)| *from == id || *to == id;
        let cuts: Vec<(u64, u64)> = match prng.below(5) {
            // The node is isolated.
            0 | 1 => all.into_iter().filter(concerns).collect(),
            // All that it sends is lost, or all that is sent to it.
            2 => all.into_iter().filter(|(from, _)| *from == id).collect(),
            3 => all.into_iter().filter(|(_, to)| *to == id).collect(),
            // Directions drawn at random.
            _ => all.into_iter().filter(|_| prng.chance(400_000)).collect(),
        };
        for (from, to) in &cuts {
            cut(*from, *to)?;
        }
        let list: Vec<String> = cuts.iter().map(|(from, to)| format!("{from}>{to}")).collect();
        Ok((Self::Cut(cuts), format!("cut network: {}", list.join(" "))))
    }

    /// Ends the fault; returns whether a process was started.
    pub(crate) fn end(&self, nodes: &mut [Node]) -> Outcome<bool> {
        match self {
            Self::Cut(cuts) => {
                for (from, to) in cuts {
                    connect(*from, *to)?;
                }
                Ok(false)
            }
            Self::OfNode(kind, id) => {
                let node = nodes.iter_mut().find(|node| node.id == *id).ok_or("no such node")?;
                match kind {
                    Kind::Kill | Kind::Stop => node.start(None)?,
                    Kind::Pause => node.signal(Signal::CONT)?,
                    Kind::FreezeDisk => node.disk.thaw()?,
                    Kind::FillDisk => node.disk.empty()?,
                    Kind::WrongClock => {
                        node.stop()?;
                        node.start(None)?;
                    }
                    Kind::Slow => fast(*id)?,
                    Kind::Cut | Kind::Transfer | Kind::Snapshot => {}
                }
                Ok(matches!(kind, Kind::Kill | Kind::Stop | Kind::WrongClock))
            }
        }
    }

    /// Returns the nodes that are under the fault.
    pub(crate) fn nodes(&self) -> Vec<u64> {
        match self {
            Self::OfNode(_, id) => vec![*id],
            Self::Cut(cuts) => {
                // A cut counts for one node if that node is an end of every direction that is cut;
                // any other cut counts for all nodes.
                let alone = (1..=NODES).find(|id| {
                    cuts.iter().all(|(from, _)| from == id)
                        || cuts.iter().all(|(_, to)| to == id)
                        || cuts.iter().all(|(from, to)| from == id || to == id)
                });
                alone.map_or_else(|| (1..=NODES).collect(), |id| vec![id])
            }
        }
    }

    /// Returns whether this is a fault of the network.
    pub(crate) fn is_of_network(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::OfNode(Kind::Slow, _))
    }
}
