//! Steps of whole exchanges, in the order of terms: only the leader of the newest term acts.
//!
//! That is no restriction. An event at one node causes an event at another only by a message, and
//! who receives a message enters the term of its sender or has passed it. So a cause never has a
//! later term than its effect, and every history can be sorted by term: each node does the same
//! things in the same order. What is sorted away is a leader that continues after a later one was
//! elected: it has done the same before that election. For the same reason
//!
//! - an election is one step, with the fewest voters that suffice (others learn the term later);
//! - a candidate that does not win, and a vote that does not count, are left out: they only prevent
//!   something in earlier terms, as a lost message does;
//! - a follower that receives an append late has received it when it was sent: within a term a
//!   later append only adds entries.

use std::sync::Arc;

use d_engine_core::{AppendOutcome, Configuration, Input, LogId, LogIndex, Message, Term};

use crate::history::{History, Step, What, arriving, step};
use crate::rules::may_campaign;
use crate::state::State;
use crate::station::{Station, bit};
use crate::support::n;

/// An append is refused at most once for each entry of these short logs.
const ROUNDS_MAX: usize = 40;

impl History {
    /// Every exchange, change and election from `state`.
    pub(crate) fn exchanges(&self, state: &State, steps: &mut Vec<Step>) {
        let newest = state.nodes.iter().map(|node| node.term()).max().unwrap_or_default();
        for station in &state.nodes {
            if station.leads() && station.term() == newest {
                self.replications(state, station, steps);
                self.changes(state, station, steps);
            }
            if newest < self.scope.terms && may_campaign(station) {
                self.elect(state, station, newest + 1, steps);
            }
        }
    }

    fn replications(&self, state: &State, station: &Station, steps: &mut Vec<Step>) {
        let last = station.core.log().last.index;
        for progress in station.core.status().followers {
            let (leader, follower) = (station.node, progress.node.get());
            let knows = state.node(follower).committed() >= station.committed();
            if progress.matched == last && knows {
                continue;
            }
            // A reply that says nothing new need not be lost.
            let is_known = progress.matched == last;
            for ack in [true, false].into_iter().filter(|ack| *ack || !is_known) {
                let what = What::Exchange { leader, follower, ack };
                steps.push(step(what, self.exchange(state, leader, follower, ack)));
            }
        }
    }

    /// The follower receives all of the leader's log; its last reply arrives if `ack`.
    pub(crate) fn exchange(&self, state: &State, leader: u64, follower: u64, ack: bool) -> State {
        let input = Input::PeerLost(n(follower));
        let (mut next, mut letters) = self.after(state, leader, |it| it.stepped(input));
        for _ in 0..ROUNDS_MAX {
            let mut sent = letters.into_iter().filter(|sent| {
                let ends = (sent.letter.from, sent.letter.to);
                ends == (leader, follower) || ends == (follower, leader)
            });
            let Some(sent) = sent.find(|sent| sent.is_of_log()) else { break };
            let is_last = matches!(
                sent.letter.message,
                Message::AppendReply { outcome: AppendOutcome::Persisted(index), .. }
                    if index == next.node(leader).core.log().last.index
            );
            if is_last && !ack {
                break;
            }
            let (to, input) = arriving(&sent);
            (next, letters) = self.after(&next, to, |it| it.stepped(input));
        }
        next
    }

    /// The leader has exchanged logs with those that are to vote, so that it lets them.
    pub(crate) fn kept_up(&self, state: &State, leader: u64, joint: &Configuration) -> State {
        let mut next = state.clone();
        if self.scope.in_flight > 0 {
            return next;
        }
        for node in joint.voters().iter().filter(|node| !joint.outgoing().contains(node)) {
            for _ in 0..3 {
                if node.get() != leader {
                    next = self.exchange(&next, leader, node.get(), true);
                }
            }
        }
        next
    }

    /// The node is elected in `term` by each smallest set of voters that grant their votes.
    fn elect(&self, state: &State, station: &Station, term: u64, steps: &mut Vec<Step>) {
        let node = station.node;
        let Some(state) = self.arrived(state, node, term - 1) else { return };
        let (state, _) = self.after(&state, node, Station::campaigning);
        if state.broken.is_some() || state.node(node).leads() {
            let next = self.known_to_all(state, term);
            steps.push(step(What::Elect { node, voters: 0 }, next));
            return;
        }
        let quorums = state.node(node).quorums;
        let members = state.node(node).configuration().members().into_iter().map(|it| it.get());
        let mut granting = 0_u16;
        let mut voted = state.clone();
        for voter in members.filter(|voter| *voter != node) {
            let Some(next) = self.arrived(&voted, voter, term - 1) else { continue };
            if let Some((next, _)) = self.vote(&next, voter, node, false) {
                granting |= bit(voter);
                voted = voted.with(Arc::clone(next.node(voter)));
            }
        }
        let mut smallest: Vec<u16> = Vec::new();
        let mut sets: Vec<u16> = (1..16).filter(|set| set & !granting == 0).collect();
        sets.sort_by_key(|set| set.count_ones());
        for set in sets {
            let suffices = quorums >> (set | bit(node)) & 1 == 1;
            if suffices && !smallest.iter().any(|smaller| smaller & !set == 0) {
                smallest.push(set);
                let next = self.known_to_all(self.elected(&state, node, set, term), term);
                steps.push(step(What::Elect { node, voters: set }, next));
            }
        }
    }

    fn elected(&self, state: &State, node: u64, voters: u16, term: u64) -> State {
        let mut next = state.clone();
        for voter in (1..=4).filter(|voter| voters & bit(*voter) != 0) {
            let Some(ready) = self.arrived(&next, voter, term - 1) else { continue };
            if let Some((voted, _)) = self.vote(&ready, voter, node, false) {
                next = voted;
            }
        }
        next
    }

    /// Every node has heard of the term that has just begun: in earlier terms nothing happens any
    /// more.
    fn known_to_all(&self, state: State, term: u64) -> State {
        let nodes = 1..=state.nodes.len() as u64;
        nodes.fold(state, |state, node| {
            let knows = state.node(node).term() >= term;
            let next = if knows { None } else { self.arrived(&state, node, term) };
            next.unwrap_or(state)
        })
    }

    /// The node is no leader and in `term`: it has heard of the term, or its leadership has ended.
    /// `None` for a leader that loses its leadership only by a crash.
    fn arrived(&self, state: &State, node: u64, term: u64) -> Option<State> {
        let station = state.node(node);
        if station.term() < term {
            let from = n(if node == 1 { 2 } else { 1 });
            let outcome = AppendOutcome::Conflict { refused: LogIndex::ZERO, hint: LogId::ZERO };
            let message = Message::AppendReply { term: Term::new(term), outcome };
            let input = Input::Message { from, message };
            return Some(self.after(state, node, |it| it.stepped(input)).0);
        }
        if !station.leads() {
            return Some(state.clone());
        }
        let (next, _) = self.after(state, node, |it| it.stepped(Input::Deadline));
        (!next.node(node).leads()).then_some(next)
    }
}
