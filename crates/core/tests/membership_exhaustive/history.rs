//! The steps of a history.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d_engine_core::{Configuration, Input, Message, NodeId, QuorumRisk};
use stateright::{Model, Property};

use crate::rules::{judge, memberships};
use crate::state::{Past, Sent, State};
use crate::station::{Caused, Station};
use crate::support::n;

/// The bounds of a check.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scope {
    /// The voters at the beginning, and the sets that a leader may choose as the next voters.
    pub(crate) from: Vec<u64>,
    pub(crate) to: Vec<Vec<u64>>,
    /// No node enters a later term. Node 1 leads term 1 at the beginning.
    pub(crate) terms: u64,
    /// Messages that are in flight at a time and will arrive.
    pub(crate) in_flight: usize,
    /// Joint configurations that leaders append, restarts of nodes, commands.
    pub(crate) joints: u8,
    pub(crate) restarts: u8,
    pub(crate) commands: u8,
}

/// What happens next.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum What {
    Deliver {
        from: u64,
        to: u64,
        print: u64,
    },
    Repeat {
        from: u64,
        to: u64,
    },
    Exchange {
        leader: u64,
        follower: u64,
        ack: bool,
    },
    Elect {
        node: u64,
        voters: u16,
    },
    Campaign(u64),
    Vote {
        voter: u64,
        candidate: u64,
        reply_lost: bool,
    },
    Enter {
        leader: u64,
        to: usize,
    },
    Leave(u64),
    RollBack(u64),
    /// A leader proposes this voter alone without, or against, a joint configuration.
    Misuse {
        leader: u64,
        voter: u64,
    },
    Command(u64),
    Restart(u64),
}

/// A step and the state that it leads to.
#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) what: What,
    /// The message that arrives.
    pub(crate) text: String,
    pub(crate) next: State,
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.what == other.what && self.next == other.next
    }
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}\n{:?}", self.what, self.text, self.next)
    }
}

/// How often each state was reached without which the check would be empty.
#[derive(Default, Debug)]
pub(crate) struct Reached {
    pub(crate) joints: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) rolled_back: AtomicU64,
    pub(crate) rollbacks_committed: AtomicU64,
    pub(crate) leaders_in_joint: AtomicU64,
    pub(crate) rollbacks_truncated: AtomicU64,
    pub(crate) joints_truncated: AtomicU64,
    pub(crate) finals_truncated: AtomicU64,
}

impl Reached {
    pub(crate) fn each(&self) -> [&AtomicU64; 8] {
        [
            &self.joints,
            &self.left,
            &self.rolled_back,
            &self.rollbacks_committed,
            &self.leaders_in_joint,
            &self.rollbacks_truncated,
            &self.joints_truncated,
            &self.finals_truncated,
        ]
    }

    pub(crate) fn add(&self, other: &Self) {
        for (sum, count) in self.each().into_iter().zip(other.each()) {
            sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

pub(crate) struct History {
    pub(crate) scope: Scope,
    pub(crate) reached: Reached,
}

impl History {
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope, reached: Reached::default() }
    }

    /// Node 1 leads term 1; its no-op is committed everywhere, and every node keeps up.
    fn beginning(&self) -> State {
        let scope = &self.scope;
        let joiners = scope.to.iter().flatten().filter(|node| !scope.from.contains(node));
        let first = Configuration::new(
            scope.from.iter().map(|node| n(*node)),
            joiners.map(|node| n(*node)),
        );
        let count = first.members().len() as u64;
        let nodes = (1..=count)
            .map(|node| Arc::new(Station::new(node, &first, scope.in_flight > 0)))
            .collect();
        let (in_flight, past) = (Vec::new(), Arc::new(Past::default()));
        let mut state = State { nodes, in_flight, past, broken: None };
        state = self.after(&state, 1, Station::campaigning).0;
        for voter in scope.from.iter().filter(|voter| **voter != 1) {
            if let Some((next, _)) = self.vote(&state, *voter, 1, false) {
                state = next;
            }
        }
        // Twice: the second time a follower learns what is committed.
        for node in (2..=count).chain(2..=count) {
            state = self.exchange(&state, 1, node, true);
        }
        assert!(state.nodes.iter().all(|node| node.committed() == 1), "{state:?}");
        state
    }

    /// Every step from `state`.
    fn steps(&self, state: &State) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.scope.in_flight > 0 {
            self.messages(state, &mut steps);
        } else {
            self.exchanges(state, &mut steps);
        }
        if state.past.restarts < self.scope.restarts {
            let mut state = state.clone();
            Arc::make_mut(&mut state.past).restarts += 1;
            for station in &state.nodes {
                let (next, _) = self.after(&state, station.node, Station::restarted);
                steps.push(step(What::Restart(station.node), next));
            }
        }
        steps
    }

    /// `voter` receives the request of `candidate`, and perhaps the candidate the reply. `None` if
    /// that changes nothing.
    pub(crate) fn vote(
        &self,
        state: &State,
        voter: u64,
        candidate: u64,
        reply_lost: bool,
    ) -> Option<(State, Vec<Sent>)> {
        let asker = &state.node(candidate).core;
        let (term, last) = (asker.term(), asker.log().last);
        if voter == candidate {
            return None;
        }
        let input = Input::Message {
            from: n(candidate),
            message: Message::RequestVote { term, last, transfer: false },
        };
        let before = state.node(voter).print;
        let (next, replies) = self.after(state, voter, |it| it.asked(input));
        let granted = replies
            .iter()
            .find(|sent| matches!(sent.letter.message, Message::VoteReply { granted: true, .. }));
        match granted {
            // A refusal is lost: it says only the term.
            _ if reply_lost => (next.node(voter).print != before).then(|| (next, Vec::new())),
            None => None,
            Some(sent) => {
                let (to, input) = arriving(sent);
                Some(self.after(&next, to, |it| it.stepped(input)))
            }
        }
    }

    pub(crate) fn changes(&self, state: &State, station: &Station, steps: &mut Vec<Step>) {
        let now = station.configuration();
        let node = station.node;
        if now.is_joint() {
            let left = now.learners().iter().copied();
            let left = Configuration::new(now.voters().iter().copied(), left);
            self.change(state, What::Leave(node), left, steps);
            self.change(state, What::RollBack(node), rolled_back(now), steps);
        } else if state.past.joints < self.scope.joints {
            for (to, voters) in self.scope.to.iter().enumerate() {
                let others = now.members().into_iter().filter(|it| !voters.contains(&it.get()));
                let others: Vec<NodeId> = others.filter(|it| now.learners().contains(it)).collect();
                let next = Configuration::new(voters.iter().map(|voter| n(*voter)), others);
                let joint = now.joint_with(&next);
                let mut state = self.kept_up(state, node, &joint);
                Arc::make_mut(&mut state.past).joints += 1;
                self.change(&state, What::Enter { leader: node, to }, joint, steps);
            }
        }
        // Whatever else is asked for must be refused.
        for voter in 1..=state.nodes.len() as u64 {
            let next = Configuration::new([n(voter)], None);
            let is_legal = next.voters() == now.voters() || next.voters() == now.outgoing();
            if !is_legal {
                self.change(state, What::Misuse { leader: node, voter }, next, steps);
            }
        }
        if state.past.commands < self.scope.commands {
            let mut state = state.clone();
            Arc::make_mut(&mut state.past).commands += 1;
            let input = Input::Propose { sizes: vec![10] };
            let (next, letters) = self.after(&state, node, |it| it.stepped(input));
            let nexts = self.sendings(next, &letters).into_iter();
            steps.extend(nexts.map(|next| step(What::Command(node), next)));
        }
    }

    fn change(&self, state: &State, what: What, next: Configuration, steps: &mut Vec<Step>) {
        let node = match what {
            What::Enter { leader, .. } => leader,
            What::Leave(leader) | What::RollBack(leader) | What::Misuse { leader, .. } => leader,
            _ => return,
        };
        let before = state.node(node).log.len();
        let risk = QuorumRisk::Accept;
        let input = Input::ProposeMembership { configuration: Box::new(next), bytes: 10, risk };
        let (next, letters) = self.after(state, node, |it| it.stepped(input));
        if next.node(node).log.len() == before && next.broken.is_none() {
            return;
        }
        let counter = match what {
            What::Enter { .. } => &self.reached.joints,
            What::Leave(_) => &self.reached.left,
            _ => &self.reached.rolled_back,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let nexts = self.sendings(next, &letters).into_iter();
        steps.extend(nexts.map(|next| step(what, next)));
    }

    /// The state after `node` has done `act`, judged, and what it sends.
    pub(crate) fn after(
        &self,
        state: &State,
        node: u64,
        act: impl FnOnce(&Station) -> (Station, Caused),
    ) -> (State, Vec<Sent>) {
        let before = state.node(node);
        match catch_unwind(AssertUnwindSafe(|| act(before))) {
            Ok((station, caused)) => {
                let mut next = state.with(Arc::new(station));
                judge(&mut next, node, caused.rejected);
                self.note(state, &next, node, &caused);
                (next, caused.letters.into_iter().map(Sent::new).collect())
            }
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or(panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                let mut next = state.clone();
                next.broken = Some(format!("node {node} stops: {}", text.unwrap_or_default()));
                (next, Vec::new())
            }
        }
    }

    fn note(&self, before: &State, after: &State, node: u64, caused: &Caused) {
        let count = |counter: &AtomicU64, is_so: bool| {
            counter.fetch_add(u64::from(is_so), Ordering::Relaxed);
        };
        let (old, new) = (before.node(node), after.node(node));
        let is_new_leader = new.leads() && !old.leads();
        count(&self.reached.leaders_in_joint, is_new_leader && new.configuration().is_joint());
        let known = before.past.committed.len();
        for (at, configuration) in memberships(&new.log) {
            let is_committed = (known..after.past.committed.len()).contains(&at);
            let is_rollback = is_committed && is_left_for(&new.log[..at], configuration, true);
            count(&self.reached.rollbacks_committed, is_rollback);
        }
        for (at, entry) in old.log.iter().enumerate().rev().take(caused.truncated.len()) {
            let Some(configuration) = entry.configuration.as_deref() else { continue };
            let earlier = &old.log[..at];
            count(&self.reached.joints_truncated, configuration.is_joint());
            let back = is_left_for(earlier, configuration, true);
            count(&self.reached.rollbacks_truncated, back);
            count(&self.reached.finals_truncated, is_left_for(earlier, configuration, false));
        }
    }
}

/// Whether `next` ends the joint configuration that is last in `log`: back, or forward.
fn is_left_for(log: &[d_engine_core::EntryMeta], next: &Configuration, back: bool) -> bool {
    let joint = memberships(log).last().map(|(_, it)| it).filter(|it| it.is_joint());
    joint.is_some_and(|joint| next.voters() == if back { joint.outgoing() } else { joint.voters() })
}

pub(crate) fn step(what: What, next: State) -> Step {
    Step { what, text: String::new(), next }
}

pub(crate) fn arriving(sent: &Sent) -> (u64, Input) {
    let letter = &sent.letter;
    (letter.to, Input::Message { from: n(letter.from), message: letter.message.clone() })
}

/// The voters before the joint configuration; those that were to vote learn again.
fn rolled_back(joint: &Configuration) -> Configuration {
    let outgoing = joint.outgoing();
    let joiners = joint.voters().iter().filter(|node| !outgoing.contains(node));
    let learners = joint.learners().iter().filter(|node| !outgoing.contains(node));
    Configuration::new(outgoing.iter().copied(), learners.chain(joiners).copied())
}

impl Model for History {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![self.beginning()]
    }

    fn actions(&self, state: &State, steps: &mut Vec<Step>) {
        if state.broken.is_none() {
            steps.extend(self.steps(state));
        }
    }

    fn next_state(&self, _: &State, step: Step) -> Option<State> {
        Some(step.next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("the rules hold", |_, state: &State| state.broken.is_none())]
    }
}
