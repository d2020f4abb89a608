//! The core's view of entries and messages: without payloads.

use std::sync::Arc;

use d_engine_core::{EntryKind, EntryMeta, InitialLog, Message};
use d_engine_storage::{Identity, LogEntry, Membership, MembershipError, RecoveredLog};

use crate::{PeerMessage, ReplicaError, StartPosition};

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
    start_position: &StartPosition,
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
        configuration: start_position
            .membership
            .as_ref()
            .unwrap_or(&identity.initial)
            .configuration(),
        time_ms: start_position.time_ms,
        entries,
        // Applied entries were committed, even if the hint in the hard state is lower.
        commit: recovered.hard_state.commit.max(start_position.applied),
    })
}

/// The entries of a message, with the payloads that the core does not see.
pub(crate) type Carried = Option<Arc<[LogEntry]>>;

/// Converts a received message for the core; returns the entries that it carries separately.
pub(crate) fn to_core(message: PeerMessage) -> Result<(Message, Carried), MembershipError> {
    let mut carried = None;
    let message = message.map_entries(|entries| {
        let metas = entries.iter().map(meta).collect();
        carried = Some(entries);
        metas
    })?;
    Ok((message, carried))
}
