//! What the source of the faults and the operator act on: the machines, the record, and the view.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::net::FOUNDERS;
use crate::node::{Node, Setup, words};
use crate::record::Record;
use crate::shell::Outcome;
use crate::view::View;

/// A node still counts as under a fault for this time after a start: it starts, or catches up.
pub(crate) const AFTERMATH: Duration = Duration::from_secs(3);

/// The machines, on some of which a node runs, with what is known of them.
pub(crate) struct Site {
    /// A place for a node on each machine, in the order of their numbers.
    pub(crate) nodes: Vec<Node>,
    pub(crate) record: Arc<Record>,
    pub(crate) view: Arc<View>,
    pub(crate) binary: PathBuf,
}

impl Site {
    /// Starts the founders on the first machines.
    pub(crate) fn start(
        nodes: Vec<Node>,
        record: Arc<Record>,
        view: Arc<View>,
        setup: &Setup,
    ) -> Outcome<Self> {
        let mut site = Self { nodes, record, view, binary: setup.binary.clone() };
        for machine in 1..=FOUNDERS {
            site.run(machine, None)?;
        }
        Ok(site)
    }

    /// Returns the node on a machine.
    pub(crate) fn node(&mut self, machine: u64) -> Outcome<&mut Node> {
        let found = self.nodes.iter_mut().find(|node| node.machine == machine);
        found.ok_or_else(|| format!("there is no machine {machine}"))
    }

    /// Starts the node on a machine. With `clock`, its wall clock is wrong by that much.
    pub(crate) fn run(&mut self, machine: u64, clock: Option<&str>) -> Outcome<()> {
        let now = self.record.now();
        let node = self.node(machine)?;
        if node.is_vacant() {
            return Ok(());
        }
        node.start(clock)?;
        node.counts_until = now + AFTERMATH;
        let address = node.client_addr();
        self.view.started(machine, Some(address));
        Ok(())
    }

    /// Kills the node on a machine.
    pub(crate) fn kill(&mut self, machine: u64) -> Outcome<()> {
        self.node(machine)?.kill()?;
        self.view.started(machine, None);
        Ok(())
    }

    /// Returns the machines on which a node is.
    pub(crate) fn occupied(&self) -> Vec<u64> {
        let occupied = self.nodes.iter().filter(|node| !node.is_vacant());
        occupied.map(|node| node.machine).collect()
    }

    /// Finds processes that have ended by themselves; one that should not have is started again.
    pub(crate) fn check_ends(&mut self) -> Outcome<()> {
        let mut broken = Vec::new();
        for node in &mut self.nodes {
            let Some(exit) = node.ended()? else { continue };
            let words = format!("the node on machine {} ended: {}", node.machine, words(exit));
            if node.may_end(exit) {
                self.record.say(&words);
            } else {
                self.record.finding(&format!("{words}\n    {}", node.last_lines()));
                broken.push(node.machine);
            }
        }
        broken.into_iter().try_for_each(|machine| self.run(machine, None))
    }
}
