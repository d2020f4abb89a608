//! Errors in gRPC statuses: a typed detail accompanies the text, so that no program parses text.

use prost::Message as _;
use tonic::{Code, Status};

use crate::message::{ErrorDetail, error_detail::Kind};

impl ErrorDetail {
    /// Creates a detail of one kind of error.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self { kind: Some(kind) }
    }

    /// Returns a gRPC status that carries this detail, with `message` as its text.
    ///
    /// The code is chosen for generic gRPC tools: a call that may have taken effect never gets a
    /// code that such tools retry automatically.
    #[must_use]
    pub fn to_status(&self, message: impl Into<String>) -> Status {
        let code = match &self.kind {
            Some(
                Kind::NotLeader(_)
                | Kind::TransferInProgress(_)
                | Kind::TransferFailed(_)
                | Kind::NewerCommand(_)
                | Kind::MembersNotChanged(_),
            ) => Code::FailedPrecondition,
            Some(Kind::Busy(_)) => Code::ResourceExhausted,
            Some(Kind::OutcomeUnknown(_) | Kind::Stopped(_)) | None => Code::Unknown,
            Some(Kind::TooLarge(_) | Kind::Invalid(_) | Kind::Refused(_)) => Code::InvalidArgument,
            Some(Kind::Unsupported(_)) => Code::Unimplemented,
            Some(Kind::StateMachineFailed(_) | Kind::SnapshotFailed(_)) => Code::Internal,
            Some(Kind::Expired(_)) => Code::DeadlineExceeded,
        };
        Status::with_details(code, message, self.encode_to_vec().into())
    }

    /// Returns the detail in a status, or `None` if the status comes from gRPC itself (a lost
    /// connection, an elapsed deadline) or has a kind that this version does not know.
    #[must_use]
    pub fn from_status(status: &Status) -> Option<Self> {
        if status.details().is_empty() {
            return None;
        }
        Self::decode(status.details()).ok().filter(|detail| detail.kind.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{NotLeader, OutcomeUnknown};

    #[test]
    fn a_detail_survives_the_way_through_a_status() {
        let detail = ErrorDetail::new(Kind::NotLeader(NotLeader {
            leader: 3,
            leader_client_addr: "127.0.0.1:7003".to_owned(),
        }));
        let status = detail.to_status("go to node 3");
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "go to node 3");
        assert_eq!(ErrorDetail::from_status(&status), Some(detail));
    }

    #[test]
    fn an_unknown_outcome_has_no_code_that_generic_clients_retry() {
        let status =
            ErrorDetail::new(Kind::OutcomeUnknown(OutcomeUnknown::default())).to_status("unknown");
        assert!(!matches!(
            status.code(),
            Code::Unavailable | Code::Aborted | Code::ResourceExhausted
        ));
    }

    #[test]
    fn a_status_of_grpc_itself_and_garbage_have_no_detail() {
        assert_eq!(ErrorDetail::from_status(&Status::unavailable("connection lost")), None);
        let garbage = Status::with_details(Code::Unknown, "?", vec![0xff, 0xff, 0xff].into());
        assert_eq!(ErrorDetail::from_status(&garbage), None);
    }
}
