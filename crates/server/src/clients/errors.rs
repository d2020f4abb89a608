//! Converts the engine's errors to the form that clients receive.

use d_engine_api::message::{self, ChangeRefusal, ErrorDetail, error_detail::Kind};
use d_engine_replica::{
    ChangeMembersError, LeaderHint, ProposeError, ReadError, RefusedBecause, SkipError, StopReason,
    TransferError,
};

use crate::SnapshotRequestError;

/// Returns the error detail of a failed proposal.
pub(crate) fn propose_error_detail(error: &ProposeError) -> ErrorDetail {
    ErrorDetail::new(match error {
        ProposeError::NotLeader { leader } => not_leader(leader.as_ref()),
        ProposeError::Busy { what } => busy(what),
        ProposeError::TooLarge { size, limit } => {
            Kind::TooLarge(message::TooLarge { size: *size as u64, limit: *limit as u64 })
        }
        ProposeError::Stopped { reason } => stopped(reason),
        ProposeError::Refused { reason } => {
            Kind::Refused(message::Refused { reason: reason.to_string() })
        }
        ProposeError::NewerCommand { version, allowed, held_by, .. } => {
            Kind::NewerCommand(message::NewerCommand {
                version: *version,
                allowed: *allowed,
                held_by: held_by.get(),
                reason: error.to_string(),
            })
        }
        ProposeError::Expired => Kind::Expired(message::Expired {}),
        ProposeError::TransferInProgress { successor } => transfer_in_progress(successor.as_ref()),
        ProposeError::OutcomeUnknown { why } => outcome_unknown(why.to_string()),
        // An unknown error must be treated as the most cautious one.
        other => outcome_unknown(other.to_string()),
    })
}

/// Returns the error detail of a failed read.
pub(crate) fn read_error_detail(error: &ReadError) -> ErrorDetail {
    ErrorDetail::new(match error {
        ReadError::NotLeader { leader } => not_leader(leader.as_ref()),
        ReadError::Busy { what } => busy(what),
        ReadError::Stopped { reason } => stopped(reason),
        ReadError::Expired => Kind::Expired(message::Expired {}),
        ReadError::Unsupported { operation } => {
            Kind::Unsupported(message::Unsupported { operation: (*operation).to_owned() })
        }
        // The client's error says what failed; this is the machine's own reason.
        ReadError::StateMachine(reason) => {
            Kind::StateMachineFailed(message::StateMachineFailed { reason: reason.clone() })
        }
        other => {
            Kind::StateMachineFailed(message::StateMachineFailed { reason: other.to_string() })
        }
    })
}

/// Returns the error detail of a failed leadership transfer.
pub(crate) fn transfer_error_detail(error: &TransferError) -> ErrorDetail {
    ErrorDetail::new(match error {
        TransferError::NotLeader { leader } => not_leader(leader.as_ref()),
        TransferError::Stopped { reason } => stopped(reason),
        TransferError::InProgress => transfer_in_progress(None),
        TransferError::TargetSilent { .. } | TransferError::TimedOut { .. } => {
            Kind::TransferFailed(message::TransferFailed { reason: error.to_string() })
        }
        other => Kind::Invalid(message::Invalid { reason: other.to_string() }),
    })
}

/// Returns the error detail of an entry that was not skipped.
pub(crate) fn skip_error_detail(error: &SkipError) -> ErrorDetail {
    ErrorDetail::new(match error {
        SkipError::NotLeader { leader } => not_leader(leader.as_ref()),
        SkipError::Stopped { reason } => stopped(reason),
        SkipError::Busy => busy("requests to skip an entry"),
        SkipError::OutcomeUnknown => outcome_unknown(error.to_string()),
        other => Kind::Invalid(message::Invalid { reason: other.to_string() }),
    })
}

/// Returns the error detail of a change of the members that was not made.
pub(crate) fn change_error_detail(error: &ChangeMembersError) -> ErrorDetail {
    let not_changed = |refusal: ChangeRefusal| {
        let reason = error.to_string();
        Kind::MembersNotChanged(message::MembersNotChanged { reason, refusal: refusal.into() })
    };
    ErrorDetail::new(match error {
        ChangeMembersError::NotLeader { leader } => not_leader(leader.as_ref()),
        ChangeMembersError::Stopped { reason } => stopped(reason),
        ChangeMembersError::TooMany => busy("requests to change the members"),
        ChangeMembersError::NotDone { is_written: Some(false), .. } => {
            not_changed(ChangeRefusal::Unspecified)
        }
        ChangeMembersError::NotDone { .. } => outcome_unknown(error.to_string()),
        _ => not_changed(match error.refused_because() {
            RefusedBecause::Stale => ChangeRefusal::Stale,
            RefusedBecause::WouldLoseQuorum => ChangeRefusal::WouldLoseQuorum,
            _ => ChangeRefusal::Unspecified,
        }),
    })
}

/// Returns the error detail of a snapshot that was not taken.
pub(crate) fn snapshot_error_detail(error: &SnapshotRequestError) -> ErrorDetail {
    ErrorDetail::new(match error {
        SnapshotRequestError::Failed { reason } => {
            Kind::SnapshotFailed(message::SnapshotFailed { reason: reason.to_string() })
        }
        SnapshotRequestError::Busy => busy("callers waiting for a snapshot"),
        SnapshotRequestError::Stopped { reason } => stopped(reason),
        other => Kind::SnapshotFailed(message::SnapshotFailed { reason: other.to_string() }),
    })
}

fn not_leader(leader: Option<&LeaderHint>) -> Kind {
    Kind::NotLeader(message::NotLeader {
        leader: leader.map_or(0, |hint| hint.node.get()),
        leader_client_addr: leader.map(|hint| hint.client_addr.clone()).unwrap_or_default(),
    })
}

fn transfer_in_progress(successor: Option<&LeaderHint>) -> Kind {
    Kind::TransferInProgress(message::TransferInProgress {
        successor: successor.map_or(0, |hint| hint.node.get()),
        successor_client_addr: successor.map(|hint| hint.client_addr.clone()).unwrap_or_default(),
    })
}

fn outcome_unknown(reason: String) -> Kind {
    Kind::OutcomeUnknown(message::OutcomeUnknown { reason })
}

fn busy(what: &str) -> Kind {
    Kind::Busy(message::Busy { what: what.to_owned() })
}

fn stopped(reason: &StopReason) -> Kind {
    Kind::Stopped(message::Stopped { reason: reason.to_string() })
}
