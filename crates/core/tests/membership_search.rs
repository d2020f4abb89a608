//! A random search over changes of the membership on the real core: six nodes with slow disks,
//! crashes, network cuts, lost, duplicated and reordered messages, transfers, and an operator who
//! adds, removes and replaces voters. After every step the rules hold; at the end, when all faults
//! are over, the cluster has a leader, is not joint, and commits.
//!
//! `SEARCH=100000 cargo test --release -p d-engine-core --test membership_search` searches longer;
//! `SEED=n` repeats one run and prints it.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::BTreeMap;

use std::time::Duration;

use d_engine_core::{
    Configuration, CoreConfig, EntryMeta, Input, MembershipStep, NodeId, QuorumRisk, RoleKind,
    SplitMix64,
};
use support::n;
use support::network::{Network, shown};

const NODES: u64 = 6;
const STEPS: u64 = 3_000;

/// What a seed decides.
struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    fn place(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

/// How often each rare state was reached.
#[derive(Default, Debug)]
struct Reached {
    joints: u64,
    rollbacks: u64,
    leaves: u64,
    joints_truncated: u64,
    leaders_left_out: u64,
}

struct Search {
    network: Network,
    random: Random,
    /// The entries that some node has committed, from index 1 on.
    committed: Vec<EntryMeta>,
    leaders: BTreeMap<u64, u64>,
    reached: Reached,
    /// The last configuration seen in force at each node.
    in_force: BTreeMap<u64, Configuration>,
}

impl Search {
    fn new(seed: u64, silent: bool) -> Self {
        let mut random = Random(SplitMix64::new(seed));
        let mut network = Network::new(0);
        network.silent = silent;
        network.config = CoreConfig {
            heartbeat_interval: Duration::from_millis(10),
            election_timeout_min: Duration::from_millis(50),
            election_timeout_max: Duration::from_millis(100),
            ..CoreConfig::default()
        };
        let voters = 1 + random.below(3);
        network.set_voters(voters);
        for node in 1..=NODES {
            if node <= voters {
                network.begin(node, 0, &[]);
            } else {
                network.begin_empty(node);
            }
            if random.one_in(2) {
                network.slow_disks.insert(node);
            }
        }
        let (committed, leaders) = (Vec::new(), BTreeMap::new());
        let (reached, in_force) = (Reached::default(), BTreeMap::new());
        Self { network, random, committed, leaders, reached, in_force }
    }

    fn run(&mut self) -> Result<(), String> {
        for _ in 0..STEPS {
            self.step();
            self.check()?;
        }
        self.calm_down()
    }

    fn step(&mut self) {
        match self.random.below(1_000) {
            0..560 => self.deliver(),
            560..580 => {
                let place = self.random.place(self.network.in_flight());
                self.network.drop_one(place);
            }
            580..760 => self.persist_some(),
            760..900 => self.pass_time(),
            900..903 => {
                let node = 1 + self.random.below(NODES);
                self.network.crash(node);
            }
            903..915 => self.restart_one(),
            915..920 => {
                let (one, other) = (1 + self.random.below(NODES), 1 + self.random.below(NODES));
                self.network.cut(one, other);
            }
            920..925 => self.network.heal(),
            925..950 => self.at_leader(|_, node, network| {
                network.step(node, "propose", Input::Propose { sizes: vec![10] });
            }),
            950..953 => self.at_leader(|random, node, network| {
                let to = random.one_in(2).then(|| n(1 + random.below(NODES)));
                network.step(node, "transfer", Input::TransferLeadership { to });
            }),
            _ => self.at_leader(operate),
        }
        self.drive();
    }

    fn deliver(&mut self) {
        let in_flight = self.network.in_flight();
        // Mostly in order.
        let place = if self.random.one_in(3) { self.random.place(in_flight) } else { 0 };
        let duplicated = self.random.one_in(30);
        self.network.deliver_one(place, duplicated);
    }

    fn persist_some(&mut self) {
        let node = 1 + self.random.below(NODES);
        let count = 1 + self.random.place(self.network.writes_of(node).max(1));
        if self.network.core(node).is_some() {
            self.network.persist(node, count);
        }
    }

    /// Time passes, and the deadlines that are due are reported.
    fn pass_time(&mut self) {
        let millis = if self.random.one_in(10) { 30 } else { 3 };
        let millis = self.random.below(millis);
        self.network.wait(millis);
        self.report_deadlines();
    }

    fn report_deadlines(&mut self) {
        for node in 1..=NODES {
            let due = self.network.core(node).and_then(d_engine_core::RaftCore::next_deadline);
            if due.is_some_and(|due| due <= self.network.now()) {
                self.network.step(node, "deadline", Input::Deadline);
            }
        }
    }

    fn restart_one(&mut self) {
        let down: Vec<u64> =
            (1..=NODES).filter(|node| self.network.core(*node).is_none()).collect();
        if !down.is_empty() {
            let node = down[self.random.place(down.len())];
            self.network.restart(node);
        }
    }

    fn at_leader(&mut self, act: impl FnOnce(&mut Random, u64, &mut Network)) {
        let leaders = self.network.leaders();
        if !leaders.is_empty() {
            let node = leaders[self.random.place(leaders.len())];
            act(&mut self.random, node, &mut self.network);
        }
    }

    /// What the driver does after every event: it takes the step that is due.
    fn drive(&mut self) {
        for node in self.network.leaders() {
            let now = self.network.now();
            let core = self.network.core(node).unwrap();
            let (due, joint) = (core.membership_step_due(now), core.configuration().clone());
            let next = match due {
                Some(MembershipStep::LeaveJoint) => {
                    let learners = joint.learners().iter().copied();
                    Configuration::new(joint.voters().iter().copied(), learners)
                }
                Some(MembershipStep::RollBack) => rolled_back(&joint),
                _ => continue,
            };
            match due {
                Some(MembershipStep::RollBack) => self.reached.rollbacks += 1,
                _ => self.reached.leaves += 1,
            }
            propose(&mut self.network, node, next, QuorumRisk::Refuse);
        }
    }

    /// The rules, after every step.
    fn check(&mut self) -> Result<(), String> {
        for node in 1..=NODES {
            let Some(core) = self.network.core(node) else { continue };
            let log = self.network.log_of(node);
            let of_log = log.iter().rev().find_map(|entry| entry.configuration.as_deref());
            if of_log.is_some_and(|it| it != core.configuration()) {
                return Err(format!("node {node} uses another configuration than its log has"));
            }
            if let Some(before) = self.in_force.insert(node, core.configuration().clone())
                && before != *core.configuration()
            {
                self.reached.joints += u64::from(core.configuration().is_joint());
                self.reached.joints_truncated +=
                    u64::from(before.is_joint() && before.step_to(core.configuration()).is_none());
            }
            if core.role() == RoleKind::Leader {
                let term = core.term().get();
                let voter = core.configuration().is_voter(n(node));
                self.reached.leaders_left_out += u64::from(!voter);
                let known = *self.leaders.entry(term).or_insert(node);
                if known != node {
                    return Err(format!("nodes {known} and {node} lead term {term}"));
                }
                let newly = self.network.log_of(node);
                for (at, entry) in self.committed.iter().enumerate() {
                    let held = newly.get(at);
                    // Only a leader of a term after that of the commit must have it all; an older
                    // leader may be deposed and not know.
                    let is_later = self.leaders.keys().next_back() == Some(&term);
                    if is_later && held.is_none_or(|held| held.term != entry.term) {
                        return Err(format!(
                            "node {node} leads term {term} without the committed entry {}",
                            at + 1
                        ));
                    }
                }
            }
            let commit = usize::try_from(core.log().committed.get()).unwrap();
            for (at, entry) in log.iter().enumerate().take(commit) {
                match self.committed.get(at) {
                    Some(known) if known.term != entry.term => {
                        return Err(format!(
                            "two entries are committed at {}: of terms {} and {}, the latter at \
                             node {node}",
                            at + 1,
                            known.term,
                            entry.term
                        ));
                    }
                    Some(_) => {}
                    None => self.committed.push(entry.clone()),
                }
            }
        }
        self.check_sequence()
    }

    /// The committed configurations follow each other legally.
    fn check_sequence(&self) -> Result<(), String> {
        let mut committed =
            self.committed.iter().filter_map(|entry| entry.configuration.as_deref());
        let Some(mut before) = committed.next() else { return Ok(()) };
        for next in committed {
            if before.step_to(next).is_none() {
                return Err(format!("{} became {}", shown(before), shown(next)));
            }
            before = next;
        }
        Ok(())
    }

    /// All faults end; within some timeouts there is a leader, which is not joint and commits.
    fn calm_down(&mut self) -> Result<(), String> {
        self.network.heal();
        self.network.slow_disks.clear();
        for node in 1..=NODES {
            if self.network.core(node).is_none() {
                self.network.restart(node);
            }
            self.network.persist(node, usize::MAX);
        }
        let committed = self.committed.len();
        for round in 0..400 {
            self.network.deliver_all();
            self.drive();
            self.check()?;
            self.network.deliver_all();
            self.network.wait(5);
            self.report_deadlines();
            self.check()?;
            if round == 250 {
                for node in self.network.leaders() {
                    self.network.step(node, "propose", Input::Propose { sizes: vec![10] });
                }
            }
        }
        let leaders = self.network.leaders();
        let [leader] = leaders.as_slice() else {
            return Err(format!("at the end, {leaders:?} lead"));
        };
        let core = self.network.core(*leader).unwrap();
        if core.configuration().is_joint() || !core.leads_with_commit() {
            return Err(format!("the end is joint: {}", shown(core.configuration())));
        }
        if self.committed.len() <= committed {
            return Err("nothing is committed at the end".to_owned());
        }
        Ok(())
    }
}

/// An operator's request at a leader; refused if it is not legal now.
fn operate(random: &mut Random, node: u64, network: &mut Network) {
    let now = network.core(node).unwrap().configuration().clone();
    if now.is_joint() {
        if random.one_in(4) {
            // Whatever the operator tries, it must be refused.
            let next = Configuration::new([n(1 + random.below(NODES))], None);
            propose(network, node, next, QuorumRisk::Accept);
        }
        return;
    }
    let mut learners: Vec<NodeId> = now.learners().to_vec();
    let mut voters: Vec<NodeId> = now.voters().to_vec();
    let other = n(1 + random.below(NODES));
    match random.below(4) {
        // A learner comes, or goes.
        0 if !voters.contains(&other) => {
            if learners.contains(&other) {
                if random.one_in(3) {
                    learners.retain(|it| *it != other);
                }
            } else {
                learners.push(other);
            }
            let next = Configuration::new(voters, learners);
            propose(network, node, next, QuorumRisk::Refuse);
            return;
        }
        // A learner votes, perhaps in place of another.
        1 | 2 => {
            let Some(new) = learners.pop() else { return };
            if random.one_in(3) && !voters.is_empty() {
                let old = random.place(voters.len());
                voters.remove(old);
            }
            voters.push(new);
        }
        // A voter goes, or becomes a learner.
        _ => {
            if voters.len() < 2 {
                return;
            }
            let old = voters.remove(random.place(voters.len()));
            if random.one_in(2) {
                learners.push(old);
            }
        }
    }
    let joint = now.joint_with(&Configuration::new(voters, learners));
    let risk = if random.one_in(4) { QuorumRisk::Accept } else { QuorumRisk::Refuse };
    propose(network, node, joint, risk);
}

fn propose(network: &mut Network, node: u64, next: Configuration, risk: QuorumRisk) {
    let what = format!("membership {}", shown(&next));
    let input = Input::ProposeMembership { configuration: Box::new(next), bytes: 10, risk };
    network.step(node, &what, input);
}

/// The voters before the joint configuration; those that were to vote learn again.
fn rolled_back(joint: &Configuration) -> Configuration {
    let outgoing = joint.outgoing();
    let joiners = joint.voters().iter().filter(|node| !outgoing.contains(node));
    let learners = joint.learners().iter().filter(|node| !outgoing.contains(node));
    Configuration::new(outgoing.iter().copied(), learners.chain(joiners).copied())
}

fn number_of(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn random_changes_of_the_membership_keep_the_rules() {
    if let Some(seed) = number_of("SEED") {
        let mut search = Search::new(seed, false);
        let result = search.run();
        println!("{}", search.network.transcript.join("\n"));
        result.unwrap();
        return;
    }
    let mut reached = Reached::default();
    for seed in 1..=number_of("SEARCH").unwrap_or(150) {
        let mut search = Search::new(seed, true);
        if let Err(what) = search.run() {
            panic!("SEED={seed}: {what}");
        }
        reached.joints += search.reached.joints;
        reached.rollbacks += search.reached.rollbacks;
        reached.leaves += search.reached.leaves;
        reached.joints_truncated += search.reached.joints_truncated;
        reached.leaders_left_out += search.reached.leaders_left_out;
    }
    println!("{reached:?}");
    assert!(reached.joints > 0 && reached.leaves > 0 && reached.rollbacks > 0, "{reached:?}");
    assert!(reached.joints_truncated > 0 && reached.leaders_left_out > 0, "{reached:?}");
}
