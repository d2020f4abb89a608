//! For any inputs in any order: a core accepts or rejects each and never panics; its term and its
//! commit index never decrease, and its output refers only to entries that it has.
//!
//! Peers need not follow the algorithm here. Such a run cannot show that correct peers stay safe;
//! the simulator tests that.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use d_engine_core::{
    AppendOutcome, Effects, EntryKind, EntryMeta, FollowerReport, Input, Instant, LogId, LogIndex,
    Message, PersistId, ReadMode, SnapshotToInstall, Term,
};
use proptest::prelude::*;
use support::{Node, Setup, cluster, i, n, t};

/// Small numbers, which are likely to interact, and both ends of the range.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => 0_u64..8,
        1 => Just(1 << 62),
        1 => Just((1 << 62) - 1),
        1 => Just((1 << 62) + 1),
        1 => Just(u64::MAX),
    ]
}

fn term() -> impl Strategy<Value = Term> {
    number().prop_map(t)
}

fn index() -> impl Strategy<Value = LogIndex> {
    number().prop_map(i)
}

fn log_id() -> impl Strategy<Value = LogId> {
    (term(), index()).prop_map(|(term, index)| LogId::new(term, index))
}

fn entry() -> impl Strategy<Value = EntryMeta> {
    let kind = prop_oneof![
        8 => Just(EntryKind::Command),
        1 => Just(EntryKind::Noop),
        2 => Just(EntryKind::Membership)
    ];
    let configuration = proptest::option::weighted(0.2, (0_u64..6, 0_u64..3));
    (term(), kind, any::<u64>(), any::<u32>(), configuration).prop_map(
        |(term, kind, time_ms, bytes, configuration)| {
            let configuration =
                configuration.map(|(voters, learners)| Box::new(cluster(voters, learners)));
            EntryMeta { term, kind, time_ms, bytes, configuration }
        },
    )
}

/// Entries that a correct leader could send: none of them is rejected for its form.
fn plausible_entries() -> impl Strategy<Value = Vec<EntryMeta>> {
    proptest::collection::vec((1_u64..6, 0_u32..30), 0..5).prop_map(|mut terms| {
        terms.sort_unstable();
        terms.into_iter().map(|(term, bytes)| EntryMeta { bytes, ..support::entry(term) }).collect()
    })
}

fn report() -> impl Strategy<Value = FollowerReport> {
    let parts =
        (index(), number(), number(), any::<(bool, bool, u32)>(), proptest::option::of(log_id()));
    parts.prop_map(|(applied, nanos, wall_ms, flags, halted_at)| {
        let stickiness = Duration::from_nanos(nanos);
        let (short_of_space, log_lost, command_version_max) = flags;
        FollowerReport {
            applied,
            stickiness,
            wall_ms,
            short_of_space,
            log_lost,
            halted_at,
            command_version_max,
        }
    })
}

fn message() -> impl Strategy<Value = Message> {
    let entries =
        prop_oneof![3 => plausible_entries(), 1 => proptest::collection::vec(entry(), 0..4)];
    let outcome = prop_oneof![
        index().prop_map(AppendOutcome::Persisted),
        (index(), log_id()).prop_map(|(refused, hint)| AppendOutcome::Conflict { refused, hint }),
    ];
    prop_oneof![
        (term(), log_id()).prop_map(|(term, last)| Message::PreVote { term, last }),
        (term(), any::<bool>(), number())
            .prop_map(|(term, granted, wall_ms)| Message::PreVoteReply { term, granted, wall_ms }),
        (term(), log_id(), any::<bool>()).prop_map(|(term, last, transfer)| Message::RequestVote {
            term,
            last,
            transfer
        }),
        (term(), any::<bool>(), number()).prop_map(|(term, granted, wall_ms)| Message::VoteReply {
            term,
            granted,
            wall_ms
        }),
        (term(), log_id(), index(), entries).prop_map(|(term, prev, commit, entries)| {
            Message::Append { term, prev, commit, entries }
        }),
        (term(), outcome).prop_map(|(term, outcome)| Message::AppendReply { term, outcome }),
        (term(), index(), number(), index()).prop_map(|(term, commit, round, matched)| {
            Message::Heartbeat { term, commit, round, matched }
        }),
        (term(), number(), index(), index(), report()).prop_map(
            |(term, round, received, persisted, report)| {
                Message::HeartbeatReply { term, round, received, persisted, report }
            }
        ),
        term().prop_map(|term| Message::TimeoutNow { term }),
        (term(), number()).prop_map(|(term, token)| Message::ReadRequest { term, token }),
        (term(), number(), proptest::option::of(index()))
            .prop_map(|(term, token, index)| Message::ReadReply { term, token, index }),
    ]
}

/// An action of the test.
#[derive(Clone, Debug)]
enum Act {
    Give(Input),
    /// The message with the node's current term: most others are stale.
    GiveInTerm(u64, Message),
    /// Completes every requested write.
    StoreAll,
    /// Reports every allowed entry as applied.
    ApplyAll,
    Pass(u64),
    /// Sets the clock, forwards or backwards.
    SetClock(u64),
    /// A complete election that this node wins with all votes.
    Elect,
}

fn act() -> impl Strategy<Value = Act> {
    let from = || prop_oneof![10 => 1_u64..=6, 1 => Just(u64::MAX)];
    let input = prop_oneof![
        6 => (from(), message()).prop_map(|(from, message)| Input::Message { from: n(from), message }),
        1 => proptest::collection::vec(prop_oneof![0_u32..20, any::<u32>()], 0..4)
            .prop_map(|sizes| Input::Propose { sizes }),
        1 => (1_u64..=5, 0_u64..2).prop_map(|(voters, learners)| Input::ProposeMembership {
            configuration: Box::new(cluster(voters, learners)),
            bytes: 10,
            risk: d_engine_core::QuorumRisk::Accept,
        }),
        1 => proptest::collection::vec(any::<u64>(), 0..3).prop_map(|ids| {
            let mode = if ids.len() == 1 { ReadMode::Lease } else { ReadMode::Round };
            Input::Read { ids, mode }
        }),
        1 => number().prop_map(|order| Input::Persisted(PersistId::new(order))),
        1 => number().prop_map(|order| Input::HardStatePersisted(PersistId::new(order))),
        1 => index().prop_map(Input::Applied),
        1 => from().prop_map(|node| Input::PeerLost(n(node))),
        1 => proptest::option::of(from())
            .prop_map(|to| Input::TransferLeadership { to: to.map(n) }),
        1 => Just(Input::Tick),
        1 => (log_id(), any::<u32>()).prop_map(|(target, bytes)| Input::ProposeSkip { target, bytes }),
        1 => proptest::option::of(log_id()).prop_map(Input::HaltedAt),
        1 => Just(Input::Superseded),
        1 => (from(), term(), log_id(), 1_u64..=5).prop_map(|(from, term, last, voters)| {
            let configuration = Box::new(cluster(voters, 0));
            let from = n(from);
            Input::InstallSnapshot(SnapshotToInstall { from, term, last, time_ms: 7, configuration })
        }),
        1 => from().prop_map(|node| Input::SnapshotFailed(n(node))),
        1 => log_id().prop_map(Input::Purged),
        2 => Just(Input::Deadline),
    ];
    prop_oneof![
        8 => input.prop_map(Act::Give),
        8 => (1_u64..=6, message()).prop_map(|(from, message)| Act::GiveInTerm(from, message)),
        3 => Just(Act::StoreAll),
        1 => Just(Act::ApplyAll),
        2 => (0_u64..1_500).prop_map(Act::Pass),
        1 => prop_oneof![any::<u64>(), Just(0), Just(u64::MAX)].prop_map(Act::SetClock),
        1 => Just(Act::Elect),
    ]
}

fn in_term(message: Message, current: Term) -> Message {
    match message {
        Message::PreVote { last, .. } => {
            Message::PreVote { term: t(current.get().saturating_add(1)), last }
        }
        Message::PreVoteReply { granted, wall_ms, .. } => {
            Message::PreVoteReply { term: t(current.get().saturating_add(1)), granted, wall_ms }
        }
        Message::RequestVote { last, transfer, .. } => {
            Message::RequestVote { term: current, last, transfer }
        }
        Message::VoteReply { granted, wall_ms, .. } => {
            Message::VoteReply { term: current, granted, wall_ms }
        }
        Message::Append { prev, commit, entries, .. } => {
            Message::Append { term: current, prev, commit, entries }
        }
        Message::AppendReply { outcome, .. } => Message::AppendReply { term: current, outcome },
        Message::Heartbeat { commit, round, matched, .. } => {
            Message::Heartbeat { term: current, commit, round, matched }
        }
        Message::HeartbeatReply { round, received, persisted, report, .. } => {
            Message::HeartbeatReply { term: current, round, received, persisted, report }
        }
        Message::TimeoutNow { .. } => Message::TimeoutNow { term: current },
        Message::ReadRequest { token, .. } => Message::ReadRequest { term: current, token },
        Message::ReadReply { token, index, .. } => {
            Message::ReadReply { term: current, token, index }
        }
    }
}

/// Passes one input to the core and checks the rules that hold for every input.
fn give(node: &mut Node, input: Input) -> Result<(), TestCaseError> {
    let before = (node.core.term(), node.core.log());
    let mut out = Effects::default();
    let result = node.core.step(node.time(), input, &mut out);
    let (term, log) = (node.core.term(), node.core.log());
    prop_assert!(term >= before.0, "the term decreased");
    prop_assert!(
        log.committed >= before.1.committed,
        "the commit index decreased after {:?}",
        result
    );
    prop_assert!(log.applied >= before.1.applied, "the applied index decreased");
    prop_assert!(log.committed <= log.last.index && log.persisted <= log.last.index);
    prop_assert!(out.apply_to.is_none_or(|index| index <= log.committed && index <= log.persisted));
    for plan in &out.appends {
        prop_assert_eq!(node.core.term_at(plan.prev.index), Some(plan.prev.term));
        prop_assert_eq!(node.core.term_at(plan.last.index), Some(plan.last.term));
        prop_assert!(plan.prev.index <= plan.last.index && plan.to != n(1));
    }
    for send in &out.messages {
        prop_assert!(send.to != n(1), "a message to itself: {:?}", send);
    }
    node.orders.extend(out.persist);
    // Status and gauges may be requested at any time, and must be consistent.
    let status = node.core.status();
    prop_assert_eq!((status.term, status.log, status.role), (term, log, node.core.role()));
    prop_assert!(!node.core.leads_with_commit() || node.core.is_caught_up());
    Ok(())
}

fn elect(node: &mut Node) -> Result<(), TestCaseError> {
    if let Some(at) = node.core.next_deadline() {
        node.now = node.now.max(at);
    }
    give(node, Input::Deadline)?;
    let asked = t(node.core.term().get().saturating_add(1));
    for voter in 2..=5 {
        let message = Message::PreVoteReply { term: asked, granted: true, wall_ms: 0 };
        give(node, Input::Message { from: n(voter), message })?;
    }
    store_all(node)?;
    for voter in 2..=5 {
        let message = Message::VoteReply { term: node.core.term(), granted: true, wall_ms: 0 };
        give(node, Input::Message { from: n(voter), message })?;
    }
    Ok(())
}

fn store_all(node: &mut Node) -> Result<(), TestCaseError> {
    match node.orders.last().map(|order| order.id) {
        Some(id) => give(node, Input::Persisted(id)),
        None => Ok(()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn no_input_makes_a_core_panic_or_go_back(
        voters in prop_oneof![Just(1_u64), Just(3), Just(5)],
        learners in 0_u64..2,
        log in proptest::collection::vec(1_u64..4, 0..5),
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let mut log = log;
        log.sort_unstable();
        let term = log.last().copied().unwrap_or(0);
        let setup = Setup { configuration: cluster(voters, learners), ..Setup::of(voters, term, &log) };
        let mut node = Node::start(setup);
        for act in acts {
            match act {
                Act::Give(input) => give(&mut node, input)?,
                Act::GiveInTerm(from, message) => {
                    let message = in_term(message, node.core.term());
                    give(&mut node, Input::Message { from: n(from), message })?;
                }
                Act::StoreAll => store_all(&mut node)?,
                Act::ApplyAll => {
                    let index = node.core.log().committed.min(node.core.log().persisted);
                    give(&mut node, Input::Applied(index))?;
                }
                Act::Pass(millis) => node.pass(millis),
                Act::SetClock(nanos) => node.now = Instant::from_nanos(nanos),
                Act::Elect => elect(&mut node)?,
            }
        }
    }
}
