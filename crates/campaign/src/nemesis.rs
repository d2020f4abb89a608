//! Draws faults from a seed, does them, undoes them, and sees to it that the cluster recovers.

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

/// Between two looks at what is to be done.
const TURN: Duration = Duration::from_millis(50);
/// Faults for so long, then a calm in which the cluster must recover.
const PHASE: Duration = Duration::from_secs(40);
/// The first write after a calm has begun.
const RECOVERY_MAX: Duration = Duration::from_secs(10);
/// All nodes are where the leader was.
const CATCH_UP_MAX: Duration = Duration::from_secs(60);
/// So long after its fault a node still counts as under one: it starts, or catches up.
const AFTERMATH: Duration = Duration::from_secs(3);
/// A fault that is put in to see that it is found: the data directories of an earlier moment come back.
const PLANTED_PHASE: Duration = Duration::from_secs(8);
/// A run with so many findings tells nothing more.
const FINDINGS_MAX: usize = 10;

/// A fault under way.
#[derive(Debug)]
struct Active {
    fault: Fault,
    ends: Duration,
}

/// Who does the faults. It works on a thread of its own, since the tools that it uses block.
pub(crate) struct Nemesis {
    pub(crate) nodes: Vec<Node>,
    pub(crate) record: Arc<Record>,
    pub(crate) view: Arc<View>,
    pub(crate) runtime: Handle,
    pub(crate) prng: Prng,
    /// Whether wrong clocks can be shown.
    pub(crate) has_faketime: bool,
    /// Where the copies are kept for the planted fault.
    pub(crate) plants_rollback: Option<PathBuf>,
    pub(crate) interrupted: Arc<AtomicBool>,
    active: Vec<Active>,
    /// Nodes whose fault has ended lately.
    recent: Vec<(u64, Duration)>,
    /// The longest time that a calm cluster took to acknowledge a write.
    pub(crate) slowest_recovery: Duration,
}

impl Nemesis {
    /// Starts the nodes.
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

    /// Works for so long; everything is healed afterwards.
    pub(crate) fn work(&mut self, length: Duration) -> Outcome<()> {
        self.calm()?;
        let end = self.record.now() + length;
        let mut phases = 0_u64;
        while self.record.now() < end && !self.is_interrupted() {
            let length = if self.plants_rollback.is_some() { PLANTED_PHASE } else { PHASE };
            // Faults of one node at a time, which a majority must not notice for long, in every other phase.
            let most = if phases.is_multiple_of(2) { 1 } else { 2 };
            self.phase((self.record.now() + length).min(end), most)?;
            self.calm()?;
            self.plant(phases)?;
            phases += 1;
        }
        Ok(())
    }

    fn phase(&mut self, end: Duration, most: usize) -> Outcome<()> {
        self.record.say(&format!("phase of at most {most} node(s) under a fault at once"));
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

    /// Ends what is due, and looks whether a process has ended by itself.
    fn turn(&mut self) -> Outcome<()> {
        let now = self.record.now();
        let (due, active) = std::mem::take(&mut self.active).into_iter().partition(|one| one.ends <= now);
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

    /// A node that did not stop in order is a finding; the campaign goes on with it.
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
                let leads = if self.view.leader() == Some(id) { " (it led)" } else { "" };
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
            Err(error) => self.record.say(&format!("leadership transfer to node {to} refused: {error}")),
        }
        Ok(())
    }

    fn snapshot(&mut self, id: u64) -> Outcome<()> {
        let client = connect([id])?;
        let taken = self.runtime.block_on(client.client().take_snapshot(&client_addr(id)));
        self.record.fault(Kind::Snapshot.name());
        match taken {
            Ok(taken) => {
                self.record.say(&format!("snapshot: node {id}: {} bytes at {}", taken.bytes, taken.index));
            }
            Err(error) => self.record.say(&format!("snapshot: node {id} took none: {error}")),
        }
        Ok(())
    }

    /// Ends every fault, and waits until the cluster works as a whole again.
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
                self.record.finding(&format!("no write was acknowledged within {RECOVERY_MAX:?} of a calm"));
                first = Some(waited);
            }
            let behind = self.behind();
            match (first, behind.is_empty()) {
                (Some(first), true) => {
                    self.slowest_recovery = self.slowest_recovery.max(first);
                    self.record.say(&format!(
                        "calm: writes after {:.1} s, all nodes there after {:.1} s",
                        first.as_secs_f64(),
                        waited.as_secs_f64()
                    ));
                    return Ok(());
                }
                _ if waited > CATCH_UP_MAX => {
                    self.record
                        .finding(&format!("not there {CATCH_UP_MAX:?} after a calm: {}", behind.join("; ")));
                    return Ok(());
                }
                _ => std::thread::sleep(TURN),
            }
        }
    }

    /// Nodes that are not ready, or far behind the leader.
    fn behind(&self) -> Vec<String> {
        let leader = self.view.leader().and_then(|id| self.view.said(id));
        let commit = leader.map_or(u64::MAX, |leader| leader.commit_index);
        let is_there = |node: &u64| {
            self.view.said(*node).is_some_and(|said| said.ready && said.applied_index + 100 >= commit)
        };
        let describe = |node: u64| match self.view.said(node) {
            Some(said) => format!("node {node}: ready {}, applied {}", said.ready, said.applied_index),
            None => format!("node {node} says nothing"),
        };
        (1..=NODES).filter(|node| !is_there(node)).map(describe).collect()
    }

    /// The planted fault: all nodes go back to where they were two phases before.
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
            "planted: a copy of every data directory"
        } else {
            "planted: every data directory is put back to its copy"
        });
        for node in &mut self.nodes {
            node.start(None)?;
            self.view.started(node.id);
        }
        self.calm()
    }

    /// Stops every node in order.
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
