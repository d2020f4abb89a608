//! Steps of single messages, in any order: leaders of several terms act, and messages are late.

use d_engine_core::{Input, RoleKind};

use crate::history::{History, Step, What, arriving, step};
use crate::rules::may_campaign;
use crate::state::{Sent, State};
use crate::station::Station;

impl History {
    /// Every step of messages and elections from `state`.
    pub(crate) fn messages(&self, state: &State, steps: &mut Vec<Step>) {
        for sent in &state.in_flight {
            self.deliver(state, sent, steps);
        }
        for station in &state.nodes {
            self.elections(state, station, steps);
            if station.leads() {
                self.changes(state, station, steps);
                self.repetitions(state, station, steps);
            }
        }
    }

    fn deliver(&self, state: &State, sent: &Sent, steps: &mut Vec<Step>) {
        let mut state = state.clone();
        state.in_flight.retain(|other| other.print != sent.print);
        let (to, input) = arriving(sent);
        let (next, letters) = self.after(&state, to, |it| it.stepped(input));
        let what = What::Deliver { from: sent.letter.from, to, print: sent.print };
        let text = format!("{:?}", sent.letter.message);
        for next in self.sendings(next, &letters) {
            steps.push(Step { what, text: text.clone(), next });
        }
    }

    fn elections(&self, state: &State, station: &Station, steps: &mut Vec<Step>) {
        let node = station.node;
        let term = station.term();
        if !station.leads() && term < self.scope.terms && may_campaign(station) {
            let (next, letters) = self.after(state, node, Station::campaigning);
            for next in self.sendings(next, &letters) {
                steps.push(step(What::Campaign(node), next));
            }
        }
        if station.core.role() != RoleKind::Candidate {
            return;
        }
        let members = station.configuration().members().into_iter();
        for voter in members.filter(|it| station.configuration().is_voter(*it)) {
            for reply_lost in [false, true] {
                let voter = voter.get();
                if let Some((next, letters)) = self.vote(state, voter, node, reply_lost) {
                    let what = What::Vote { voter, candidate: node, reply_lost };
                    let nexts = self.sendings(next, &letters).into_iter();
                    steps.extend(nexts.map(|next| step(what, next)));
                }
            }
        }
    }

    /// A leader sends again what a follower lacks, if nothing is on the way between them.
    fn repetitions(&self, state: &State, station: &Station, steps: &mut Vec<Step>) {
        let last = station.core.log().last.index;
        for follower in station.core.status().followers {
            let (from, to) = (station.node, follower.node.get());
            let lacks = follower.matched < last || state.node(to).committed() < station.committed();
            if !lacks || !state.is_quiet_between(from, to) {
                continue;
            }
            let (next, letters) =
                self.after(state, from, |it| it.stepped(Input::PeerLost(follower.node)));
            let what = What::Repeat { from, to };
            let nexts = self.sendings(next, &letters).into_iter();
            steps
                .extend(nexts.filter(|it| !it.is_quiet_between(from, to)).map(|it| step(what, it)));
        }
    }

    /// The states in which a part of the messages is in flight.
    pub(crate) fn sendings(&self, state: State, letters: &[Sent]) -> Vec<State> {
        let mut states = vec![state];
        for sent in letters.iter().filter(|sent| sent.is_of_log()) {
            let with: Vec<State> = states
                .iter()
                .filter(|state| state.in_flight.len() < self.scope.in_flight)
                .map(|state| state.clone().sending(sent.clone()))
                .collect();
            states.extend(with);
        }
        states
    }
}
