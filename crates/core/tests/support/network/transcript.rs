//! The lines of a transcript.

use std::fmt::Write as _;

use d_engine_core::{
    AppendOutcome, Appended, Configuration, Effects, EntryKind, HardState, Message, NodeId,
    PersistRequest, RaftCore, RoleKind,
};

use super::Letter;

/// The effects of a step, one line each.
pub(super) fn described(out: &Effects, core: &RaftCore) -> Vec<String> {
    let mut lines = Vec::new();
    if out.status_changed {
        lines.push(format!("  is {}", role_of(core)));
    }
    if out.lost_leadership {
        lines.push("  lost leadership".to_owned());
    }
    lines.extend(out.reads_lost.iter().map(|read| format!("  read {read} is lost")));
    lines.extend(out.superseded_from.map(|index| format!("  superseded from {index}")));
    lines.extend(out.persist.as_ref().map(order_line));
    if out.hard_state_saved {
        lines.push("  hard state saved".to_owned());
    }
    lines.extend(out.apply_to.map(|index| format!("  apply to {index}")));
    lines.extend(out.dropped.iter().map(|node| format!("  drops node {node}")));
    lines.extend(
        out.reads_confirmed
            .iter()
            .map(|(read, index)| format!("  read {read} confirmed at {index}")),
    );
    for plan in &out.appends {
        let (prev, last, commit) = (plan.prev, plan.last.index, plan.commit);
        lines.push(format!("  -> {} Append after {prev:?} to {last}, commit {commit}", plan.to));
    }
    lines.extend(out.messages.iter().map(|send| {
        format!("  -> {} {}", send.to, message_line(&send.message.clone().received()))
    }));
    lines
}

pub(super) fn order_line(order: &PersistRequest) -> String {
    let mut line = format!("  write #{}:", order.id);
    if let Some(HardState { term, vote, commit, .. }) = order.hard_state {
        let vote = vote.map_or("none".to_owned(), |node| node.to_string());
        write!(line, " t{term} vote {vote} commit {commit}").unwrap();
    }
    match order.appended {
        Appended::Nothing => {}
        Appended::Created { first, count, kind, .. } => {
            let what = match kind {
                EntryKind::Noop => "no-op",
                EntryKind::Membership => "membership",
                _ => "entries",
            };
            write!(line, " {what} {}-{}", first.index, first.index.get() + count - 1).unwrap();
        }
        Appended::Received { first, .. } => write!(line, " entries from {first}").unwrap(),
        Appended::Snapshot { last, .. } => write!(line, " snapshot to {last:?}").unwrap(),
    }
    line
}

/// The voters, as `1 2 -> 1 2 4` while joint, and the learners.
pub(crate) fn shown(configuration: &Configuration) -> String {
    let list = |nodes: &[NodeId]| {
        let nodes: Vec<String> = nodes.iter().map(NodeId::to_string).collect();
        nodes.join(" ")
    };
    let mut text = list(configuration.voters());
    if configuration.is_joint() {
        text = format!("{} -> {text}", list(configuration.outgoing()));
    }
    if !configuration.learners().is_empty() {
        text = format!("{text}, learners {}", list(configuration.learners()));
    }
    format!("voters {text}")
}

pub(super) fn role_of(core: &RaftCore) -> String {
    let vote = core.vote().map_or("none".to_owned(), |node| node.to_string());
    let leader = match core.leader() {
        Some(leader) if core.role() == RoleKind::Follower => format!(" of {leader}"),
        _ => String::new(),
    };
    format!("{:?}{leader} t{} vote {vote}", core.role(), core.term())
}

pub(super) fn letter_name(letter: &Letter) -> String {
    let name = match letter.message {
        Message::PreVote { .. } => "PreVote",
        Message::PreVoteReply { .. } => "PreVoteReply",
        Message::RequestVote { .. } => "RequestVote",
        Message::VoteReply { .. } => "VoteReply",
        Message::Append { .. } => "Append",
        Message::AppendReply { .. } => "AppendReply",
        Message::Heartbeat { .. } => "Heartbeat",
        Message::HeartbeatReply { .. } => "HeartbeatReply",
        Message::TimeoutNow { .. } => "TimeoutNow",
        Message::ReadRequest { .. } => "ReadRequest",
        Message::ReadReply { .. } => "ReadReply",
    };
    format!("{}->{} {name} t{}", letter.from, letter.to, letter.message.term())
}

pub(super) fn message_line(message: &Message) -> String {
    let answer = |granted: bool| if granted { "yes" } else { "no" };
    match message {
        Message::PreVote { term, last } => format!("PreVote t{term} last {last:?}"),
        Message::PreVoteReply { term, granted, .. } => {
            format!("PreVoteReply t{term} {}", answer(*granted))
        }
        Message::RequestVote { term, last, transfer } => {
            format!("RequestVote t{term} last {last:?}{}", if *transfer { " transfer" } else { "" })
        }
        Message::VoteReply { term, granted, .. } => {
            format!("VoteReply t{term} {}", answer(*granted))
        }
        Message::Append { term, .. } => format!("Append t{term}"),
        Message::AppendReply { term, outcome: AppendOutcome::Persisted(index) } => {
            format!("AppendReply t{term} stored {index}")
        }
        Message::AppendReply { term, outcome: AppendOutcome::Conflict { refused, hint } } => {
            format!("AppendReply t{term} refused {refused} hint {hint:?}")
        }
        Message::Heartbeat { term, commit, round, .. } => {
            format!("Heartbeat t{term} commit {commit} round {round}")
        }
        Message::HeartbeatReply { term, round, received, persisted, .. } => {
            format!("HeartbeatReply t{term} round {round} received {received} stored {persisted}")
        }
        Message::TimeoutNow { term } => format!("TimeoutNow t{term}"),
        Message::ReadRequest { term, .. } => format!("ReadRequest t{term}"),
        Message::ReadReply { term, index, .. } => match index {
            Some(index) => format!("ReadReply t{term} at {index}"),
            None => format!("ReadReply t{term} refused"),
        },
    }
}
