//! Between messages with payloads and the core's messages without them.

use std::sync::Arc;

use d_engine_core::{EntryKind, EntryMeta, InitialLog, Message};
use d_engine_storage::{Identity, LogEntry, Membership, MembershipError, RecoveredLog};

use crate::{Footing, PeerMessage, ReplicaError};

fn meta(entry: &LogEntry) -> Result<EntryMeta, MembershipError> {
    let head = entry.head();
    let configuration = match entry.kind {
        EntryKind::Membership => Some(Box::new(Membership::decode(&entry.data)?.configuration())),
        _ => None,
    };
    Ok(EntryMeta {
        term: head.id.term,
        kind: head.kind,
        time_ms: head.time_ms,
        bytes: head.data_len,
        configuration,
    })
}

/// The core's view of a recovered log.
pub(crate) fn initial_log(
    identity: &Identity,
    recovered: &RecoveredLog,
    footing: &Footing,
) -> Result<InitialLog, ReplicaError> {
    let mut memberships = recovered.memberships.iter().peekable();
    let mut entries = Vec::with_capacity(recovered.entries.len());
    for head in &recovered.entries {
        let mut configuration = None;
        if let Some((index, payload)) = memberships.next_if(|(index, _)| *index == head.id.index) {
            let membership = Membership::decode(payload)
                .map_err(|source| ReplicaError::Membership { index: index.get(), source })?;
            configuration = Some(Box::new(membership.configuration()));
        }
        entries.push(EntryMeta {
            term: head.id.term,
            kind: head.kind,
            time_ms: head.time_ms,
            bytes: head.data_len,
            configuration,
        });
    }
    Ok(InitialLog {
        base: recovered.base,
        configuration: footing.membership.as_ref().unwrap_or(&identity.initial).configuration(),
        time_ms: footing.time_ms,
        entries,
        // What was applied was committed, whatever the hint says.
        commit: recovered.hard_state.commit.max(footing.applied),
    })
}

/// The entries that a message carries beside what the core sees.
pub(crate) type Carried = Option<Arc<[LogEntry]>>;

/// What a received message is for the core, and the entries that it carries.
pub(crate) fn to_core(message: PeerMessage) -> Result<(Message, Carried), MembershipError> {
    Ok(match message {
        PeerMessage::PreVote { term, last } => (Message::PreVote { term, last }, None),
        PeerMessage::PreVoteReply { term, granted, wall_ms } => {
            (Message::PreVoteReply { term, granted, wall_ms }, None)
        }
        PeerMessage::RequestVote { term, last, transfer } => {
            (Message::RequestVote { term, last, transfer }, None)
        }
        PeerMessage::VoteReply { term, granted, wall_ms } => {
            (Message::VoteReply { term, granted, wall_ms }, None)
        }
        PeerMessage::Append { term, prev, commit, entries } => {
            let metas = entries.iter().map(meta).collect::<Result<Vec<_>, _>>()?;
            (Message::Append { term, prev, commit, entries: metas }, Some(entries))
        }
        PeerMessage::AppendReply { term, outcome } => (Message::AppendReply { term, outcome }, None),
        PeerMessage::Heartbeat { term, commit, round, matched } => {
            (Message::Heartbeat { term, commit, round, matched }, None)
        }
        PeerMessage::HeartbeatReply { term, round, received, stored, report } => {
            (Message::HeartbeatReply { term, round, received, stored, report }, None)
        }
        PeerMessage::TimeoutNow { term } => (Message::TimeoutNow { term }, None),
        PeerMessage::ReadRequest { term, token } => (Message::ReadRequest { term, token }, None),
        PeerMessage::ReadReply { term, token, index } => (Message::ReadReply { term, token, index }, None),
    })
}

/// A message of the core, ready for the transport. `None` for appends: those are plans.
pub(crate) fn from_core(message: Message) -> Option<PeerMessage> {
    Some(match message {
        Message::PreVote { term, last } => PeerMessage::PreVote { term, last },
        Message::PreVoteReply { term, granted, wall_ms } => {
            PeerMessage::PreVoteReply { term, granted, wall_ms }
        }
        Message::RequestVote { term, last, transfer } => PeerMessage::RequestVote { term, last, transfer },
        Message::VoteReply { term, granted, wall_ms } => PeerMessage::VoteReply { term, granted, wall_ms },
        Message::Append { .. } => return None,
        Message::AppendReply { term, outcome } => PeerMessage::AppendReply { term, outcome },
        Message::Heartbeat { term, commit, round, matched } => {
            PeerMessage::Heartbeat { term, commit, round, matched }
        }
        Message::HeartbeatReply { term, round, received, stored, report } => {
            PeerMessage::HeartbeatReply { term, round, received, stored, report }
        }
        Message::TimeoutNow { term } => PeerMessage::TimeoutNow { term },
        Message::ReadRequest { term, token } => PeerMessage::ReadRequest { term, token },
        Message::ReadReply { term, token, index } => PeerMessage::ReadReply { term, token, index },
    })
}
