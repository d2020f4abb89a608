//! Every history of a small cluster that changes its members, on the real core: who leads, which
//! messages arrive and in which order, who crashes, and when a leader enters a joint configuration,
//! leaves it or rolls it back. `docs/divergences.md` has the argument for the rollback, which no
//! paper has; this is its check.
//!
//! A [`Scope`] bounds the histories. Within it the search is complete, with these simplifications:
//!
//! - No time passes. Timers fire at any moment, vote stickiness has always ended, pre-votes are
//!   always granted: all of them only prevent elections.
//! - A message that never arrives is never in flight, so a loss is the choice not to send.
//! - A crash and the restart after it are one step: a node that is down receives nothing, which is
//!   a loss of messages. Writes are complete at the end of their step, so a crash costs what is in
//!   memory.
//! - A request for a vote arrives while its candidate still is one; its reply is immediate or lost.
//!   Heartbeats carry nothing that the repetition of an append does not.
//!
//! `SCOPE=large cargo test --release -p d-engine-core --test membership_exhaustive -- --nocapture`
//! checks larger scopes.
#![allow(clippy::unwrap_used)]

mod exchanges;
mod history;
mod messages;
mod print;
mod rules;
mod state;
mod station;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::Ordering::Relaxed;

use history::{History, Reached, Scope};
use stateright::{Checker, Model};

/// Checks every history of the scopes and returns how often each rare state was reached; panics
/// with the shortest history that breaks a rule.
fn check(scopes: &[(Scope, &str)]) -> Reached {
    let all = Reached::default();
    for (scope, name) in scopes {
        let checker = History::new(scope.clone()).checker().threads(1).spawn_bfs().join();
        let reached = &checker.model().reached;
        let states = checker.unique_state_count();
        println!("{name}: {states} states, {} steps", checker.state_count());
        println!("  {scope:?}\n  {reached:?}");
        all.add(reached);
        if let Some(path) = checker.discovery("the rules hold") {
            let broken = path.last_state().broken.clone().unwrap_or_default();
            let steps = path.into_actions();
            let steps: Vec<String> = steps.iter().map(|step| format!("{step:?}")).collect();
            panic!("{name}: {broken}\n{}", steps.join("\n"));
        }
    }
    all
}

fn scope(from: &[u64], to: &[&[u64]]) -> Scope {
    let to = to.iter().map(|voters| voters.to_vec()).collect();
    Scope { from: from.to_vec(), to, terms: 2, joints: 1, ..Scope::default() }
}

fn is_large() -> bool {
    std::env::var("SCOPE").is_ok_and(|scope| scope == "large")
}

#[test]
fn every_order_of_messages_keeps_the_rules() {
    let of = |to: &[u64]| Scope { terms: 3, in_flight: 2, restarts: 1, ..scope(&[1], &[to]) };
    let mut scopes = vec![(of(&[1, 2]), "1 grows to 1 2"), (of(&[2]), "1 is replaced by 2")];
    if is_large() {
        let three = scope(&[1, 2], &[&[1, 2, 3]]);
        scopes.push((Scope { in_flight: 1, restarts: 1, ..three }, "1 2 grow to 1 2 3"));
    }
    let reached = check(&scopes);
    assert!(reached.rollbacks_committed.load(Relaxed) > 0, "{reached:?}");
    assert!(reached.leaders_in_joint.load(Relaxed) > 0, "{reached:?}");
}

#[test]
fn every_history_in_the_order_of_terms_keeps_the_rules() {
    let grows = scope(&[1], &[&[1, 2]]);
    let three = scope(&[1, 2], &[&[1, 2, 3]]);
    let apart = scope(&[1, 2], &[&[3, 4]]);
    let replaced = scope(&[1, 2, 3], &[&[1, 2, 4]]);
    let either = scope(&[1, 2], &[&[1], &[2]]);
    let mut scopes = vec![
        (Scope { terms: 4, restarts: 1, commands: 1, ..grows.clone() }, "1 grows to 1 2"),
        (Scope { terms: 5, restarts: 1, ..scope(&[1], &[&[2]]) }, "1 is replaced by 2"),
        (Scope { terms: 3, joints: 2, ..grows }, "1 grows to 1 2, twice"),
        (Scope { terms: 3, restarts: 1, ..three.clone() }, "1 2 grow to 1 2 3"),
        (Scope { terms: 3, joints: 2, ..either }, "1 2 shrink to 1 or to 2, twice"),
        (Scope { terms: 3, ..scope(&[1, 2], &[&[3]]) }, "1 2 are replaced by 3"),
        (apart.clone(), "1 2 are replaced by 3 4"),
        (replaced.clone(), "4 replaces 3"),
    ];
    if is_large() {
        scopes.push((Scope { terms: 4, ..three }, "1 2 grow to 1 2 3"));
        scopes.push((Scope { restarts: 1, ..replaced }, "4 replaces 3"));
        scopes.push((Scope { terms: 3, ..apart }, "1 2 are replaced by 3 4"));
    }
    let reached = check(&scopes);
    let each = reached.each();
    assert!(each.iter().all(|count| count.load(Relaxed) > 0), "{reached:?}");
}
