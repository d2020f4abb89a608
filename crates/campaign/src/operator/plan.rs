//! Decides which change comes next. A change is only planned if it leaves the data of a majority of
//! the voters alone, before it and after it.

use std::collections::VecDeque;
use std::time::Duration;

use d_engine_sim::Prng;

use super::book::{Book, Entry};
use super::job::{Change, DRAWN, Job, MORE_VOTERS, Step, Victim};
use crate::config::{Join, Origin, Ports};
use crate::net::{PORTS, address};
use crate::site::Site;

/// The most members.
const MEMBERS_MAX: usize = 5;
/// The fewest voters for a change after which one fewer votes, or by which one is lost.
const VOTERS_TO_LOSE_ONE: usize = 3;
/// No data is destroyed before: the cluster has to learn the directories of its founders first.
const DESTROYS_AFTER: Duration = Duration::from_secs(8);
/// How many ports a node may choose from.
const PORTS_MAX: u64 = 5;

/// What a plan depends on.
pub(super) struct Planner<'a> {
    pub(super) prng: &'a mut Prng,
    pub(super) book: &'a Book,
    pub(super) site: &'a Site,
}

/// A change as it is planned.
struct Plan {
    words: String,
    steps: Vec<Step>,
    after: Book,
    down: Vec<u64>,
    /// The node that joins, leaves or changes.
    subject: u64,
}

impl Planner<'_> {
    /// Draws a change; returns `None` if it is not possible now.
    pub(super) fn plan(mut self) -> Option<Job> {
        let few = self.book.with_role(true).len() < VOTERS_TO_LOSE_ONE;
        let more = few && self.prng.chance(700_000);
        let change = self.prng.pick(if more { MORE_VOTERS } else { DRAWN }).copied()?;
        // An earlier change must be known to the leader, and be done.
        let leader = self.site.view.said_by_leader()?;
        if !self.book.is_shown_by(&leader, self.site) {
            return None;
        }
        let now = self.site.record.now();
        if change.destroys() && now < DESTROYS_AFTER {
            return None;
        }
        let plan = self.steps(change)?;
        let victim = match self.prng.below(5) {
            0 | 1 => Some(Victim::Leader),
            2 => Some(Victim::Machine(plan.subject)),
            _ => None,
        };
        Some(Job {
            change,
            words: plan.words,
            began: now,
            steps: VecDeque::from(plan.steps),
            since: None,
            after: plan.after,
            down: plan.down.into_iter().collect(),
            call: None,
            again_at: Duration::ZERO,
            victim,
            kill_at: None,
        })
    }

    fn steps(&mut self, change: Change) -> Option<Plan> {
        match change {
            Change::AddVoter => self.add(true),
            Change::AddLearner => self.add(false),
            Change::Remove => self.remove(),
            Change::RemoveLeader => {
                let leader = self.site.view.leader()?;
                let votes = self.book.0.get(&leader)?.is_voter;
                if votes { self.remove_one(leader, false) } else { None }
            }
            Change::ReplaceLost => self.replace_lost(),
            Change::Return => self.wiped(),
            Change::HandOver => self.hand_over(),
            Change::Promote => self.role(true),
            Change::Demote => self.role(false),
            Change::Move => self.moves(),
        }
    }

    fn voter(&mut self) -> Option<u64> {
        self.prng.pick(&self.book.with_role(true)).copied()
    }

    /// Draws a voter, if so many vote that one may stop.
    fn spare_voter(&mut self) -> Option<u64> {
        let voters = self.book.with_role(true);
        if voters.len() < VOTERS_TO_LOSE_ONE { None } else { self.voter() }
    }

    fn learner(&mut self) -> Option<u64> {
        self.prng.pick(&self.book.with_role(false)).copied()
    }

    fn vacant(&mut self) -> Option<u64> {
        let nodes = self.site.nodes.iter();
        let vacant: Vec<u64> =
            nodes.filter(|node| node.is_vacant()).map(|node| node.machine).collect();
        self.prng.pick(&vacant).copied()
    }

    fn id(&self, machine: u64) -> Option<u64> {
        self.book.0.get(&machine).map(|entry| entry.id)
    }

    /// The address for peers at which a node on this machine is reached.
    fn peer(&self, machine: u64) -> Option<String> {
        let node = self.site.nodes.iter().find(|node| node.machine == machine)?;
        Some(node.peer_addr())
    }

    /// Returns the addresses for peers of some other members than the one on `machine`.
    fn seeds(&mut self, machine: u64) -> Vec<String> {
        let nodes = self.site.nodes.iter();
        let others =
            nodes.filter(|it| self.book.0.contains_key(&it.machine) && it.machine != machine);
        let mut seeds: Vec<String> = others.map(|node| node.peer_addr()).collect();
        while seeds.len() > 1 && self.prng.chance(400_000) {
            let at = usize::try_from(self.prng.below(seeds.len() as u64)).unwrap_or_default();
            seeds.swap_remove(at);
        }
        seeds
    }

    fn join(&mut self, machine: u64, is_voter: bool, replaces: Option<u64>) -> Step {
        let seeds = self.seeds(machine);
        let is_behind_wildcard = self.prng.chance(500_000);
        let is_learner = !is_voter;
        Step::Join(machine, Join { seeds, id: None, is_learner, replaces, is_behind_wildcard })
    }

    /// The members with this one, whose id is not known yet.
    fn with(&self, machine: u64, is_voter: bool) -> Book {
        let mut after = self.book.clone();
        after.0.insert(machine, Entry { id: 0, is_voter });
        after
    }

    fn without(&self, machine: u64) -> Book {
        let mut after = self.book.clone();
        after.0.remove(&machine);
        after
    }

    fn add(&mut self, is_voter: bool) -> Option<Plan> {
        if self.book.0.len() >= MEMBERS_MAX {
            return None;
        }
        let machine = self.vacant()?;
        let announce =
            Step::Member(vec!["add".to_owned(), "--peer".to_owned(), self.peer(machine)?]);
        let mut steps =
            vec![announce, self.join(machine, is_voter, None), Step::Joined(machine, is_voter)];
        if self.prng.chance(300_000) {
            // It asks before it is announced.
            steps.swap(0, 1);
        }
        if is_voter {
            steps.push(Step::Votes(machine));
        }
        steps.push(Step::Enter(machine, is_voter));
        Some(Plan {
            words: format!("machine {machine}"),
            steps,
            after: self.with(machine, is_voter),
            down: vec![machine],
            subject: machine,
        })
    }

    fn remove(&mut self) -> Option<Plan> {
        let learner = self.learner().filter(|_| self.prng.chance(500_000));
        let machine = match learner {
            Some(machine) => machine,
            None => self.spare_voter()?,
        };
        let is_dead = self.prng.chance(300_000);
        self.remove_one(machine, is_dead)
    }

    fn remove_one(&mut self, machine: u64, is_dead: bool) -> Option<Plan> {
        let entry = self.book.0.get(&machine)?;
        if entry.is_voter && self.book.with_role(true).len() < VOTERS_TO_LOSE_ONE {
            return None;
        }
        let id = entry.id;
        let mut steps = Vec::new();
        if is_dead {
            steps.push(Step::Kill(machine));
        }
        steps.push(Step::Leave(machine));
        steps.push(Step::Member(vec!["remove".to_owned(), id.to_string()]));
        steps.push(Step::Drop(machine));
        if is_dead {
            steps.push(Step::Run(machine));
        }
        self.leaves(machine, &mut steps);
        let dead = if is_dead { ", while it is down" } else { "" };
        Some(Plan {
            words: format!("node {id} on machine {machine}{dead}"),
            steps,
            after: self.without(machine),
            down: if is_dead { vec![machine] } else { Vec::new() },
            subject: machine,
        })
    }

    /// The steps after a node was removed.
    fn leaves(&mut self, machine: u64, steps: &mut Vec<Step>) {
        steps.push(Step::Left(machine));
        if self.prng.chance(300_000) {
            // A supervisor that starts it again.
            steps.extend([Step::Run(machine), Step::Left(machine)]);
        }
        steps.push(Step::Vacate(machine));
    }

    fn replace_lost(&mut self) -> Option<Plan> {
        let machine = self.spare_voter()?;
        let id = self.id(machine)?;
        let other = self.vacant().filter(|_| self.prng.chance(500_000));
        let new = other.unwrap_or(machine);
        let mut steps = vec![Step::Kill(machine), Step::Wipe(machine)];
        if new != machine {
            steps.push(Step::Vacate(machine));
        }
        self.replaces(machine, new, id, &mut steps);
        Some(self.lost(
            machine,
            new,
            format!("node {id} on machine {machine}, on machine {new}"),
            steps,
        ))
    }

    /// The steps by which a new node on `new` votes in place of the one on `machine`.
    fn replaces(&mut self, machine: u64, new: u64, id: u64, steps: &mut Vec<Step>) {
        let peer = self.peer(new).unwrap_or_default();
        let words = ["replace", &id.to_string(), "--peer", &peer];
        steps.push(Step::Member(words.map(str::to_owned).to_vec()));
        steps.push(self.join(new, true, Some(id)));
        steps.extend([
            Step::Joined(new, true),
            Step::Votes(new),
            Step::Drop(machine),
            Step::Enter(new, true),
        ]);
    }

    fn lost(&self, machine: u64, new: u64, words: String, steps: Vec<Step>) -> Plan {
        let mut after = self.without(machine);
        after.0.insert(new, Entry { id: 0, is_voter: true });
        Plan { words, steps, after, down: vec![machine, new], subject: new }
    }

    fn wiped(&mut self) -> Option<Plan> {
        let machine = self.spare_voter()?;
        let id = self.id(machine)?;
        let node = self.site.nodes.iter().find(|node| node.machine == machine)?;
        let named = match node.origin {
            Origin::Founds => None,
            Origin::Joins(_) => Some(id).filter(|_| self.prng.chance(500_000)),
        };
        let mut steps = vec![
            Step::Kill(machine),
            Step::Wipe(machine),
            Step::Return(machine, named, self.seeds(machine)),
            Step::Refused(machine),
            Step::Kill(machine),
            Step::Wipe(machine),
        ];
        self.replaces(machine, machine, id, &mut steps);
        Some(self.lost(machine, machine, format!("node {id} on machine {machine}"), steps))
    }

    fn hand_over(&mut self) -> Option<Plan> {
        let (new, old) = (self.learner()?, self.voter()?);
        let (new_id, old_id) = (self.id(new)?, self.id(old)?);
        let words = ["replace", &old_id.to_string(), "--with", &new_id.to_string()];
        let mut steps = vec![
            Step::Leave(old),
            Step::Member(words.map(str::to_owned).to_vec()),
            Step::Drop(old),
            Step::Role(new, true),
        ];
        self.leaves(old, &mut steps);
        let mut after = self.without(old);
        after.0.insert(new, Entry { id: new_id, is_voter: true });
        Some(Plan {
            words: format!("node {old_id} on machine {old} by node {new_id} on machine {new}"),
            steps,
            after,
            down: vec![new],
            subject: old,
        })
    }

    fn role(&mut self, is_voter: bool) -> Option<Plan> {
        let machine = if is_voter { self.learner()? } else { self.spare_voter()? };
        let id = self.id(machine)?;
        let verb = if is_voter { "promote" } else { "demote" };
        let mut after = self.book.clone();
        after.0.insert(machine, Entry { id, is_voter });
        Some(Plan {
            words: format!("node {id} on machine {machine}"),
            steps: vec![
                Step::Member(vec![verb.to_owned(), id.to_string()]),
                Step::Role(machine, is_voter),
            ],
            after,
            down: if is_voter { vec![machine] } else { Vec::new() },
            subject: machine,
        })
    }

    fn moves(&mut self) -> Option<Plan> {
        let members: Vec<u64> = self.book.0.keys().copied().collect();
        let machine = self.prng.pick(&members).copied()?;
        let id = self.id(machine)?;
        let before = self.site.nodes.iter().find(|node| node.machine == machine)?.ports;
        let ports = self.other_ports(before);
        let stop =
            if self.prng.chance(500_000) { Step::Kill(machine) } else { Step::Stop(machine) };
        let seeds = self.seeds(machine);
        let mut steps = vec![stop, Step::Move(machine, ports, seeds), Step::Run(machine)];
        // A new address for peers finds its way by itself; one for clients may not.
        if ports.0 != before.0 || self.prng.chance(500_000) {
            let mut words = vec!["update-address".to_owned(), id.to_string()];
            if ports.1 != before.1 {
                words.extend(["--peer".to_owned(), address(machine, ports.1)]);
            }
            if ports.0 != before.0 {
                words.extend(["--client".to_owned(), address(machine, ports.0)]);
            }
            steps.push(Step::Member(words));
        }
        steps.push(Step::Moved(machine));
        Some(Plan {
            words: format!("node {id} on machine {machine} to ports {ports:?}"),
            steps,
            after: self.book.clone(),
            down: vec![machine],
            subject: machine,
        })
    }

    /// Draws other ports for peers, for clients, or for both.
    fn other_ports(&mut self, before: Ports) -> Ports {
        let mut other = |first: u64, now: u64| {
            let step = self.prng.between(1, PORTS_MAX - 1);
            first + (now - first + step) % PORTS_MAX
        };
        let both = (other(PORTS.0, before.0), other(PORTS.1, before.1));
        match self.prng.below(3) {
            0 => (before.0, both.1),
            1 => (both.0, before.1),
            _ => both,
        }
    }
}
