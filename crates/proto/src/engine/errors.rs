//! The engine's errors in the form that clients receive.

use d_engine_replica::{LeaderHint, ProposeError, ReadError, SkipError, StopReason, TransferError};

use crate::client::{self, ErrorDetail, error_detail::Kind};

/// What a client is told about a proposal without a reply.
#[must_use]
pub fn propose_error_detail(error: &ProposeError) -> ErrorDetail {
    detail(match error {
        ProposeError::NotLeader { leader } => not_leader(leader.as_ref()),
        ProposeError::Busy { what } => busy(what),
        ProposeError::TooLarge { size, limit } => {
            Kind::TooLarge(client::TooLarge { size: *size as u64, limit: *limit as u64 })
        }
        ProposeError::Stopped { reason } => stopped(reason),
        ProposeError::Refused { reason } => Kind::Refused(client::Refused { reason: reason.to_string() }),
        ProposeError::NewerCommand { version, allowed, held_by, .. } => {
            Kind::NewerCommand(client::NewerCommand {
                version: *version,
                allowed: *allowed,
                held_by: held_by.get(),
                reason: error.to_string(),
            })
        }
        ProposeError::Expired => Kind::Expired(client::Expired {}),
        ProposeError::TransferInProgress { successor } => transfer_in_progress(successor.as_ref()),
        ProposeError::OutcomeUnknown { why } => outcome_unknown(why.to_string()),
        // An error unknown here must be read as the most careful one.
        other => outcome_unknown(other.to_string()),
    })
}

/// What a client is told about a read without an answer.
#[must_use]
pub fn read_error_detail(error: &ReadError) -> ErrorDetail {
    detail(match error {
        ReadError::NotLeader { leader } => not_leader(leader.as_ref()),
        ReadError::Busy { what } => busy(what),
        ReadError::Stopped { reason } => stopped(reason),
        ReadError::Expired => Kind::Expired(client::Expired {}),
        ReadError::Unsupported { operation } => {
            Kind::Unsupported(client::Unsupported { operation: (*operation).to_owned() })
        }
        other => Kind::StateMachineFailed(client::StateMachineFailed { reason: other.to_string() }),
    })
}

/// What a client is told about leadership that was not handed over.
#[must_use]
pub fn transfer_error_detail(error: &TransferError) -> ErrorDetail {
    detail(match error {
        TransferError::NotLeader { leader } => not_leader(leader.as_ref()),
        TransferError::Stopped { reason } => stopped(reason),
        TransferError::InProgress => transfer_in_progress(None),
        TransferError::TargetSilent { .. } | TransferError::TimedOut { .. } => {
            Kind::TransferFailed(client::TransferFailed { reason: error.to_string() })
        }
        other => Kind::Invalid(client::Invalid { reason: other.to_string() }),
    })
}

/// What a client is told about an entry that is not skipped.
#[must_use]
pub fn skip_error_detail(error: &SkipError) -> ErrorDetail {
    detail(match error {
        SkipError::NotLeader { leader } => not_leader(leader.as_ref()),
        SkipError::Stopped { reason } => stopped(reason),
        SkipError::Busy => busy("requests to skip an entry"),
        SkipError::OutcomeUnknown => outcome_unknown(error.to_string()),
        other => Kind::Invalid(client::Invalid { reason: other.to_string() }),
    })
}

fn detail(kind: Kind) -> ErrorDetail {
    ErrorDetail { kind: Some(kind) }
}

fn not_leader(leader: Option<&LeaderHint>) -> Kind {
    Kind::NotLeader(client::NotLeader {
        leader: leader.map_or(0, |hint| hint.node.get()),
        leader_client_addr: leader.map(|hint| hint.client_addr.clone()).unwrap_or_default(),
    })
}

fn transfer_in_progress(successor: Option<&LeaderHint>) -> Kind {
    Kind::TransferInProgress(client::TransferInProgress {
        successor: successor.map_or(0, |hint| hint.node.get()),
        successor_client_addr: successor.map(|hint| hint.client_addr.clone()).unwrap_or_default(),
    })
}

fn outcome_unknown(reason: String) -> Kind {
    Kind::OutcomeUnknown(client::OutcomeUnknown { reason })
}

fn busy(what: &str) -> Kind {
    Kind::Busy(client::Busy { what: what.to_owned() })
}

fn stopped(reason: &StopReason) -> Kind {
    Kind::Stopped(client::Stopped { reason: reason.to_string() })
}
