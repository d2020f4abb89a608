//! The kinds of faults, and how each begins and ends.

use d_engine_sim::Prng;
use rustix::process::Signal;

use crate::net::{connect, cut, directions, fast, slow};
use crate::shell::Outcome;
use crate::site::Site;

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

    /// Returns whether the process ends when the fault begins, and is started when it ends.
    fn ends_the_process(self) -> bool {
        matches!(self, Self::Kill | Self::Stop | Self::WrongClock)
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
    /// A fault of one machine, or of the node on it.
    OfNode(Kind, u64),
    /// A cut of these directions between machines.
    Cut(Vec<(u64, u64)>),
}

impl Fault {
    /// Begins a fault; returns it with a description for the log.
    pub(crate) fn begin(
        kind: Kind,
        machine: u64,
        site: &mut Site,
        prng: &mut Prng,
    ) -> Outcome<(Self, String)> {
        let occupied = site.occupied();
        let node = site.node(machine)?;
        let name = kind.name();
        let mut words = format!("{name}: machine {machine}");
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
                site.run(machine, Some(clock))?;
                words.push_str(&format!(", {clock}"));
            }
            Kind::Slow => {
                let kbit = prng.pick(&[256, 1_000, 4_000, 10_000]).copied().unwrap_or(1_000);
                slow(machine, kbit)?;
                words.push_str(&format!(", {kbit} kbit/s"));
            }
            Kind::Cut => return Self::begin_cut(machine, &occupied, prng),
            Kind::Transfer | Kind::Snapshot => {}
        }
        if kind.ends_the_process() {
            site.view.started(machine, None);
        }
        Ok((Self::OfNode(kind, machine), words))
    }

    fn begin_cut(id: u64, occupied: &[u64], prng: &mut Prng) -> Outcome<(Self, String)> {
        let all = directions(occupied);
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

    /// Ends the fault.
    pub(crate) fn end(&self, site: &mut Site) -> Outcome<()> {
        let (kind, machine) = match self {
            Self::Cut(cuts) => return cuts.iter().try_for_each(|(from, to)| connect(*from, *to)),
            Self::OfNode(kind, machine) => (*kind, *machine),
        };
        let node = site.node(machine)?;
        match kind {
            Kind::Pause => node.signal(Signal::CONT)?,
            Kind::FreezeDisk => node.disk.thaw()?,
            Kind::FillDisk => node.disk.empty()?,
            Kind::WrongClock => node.stop()?,
            Kind::Slow => fast(machine)?,
            Kind::Kill | Kind::Stop | Kind::Cut | Kind::Transfer | Kind::Snapshot => {}
        }
        if kind.ends_the_process() { site.run(machine, None) } else { Ok(()) }
    }

    /// Returns the machines that are under the fault.
    pub(crate) fn machines(&self) -> Vec<u64> {
        match self {
            Self::OfNode(_, machine) => vec![*machine],
            Self::Cut(cuts) => {
                // A cut counts for one machine if that machine is an end of every direction that is
                // cut; any other cut counts for all machines in it.
                let ends = || cuts.iter().flat_map(|(from, to)| [*from, *to]);
                let is_alone = |id: u64| cuts.iter().all(|(from, to)| *from == id || *to == id);
                let alone = ends().find(|id| is_alone(*id));
                alone.map_or_else(|| ends().collect(), |id| vec![id])
            }
        }
    }

    /// Returns whether this is a fault of the network.
    pub(crate) fn is_of_network(&self) -> bool {
        matches!(self, Self::Cut(_) | Self::OfNode(Kind::Slow, _))
    }
}
