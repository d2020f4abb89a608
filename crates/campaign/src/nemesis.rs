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
use crate::net::{NODES, client_addr};
use crate::node::{Node, words};
use crate::record::Record;
use crate::shell::{Outcome, run};
use crate::watch::View;

/// The time between two turns of the nemesis.
const TURN: Duration = Duration::from_millis(50);
/// The length of a phase of faults; a calm follows, in which the cluster must recover.
const PHASE: Duration = Duration::from_secs(40);
/// The first write must be acknowledged within this time after a calm starts.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// All nodes must have caught up within this time after a calm starts.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// A node still counts as under a fault for this time afterwards: it starts, or catches up.
const AFTERMATH: Duration = Duration::from_secs(3);
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
    pub(crate) nodes: Vec<Node>,
    pub(crate) record: Arc<Record>,
    pub(crate) view: Arc<View>,
    pub(crate) runtime: Handle,
    pub(crate) prng: Prng,
    /// Whether wrong clocks are possible, that is libfaketime is installed.
    pub(crate) has_faketime: bool,
    /// Where the planted rollback keeps its copies; `None` if it is not planted.
    pub(crate) plants_rollback: Option<PathBuf>,
    pub(crate) interrupted: Arc<AtomicBool>,
    active: Vec<Active>,
    /// Nodes whose fault ended recently, and until when they count as under one.
    recent: Vec<(u64, Duration)>,
    /// The longest time from the start of a calm to the next acknowledged write.
    pub(crate) slowest_recovery: Duration,
}

impl Nemesis {
    /// Starts the nodes, without faults.
    pub(crate) fn start(
        mut nodes: Vec<Node>,
        record: Arc<Record>,
        view: Arc<View>,
        seed: u64,
    ) -> Outcome<Self> {
        for node in &mut nodes {
            node.start(None)?;
        }
        Ok(Self {
            nodes,
            record,
            view,
            runtime: Handle::current(),
            prng: Prng::stream(seed, "nemesis"),
            has_faketime: false,
            plants_rollback: None,
            interrupted: Arc::default(),
            active: Vec::new(),
            recent: Vec::new(),
            slowest_recovery: Duration::ZERO,
        })
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
            self.turn()?;
            if self.record.now() >= next {
                self.maybe_begin(most)?;
                next = self.record.now() + Duration::from_millis(self.prng.between(100, 3_000));
            }
            std::thread::sleep(TURN);
        }
        Ok(())
    }

    /// Ends faults whose time is over, and checks whether a process has ended unexpectedly.
    fn turn(&mut self) -> Outcome<()> {
        let now = self.record.now();
        let (due, active) =
            std::mem::take(&mut self.active).into_iter().partition(|one| one.ends <= now);
        self.active = active;
        let due: Vec<Active> = due;
        for one in due {
            self.end(&one.fault)?;
        }
        for node in &mut self.nodes {
            if let Some(exit) = node.ended()? {
                let tail = node.last_lines();
                let text = format!("node {} ended by itself: {}\n    {tail}", node.id, words(exit));
                self.record.finding(&text);
                self.view.started(node.id);
                node.start(None)?;
            }
        }
        if self.concerned().len() > 1 {
            self.record.many_faults();
        }
        Ok(())
    }

    fn concerned(&mut self) -> BTreeSet<u64> {
        let now = self.record.now();
        self.recent.retain(|(_, until)| *until > now);
        let recent = self.recent.iter().map(|(node, _)| *node);
        self.active.iter().flat_map(|one| one.fault.nodes()).chain(recent).collect()
    }

    fn end(&mut self, fault: &Fault) -> Outcome<()> {
        if let Fault::OfNode(Kind::WrongClock, id) = fault {
            self.view.started(*id);
        }
        match fault.end(&mut self.nodes) {
            Ok(started) => {
                for id in fault.nodes() {
                    if started {
                        self.view.started(id);
                    }
                    self.recent.push((id, self.record.now() + AFTERMATH));
                }
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
        for id in fault.nodes() {
            if let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) {
                node.kill()?;
                node.start(None)?;
                self.view.started(id);
            }
        }
        Ok(())
    }

    fn maybe_begin(&mut self, most: usize) -> Outcome<()> {
        let kind = Kind::draw(&mut self.prng);
        let drawn = self.prng.between(1, NODES);
        let aims_at_leader = self.prng.chance(500_000);
        let id = if aims_at_leader { self.view.leader().unwrap_or(drawn) } else { drawn };
        match kind {
            Kind::Transfer => return self.transfer(drawn),
            Kind::Snapshot => return self.snapshot(id),
            Kind::WrongClock if !self.has_faketime => return Ok(()),
            _ => {}
        }
        let mut concerned = self.concerned();
        let is_free = !self.active.iter().any(|one| match &one.fault {
            Fault::OfNode(_, of) => *of == id,
            Fault::Cut(_) => false,
        });
        let is_of_network = matches!(kind, Kind::Cut | Kind::Slow);
        if !is_free || is_of_network && self.active.iter().any(|one| one.fault.is_of_network()) {
            return Ok(());
        }
        concerned.insert(id);
        if concerned.len() > most {
            return Ok(());
        }
        let Some(node) = self.nodes.iter_mut().find(|node| node.id == id) else { return Ok(()) };
        let (from, to) = kind.lasts();
        let length = Duration::from_millis(self.prng.between(from, to));
        match Fault::begin(kind, node, &mut self.prng) {
            Ok((fault, said)) => {
                let leads = if self.view.leader() == Some(id) { " (the leader)" } else { "" };
                self.record.say(&format!("{said}{leads}, for {:.1} s", length.as_secs_f64()));
                if matches!(kind, Kind::Kill | Kind::Stop | Kind::WrongClock) {
                    self.view.started(id);
                }
                self.active.push(Active { fault, ends: self.record.now() + length });
                self.record.fault(kind.name());
                Ok(())
            }
            Err(problem) => self.broken_stop(&Fault::OfNode(kind, id), &problem),
        }
    }

    fn transfer(&mut self, to: u64) -> Outcome<()> {
        if self.view.leader() == Some(to) {
            return Ok(());
        }
        let client = connect(1..=NODES)?;
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

    fn snapshot(&mut self, id: u64) -> Outcome<()> {
        let client = connect([id])?;
        let taken = self.runtime.block_on(client.client().take_snapshot(&client_addr(id)));
        self.record.fault(Kind::Snapshot.name());
        match taken {
            Ok(taken) => {
                self.record
                    .say(&format!("snapshot: node {id}: {} bytes at {}", taken.bytes, taken.index));
            }
            Err(error) => self.record.say(&format!("snapshot: node {id} refused: {error}")),
        }
        Ok(())
    }

    /// Ends every fault, and waits until writes are acknowledged and all nodes have caught up.
    pub(crate) fn calm(&mut self) -> Outcome<()> {
        for one in std::mem::take(&mut self.active) {
            self.end(&one.fault)?;
        }
        let begin = self.record.now();
        let mut first = None;
        loop {
            if self.is_interrupted() {
                return Ok(());
            }
            self.turn()?;
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
            let behind = self.behind();
            match (first, behind.is_empty()) {
                (Some(first), true) => {
                    self.slowest_recovery = self.slowest_recovery.max(first);
                    self.record.say(&format!(
                        "calm: writes after {:.1} s, all nodes caught up after {:.1} s",
                        first.as_secs_f64(),
                        waited.as_secs_f64()
                    ));
                    return Ok(());
                }
                _ if waited > CATCH_UP_MAX => {
                    self.record.finding(&format!(
                        "not caught up {CATCH_UP_MAX:?} after the end of all faults: {}",
                        behind.join("; ")
                    ));
                    return Ok(());
                }
                _ => std::thread::sleep(TURN),
            }
        }
    }

    /// Describes the nodes that are not ready, or far behind the leader.
    fn behind(&self) -> Vec<String> {
        let leader = self.view.leader().and_then(|id| self.view.said(id));
        let commit = leader.map_or(u64::MAX, |leader| leader.commit_index);
        let is_there = |node: &u64| {
            self.view
                .said(*node)
                .is_some_and(|said| said.ready && said.applied_index + 100 >= commit)
        };
        let describe = |node: u64| match self.view.said(node) {
            Some(said) => {
                format!("node {node}: ready {}, applied {}", said.ready, said.applied_index)
            }
            None => format!("node {node}: no status"),
        };
        (1..=NODES).filter(|node| !is_there(node)).map(describe).collect()
    }

    /// The planted fault: the data directories are copied after the first phase and put back after
    /// the second.
    fn plant(&mut self, phase: u64) -> Outcome<()> {
        let Some(dir) = self.plants_rollback.clone() else { return Ok(()) };
        if phase > 1 {
            return Ok(());
        }
        for node in &mut self.nodes {
            node.kill()?;
            let (data, copy) = (node.data(), dir.join(format!("copy-{}", node.id)));
            if phase == 0 {
                run(&format!("cp -a {} {}", data.display(), copy.display()))?;
            } else {
                run(&format!("rm -r {}", data.display()))?;
                run(&format!("cp -a {} {}", copy.display(), data.display()))?;
            }
        }
        self.record.say(if phase == 0 {
            "planted: every data directory is copied"
        } else {
            "planted: every data directory is put back to its copy"
        });
        for node in &mut self.nodes {
            node.start(None)?;
            self.view.started(node.id);
        }
        self.calm()
    }

    /// Shuts every node down in an orderly way, and unmounts the disks.
    pub(crate) fn finish(mut self) -> Outcome<()> {
        for node in &mut self.nodes {
            if let Err(problem) = node.stop() {
                self.record.finding(&problem);
                node.kill()?;
            }
        }
        for node in &mut self.nodes {
            node.disk.unmount()?;
        }
        Ok(())
    }
}
