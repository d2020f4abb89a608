//! Draws faults from a seed, begins and ends them, and checks that the cluster recovers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use d_engine_sim::Prng;
use tokio::runtime::Handle;

use crate::clients::connect;
use crate::faults::{Fault, Kind};
use crate::net::founders;
use crate::operator::Operator;
use crate::record::Record;
use crate::shell::{Outcome, run};
use crate::site::{AFTERMATH, Site};

/// The time between two turns of the nemesis.
const TURN: Duration = Duration::from_millis(50);
/// The length of a phase of faults; a calm follows, in which the cluster must recover.
const PHASE: Duration = Duration::from_secs(40);
/// The first write must be acknowledged within this time after a calm starts.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// All nodes must have caught up within this time after a calm starts.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// All changes of the members must be done within this time after a calm starts, and all nodes must
/// then know the same members. A joint configuration that could not be committed is tried again
/// after a wait that doubles, up to half a minute in a phase; and a new node may need a snapshot.
const SETTLED_MAX: Duration = Duration::from_secs(90);
/// The length of a phase if the rollback of data directories is planted.
const PLANTED_PHASE: Duration = Duration::from_secs(8);
/// A run ends early after this many findings: more of them teach nothing.
const FINDINGS_MAX: usize = 10;

/// A fault that has begun, and when it ends.
#[derive(Debug)]
struct Active {
    fault: Fault,
    ends: Duration,
}

/// The source of the faults. It runs on a thread of its own, since the tools that it uses block.
pub(crate) struct Nemesis {
    pub(crate) site: Site,
    record: Arc<Record>,
    /// Changes the members; `None` if they stay the same.
    pub(crate) operator: Option<Operator>,
    pub(crate) runtime: Handle,
    pub(crate) prng: Prng,
    /// Whether wrong clocks are possible, that is libfaketime is installed.
    pub(crate) has_faketime: bool,
    /// Where the planted rollback keeps its copies; `None` if it is not planted.
    pub(crate) plants_rollback: Option<PathBuf>,
    pub(crate) interrupted: Arc<AtomicBool>,
    active: Vec<Active>,
    /// Machines whose fault ended recently, and until when they count as under one.
    recent: Vec<(u64, Duration)>,
    /// The longest time from the start of a calm to the next acknowledged write.
    pub(crate) slowest_recovery: Duration,
}

impl Nemesis {
    /// Creates the source of the faults of `seed`.
    pub(crate) fn new(site: Site, seed: u64) -> Self {
        Self {
            record: site.record.clone(),
            site,
            operator: None,
            runtime: Handle::current(),
            prng: Prng::stream(seed, "nemesis"),
            has_faketime: false,
            plants_rollback: None,
            interrupted: Arc::default(),
            active: Vec::new(),
            recent: Vec::new(),
            slowest_recovery: Duration::ZERO,
        }
    }

    fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed) || self.record.findings().len() >= FINDINGS_MAX
    }

    /// Runs phases of faults for `length`, each followed by a calm, in which all faults have ended.
    pub(crate) fn work(&mut self, length: Duration) -> Outcome<()> {
        self.calm()?;
        let end = self.record.now() + length;
        let mut phases = 0_u64;
        while self.record.now() < end && !self.is_interrupted() {
            let length = if self.plants_rollback.is_some() { PLANTED_PHASE } else { PHASE };
            // In every other phase at most one node is under a fault; a majority must then lose
            // little time.
            let most = if phases.is_multiple_of(2) { 1 } else { 2 };
            self.phase((self.record.now() + length).min(end), most)?;
            self.calm()?;
            self.plant(phases)?;
            phases += 1;
        }
        Ok(())
    }

    fn phase(&mut self, end: Duration, most: usize) -> Outcome<()> {
        self.record.say(&format!("phase: at most {most} node(s) under a fault at once"));
        let mut next = self.record.now();
        while self.record.now() < end && !self.is_interrupted() {
            if let Some(machine) = self.turn(false)? {
                self.kill_in_the_middle(machine, most)?;
            }
            if self.record.now() >= next {
                self.maybe_begin(most)?;
                next = self.record.now() + Duration::from_millis(self.prng.between(100, 3_000));
            }
            std::thread::sleep(TURN);
        }
        Ok(())
    }

    /// Ends faults whose time is over, checks whether a process has ended unexpectedly, and lets
    /// the operator work. Returns the machine on which the operator wants the node killed now.
    fn turn(&mut self, is_calm: bool) -> Outcome<Option<u64>> {
        let now = self.record.now();
        let (due, active) =
            std::mem::take(&mut self.active).into_iter().partition(|one| one.ends <= now);
        self.active = active;
        let due: Vec<Active> = due;
        for one in due {
            self.end(&one.fault)?;
        }
        self.site.check_ends()?;
        let concerned = self.concerned();
        let mut kills = None;
        let has_majority = if let Some(mut operator) = self.operator.take() {
            let faulty = self.active.iter().flat_map(|one| one.fault.machines()).collect();
            kills = operator.turn(&mut self.site, &faulty, is_calm)?;
            let has_majority = operator.has_majority_without(&concerned);
            self.operator = Some(operator);
            has_majority
        } else {
            concerned.len() <= 1
        };
        if !has_majority {
            self.record.many_faults();
        }
        Ok(kills)
    }

    /// Returns the machines that are under a fault, or were until just now.
    fn concerned(&mut self) -> BTreeSet<u64> {
        let now = self.record.now();
        self.recent.retain(|(_, until)| *until > now);
        let recent = self.recent.iter().map(|(machine, _)| *machine);
        let nodes = self.site.nodes.iter();
        let started = nodes.filter(|node| !node.is_vacant() && node.counts_until > now);
        let started = started.map(|node| node.machine);
        let active = self.active.iter().flat_map(|one| one.fault.machines());
        active.chain(recent).chain(started).collect()
    }

    fn end(&mut self, fault: &Fault) -> Outcome<()> {
        match fault.end(&mut self.site) {
            Ok(()) => {
                let until = self.record.now() + AFTERMATH;
                self.recent.extend(fault.machines().into_iter().map(|machine| (machine, until)));
                self.record.say(&format!("ended: {fault:?}"));
                Ok(())
            }
            Err(problem) => self.broken_stop(fault, &problem),
        }
    }

    /// Records a fault that could not be begun or ended, such as an orderly stop that failed, as a
    /// finding, and starts its nodes again.
    fn broken_stop(&mut self, fault: &Fault, problem: &str) -> Outcome<()> {
        self.record.finding(problem);
        for machine in fault.machines() {
            self.site.kill(machine)?;
            self.site.run(machine, None)?;
        }
        Ok(())
    }

    fn maybe_begin(&mut self, most: usize) -> Outcome<()> {
        let kind = Kind::draw(&mut self.prng);
        let nodes = self.site.nodes.iter();
        let drawn = nodes.filter(|node| !node.is_vacant() && !node.is_reserved);
        let drawn: Vec<u64> = drawn.map(|node| node.machine).collect();
        let Some(drawn) = self.prng.pick(&drawn).copied() else { return Ok(()) };
        let leader = self.site.view.leader().filter(|_| self.prng.chance(500_000));
        let machine = leader.unwrap_or(drawn);
        match kind {
            Kind::Transfer => self.transfer(drawn),
            Kind::Snapshot => self.snapshot(machine),
            Kind::WrongClock if !self.has_faketime => Ok(()),
            _ => self.begin(kind, machine, most).map(drop),
        }
    }

    /// Kills the node on a machine because the operator changes the members at this moment.
    fn kill_in_the_middle(&mut self, machine: u64, most: usize) -> Outcome<()> {
        if self.begin(Kind::Kill, machine, most)? {
            self.record.change("(killed in the middle)");
        }
        Ok(())
    }

    /// Begins a fault, unless too many nodes are under one; returns whether it has begun.
    fn begin(&mut self, kind: Kind, machine: u64, most: usize) -> Outcome<bool> {
        let is_taken = self.active.iter().any(|one| match &one.fault {
            Fault::OfNode(_, of) => *of == machine,
            Fault::Cut(_) => false,
        });
        let is_of_network = matches!(kind, Kind::Cut | Kind::Slow);
        let node = self.site.node(machine)?;
        if is_taken
            || node.is_reserved
            || node.is_vacant()
            || is_of_network && self.active.iter().any(|one| one.fault.is_of_network())
        {
            return Ok(false);
        }
        let now = self.record.now();
        let recent = self.recent.iter().filter(|(_, until)| *until > now);
        let active = self.active.iter().flat_map(|one| one.fault.machines());
        let mut under: BTreeSet<u64> = active.chain(recent.map(|(id, _)| *id)).collect();
        under.insert(machine);
        if under.len() > most {
            return Ok(false);
        }
        let leads = self.site.view.leader() == Some(machine);
        let (from, to) = kind.lasts();
        let length = Duration::from_millis(self.prng.between(from, to));
        match Fault::begin(kind, machine, &mut self.site, &mut self.prng) {
            Ok((fault, said)) => {
                let leads = if leads { " (the leader)" } else { "" };
                self.record.say(&format!("{said}{leads}, for {:.1} s", length.as_secs_f64()));
                self.active.push(Active { fault, ends: self.record.now() + length });
                self.record.fault(kind.name());
                Ok(true)
            }
            Err(problem) => {
                self.broken_stop(&Fault::OfNode(kind, machine), &problem).map(|()| false)
            }
        }
    }

    fn transfer(&mut self, to: u64) -> Outcome<()> {
        let Some(said) = self.site.view.said(to) else { return Ok(()) };
        if self.site.view.leader() == Some(to) {
            return Ok(());
        }
        let to = said.node;
        let known = self.site.view.addresses();
        let client = connect(if known.is_empty() { founders() } else { known })?;
        let moved = self.runtime.block_on(client.client().transfer_leadership(Some(to)));
        self.record.fault(Kind::Transfer.name());
        match moved {
            Ok(leader) => self.record.say(&format!("leadership transfer: node {leader} leads")),
            Err(error) => {
                self.record.say(&format!("leadership transfer to node {to} refused: {error}"))
            }
        }
        Ok(())
    }

    fn snapshot(&mut self, machine: u64) -> Outcome<()> {
        let address = self.site.node(machine)?.client_addr();
        let client = connect([address.clone()])?;
        let taken = self.runtime.block_on(client.client().take_snapshot(&address));
        self.record.fault(Kind::Snapshot.name());
        match taken {
            Ok(taken) => {
                let said = format!("{} bytes at {}", taken.bytes, taken.index);
                self.record.say(&format!("snapshot: machine {machine}: {said}"));
            }
            Err(error) => {
                self.record.say(&format!("snapshot: machine {machine} refused: {error}"));
            }
        }
        Ok(())
    }

    /// Ends every fault, and waits until writes are acknowledged, all nodes have caught up, and the
    /// members are as the operator wants them.
    pub(crate) fn calm(&mut self) -> Outcome<()> {
        for one in std::mem::take(&mut self.active) {
            self.end(&one.fault)?;
        }
        let begin = self.record.now();
        let mut first = None;
        while !self.is_interrupted() {
            self.turn(true)?;
            let waited = self.record.now().saturating_sub(begin);
            if first.is_none() && self.record.pauses().last() > begin {
                first = Some(self.record.pauses().last().saturating_sub(begin));
            }
            if first.is_none() && waited > RECOVERY_MAX {
                self.record.finding(&format!(
                    "no write was acknowledged within {RECOVERY_MAX:?} after the end of all faults"
                ));
                first = Some(waited);
            }
            let unsettled = self.operator.as_ref().and_then(|it| it.unsettled(&self.site));
            let longest = if self.operator.is_some() { SETTLED_MAX } else { CATCH_UP_MAX };
            let behind: Vec<String> = self.behind().into_iter().chain(unsettled).collect();
            match first {
                Some(first) if behind.is_empty() => {
                    self.slowest_recovery = self.slowest_recovery.max(first);
                    self.record.say(&format!(
                        "calm: writes after {:.1} s, all nodes caught up after {:.1} s",
                        first.as_secs_f64(),
                        waited.as_secs_f64()
                    ));
                    return match &mut self.operator {
                        Some(operator) => operator.check_lists(&self.site),
                        None => Ok(()),
                    };
                }
                _ if waited > longest => {
                    self.record.finding(&format!(
                        "not caught up {longest:?} after the end of all faults: {}",
                        behind.join("; ")
                    ));
                    return Ok(());
                }
                _ => std::thread::sleep(TURN),
            }
        }
        Ok(())
    }

    /// Describes the nodes that are not ready, or far behind the leader.
    fn behind(&self) -> Vec<String> {
        let view = &self.site.view;
        let commit = view.said_by_leader().map_or(u64::MAX, |leader| leader.commit_index);
        let describe = |machine: u64| match view.said(machine) {
            Some(said) if said.ready && said.applied_index + 100 >= commit => None,
            Some(said) => Some(format!(
                "node {} on machine {machine}: ready {}, applied {}",
                said.node, said.ready, said.applied_index
            )),
            None => Some(format!("machine {machine}: no status")),
        };
        self.site.occupied().into_iter().filter_map(describe).collect()
    }

    /// The planted fault: the data directories are copied after the first phase and put back after
    /// the second.
    fn plant(&mut self, phase: u64) -> Outcome<()> {
        let Some(dir) = self.plants_rollback.clone() else { return Ok(()) };
        if phase > 1 {
            return Ok(());
        }
        for node in self.site.nodes.iter_mut().filter(|node| !node.is_vacant()) {
            node.kill()?;
            let (data, copy) = (node.data(), dir.join(format!("copy-{}", node.machine)));
            if phase == 0 {
                run(&format!("cp -a {} {}", data.display(), copy.display()))?;
            } else {
                node.wipe()?;
                run(&format!("cp -a {} {}", copy.display(), data.display()))?;
            }
        }
        self.record.say(if phase == 0 {
            "planted: every data directory is copied"
        } else {
            "planted: every data directory is put back to its copy"
        });
        for machine in self.site.occupied() {
            self.site.run(machine, None)?;
        }
        self.calm()
    }

    /// Shuts every node down in an orderly way, and unmounts the disks.
    pub(crate) fn finish(mut self) -> Outcome<()> {
        drop(self.operator);
        for node in &mut self.site.nodes {
            if let Err(problem) = node.stop() {
                self.record.finding(&problem);
                node.kill()?;
            }
        }
        for node in &mut self.site.nodes {
            node.disk.unmount()?;
        }
        Ok(())
    }
}
