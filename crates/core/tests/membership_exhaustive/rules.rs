//! The rules, checked after every step of a node.

use std::sync::Arc;

use d_engine_core::{Configuration, EntryMeta, MembershipStep, Rejected};

use crate::state::{Committed, Past, State};
use crate::station::{Station, bit};
use crate::support::n;
use crate::support::network::shown;

/// Checks what a step of `node` has led to, and remembers what later steps must not contradict.
pub(crate) fn judge(state: &mut State, node: u64, rejected: Option<Rejected>) {
    let station = Arc::clone(state.node(node));
    let mut past = Past::clone(&state.past);
    let result = accepted(rejected)
        .and_then(|()| one_leader_in_a_term(&station, &mut past))
        .and_then(|()| committed_is_final(state, &station, &mut past))
        .and_then(|()| leader_holds_what_is_committed(&station, &past))
        .and_then(|()| configurations_follow_each_other(&station, &past))
        .and_then(|()| nobody_decides_against_another(state));
    state.past = Arc::new(past);
    if let Err(what) = result {
        state.broken.get_or_insert(format!("node {node}: {what}"));
    }
}

/// No message of a correct node is refused for what it says.
fn accepted(rejected: Option<Rejected>) -> Result<(), String> {
    match rejected {
        Some(
            refusal @ (Rejected::ContradictsCommitted
            | Rejected::SecondLeader
            | Rejected::OutOfRange
            | Rejected::MalformedAppend
            | Rejected::OutOfSequence),
        ) => Err(refusal.to_string()),
        _ => Ok(()),
    }
}

fn one_leader_in_a_term(station: &Station, past: &mut Past) -> Result<(), String> {
    if !station.leads() {
        return Ok(());
    }
    let term = station.term();
    match past.leaders.iter().find(|(of, _)| *of == term) {
        Some((_, other)) if *other != station.node => {
            Err(format!("node {other} has led term {term} too"))
        }
        Some(_) => Ok(()),
        None => {
            past.leaders.push((term, station.node));
            past.leaders.sort_unstable();
            Ok(())
        }
    }
}

/// What one node knows to be committed, all nodes know as the same entry (State Machine Safety).
fn committed_is_final(state: &State, station: &Station, past: &mut Past) -> Result<(), String> {
    for (at, entry) in station.log.iter().enumerate().take(station.committed()) {
        let (index, term) = (at + 1, entry.term.get());
        match past.committed.get(at) {
            Some(known) if known.term != term => {
                return Err(format!(
                    "entry {index} of term {term} is committed, as is one of term {}",
                    known.term
                ));
            }
            Some(_) => {}
            None => past.committed.push(Committed { term, by: station.term() }),
        }
        let differs = |other: &&Arc<Station>| {
            other.committed() >= index && other.log[at].configuration != entry.configuration
        };
        if let Some(other) = state.nodes.iter().find(differs) {
            return Err(format!("entry {index} has other members at node {}", other.node));
        }
    }
    Ok(())
}

/// A leader of a later term than that of the commit holds the entry (Leader Completeness).
fn leader_holds_what_is_committed(station: &Station, past: &Past) -> Result<(), String> {
    let term = station.term();
    for (at, entry) in past.committed.iter().enumerate() {
        let is_held = station.log.get(at).is_some_and(|held| held.term.get() == entry.term);
        if station.leads() && entry.by < term && !is_held {
            return Err(format!("leads term {term} without the committed entry {}", at + 1));
        }
    }
    Ok(())
}

/// The last configuration of the log is in force; each is a legal step from the one before it; and
/// a joint configuration is left for its incoming voters only once it is committed.
fn configurations_follow_each_other(station: &Station, past: &Past) -> Result<(), String> {
    let (mut before, mut joint_at) = (station.first(), None);
    for (at, now) in memberships(&station.log) {
        let Some(step) = before.step_to(now) else {
            return Err(format!("{} became {}", shown(before), shown(now)));
        };
        if step == MembershipStep::LeaveJoint {
            let is_committed = joint_at.is_some_and(|joint_at: usize| {
                let term = station.log[joint_at].term.get();
                past.committed.get(joint_at).is_some_and(|entry| entry.term == term)
            });
            if !is_committed {
                return Err(format!("{} was left before it was committed", shown(before)));
            }
        }
        joint_at = now.is_joint().then_some(at);
        before = now;
    }
    if before != station.configuration() {
        return Err(format!("{} is in force, not the last one", shown(station.configuration())));
    }
    Ok(())
}

/// The membership entries of a log with their places in it.
pub(crate) fn memberships(log: &[EntryMeta]) -> impl Iterator<Item = (usize, &Configuration)> {
    log.iter().enumerate().filter_map(|(at, entry)| Some((at, entry.configuration.as_deref()?)))
}

/// No two nodes can decide something without a node in common: one as the leader that it is, or as
/// one that it could become by an election now, and another likewise.
fn nobody_decides_against_another(state: &State) -> Result<(), String> {
    let deciders: Vec<(&Station, u16)> = state
        .nodes
        .iter()
        .flat_map(|node| {
            let led = node.leads().then(|| (&**node, set_of(state, |it| it.term() <= node.term())));
            let elected =
                may_campaign(node).then(|| (&**node, set_of(state, |it| votes(it, node))));
            led.into_iter().chain(elected)
        })
        .filter(|(node, support)| node.quorums >> support & 1 == 1)
        .collect();
    for (place, (one, of_one)) in deciders.iter().enumerate() {
        for (other, of_other) in &deciders[place + 1..] {
            let apart = |set: &u16| {
                set & !of_one == 0
                    && one.quorums >> set & 1 == 1
                    && other.quorums >> (of_other & !set) & 1 == 1
            };
            if one.node != other.node && (0..16_u16).any(|set| apart(&set)) {
                return Err(format!(
                    "node {} may decide by {}, and node {} by {}, without a common node",
                    one.node,
                    shown(one.configuration()),
                    other.node,
                    shown(other.configuration())
                ));
            }
        }
    }
    Ok(())
}

fn set_of(state: &State, holds: impl Fn(&Station) -> bool) -> u16 {
    let nodes = state.nodes.iter().filter(|node| holds(node));
    nodes.fold(0, |set, node| set | bit(node.node))
}

/// Whether `voter` would vote for `candidate` in a new term, as far as their logs decide it.
fn votes(voter: &Station, candidate: &Station) -> bool {
    candidate.core.log().last >= voter.core.log().last
}

/// Whether the node votes in the last configuration that it knows to be committed or in a later
/// one; computed from its log.
pub(crate) fn may_campaign(station: &Station) -> bool {
    let committed = station.committed();
    let mut in_play = vec![station.first()];
    for (at, configuration) in memberships(&station.log) {
        if at < committed {
            in_play.clear();
        }
        in_play.push(configuration);
    }
    in_play.iter().any(|it| it.is_voter(n(station.node)))
}
