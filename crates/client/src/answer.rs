//! The retry rules: what a response means for the next step.

use std::error::Error;

use d_engine_api::message::{ErrorDetail, error_detail::Kind};
use tonic::{Code, ConnectError, Status, TimeoutExpired};

use crate::ClientError;

/// The effect of a call, as far as retries are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Effect {
    /// A read: it may always be retried.
    Read,
    /// A command: once a node may have accepted it, it is never resent.
    Command {
        /// Length of the command in bytes.
        size: u64,
    },
    /// A command that, according to the caller, may take effect more than once.
    Idempotent {
        /// Length of the command in bytes.
        size: u64,
    },
    /// A leadership transfer: a second request would transfer leadership again, to the next node.
    Handover,
}

/// What to do after a failed call.
#[derive(Debug)]
pub(crate) enum Next {
    /// Try the leader, at this address if it is known.
    Leader(Option<String>),
    /// Leadership is being transferred to another node, at this address if it is known: try that
    /// node. The error is returned if the deadline passes.
    Successor(Option<String>, ClientError),
    /// Try the same node after a pause. The error is returned if the deadline passes.
    Pause(ClientError),
    /// Try another node: this one cannot serve the call now.
    Elsewhere(ClientError),
    /// The call may or may not have taken effect. Only calls that may take effect twice are
    /// retried.
    Unknown(ClientError),
    /// The deadline has passed.
    Late(ClientError),
    /// Return the error to the caller.
    Tell(ClientError),
}

impl Next {
    /// The error for the caller, if nothing is tried again. `Err` if the call must go to the
    /// leader.
    pub(crate) fn into_error(self) -> Result<ClientError, Option<String>> {
        match self {
            Self::Pause(error)
            | Self::Successor(_, error)
            | Self::Elsewhere(error)
            | Self::Unknown(error)
            | Self::Late(error)
            | Self::Tell(error) => Ok(error),
            Self::Leader(address) => Err(address),
        }
    }
}

/// The smallest possible bound of a node on messages: its bound on commands, plus the overhead of
/// one.
const NODE_MESSAGE_BYTES_MIN: u64 = 64 << 10;

/// Returns what to do after `status`, and whether the connection must be closed. `max_reply_bytes`
/// is this client's own bound on replies.
pub(crate) fn next_step(
    endpoint: &str,
    effect: Effect,
    status: &Status,
    max_reply_bytes: usize,
) -> (Next, bool) {
    match ErrorDetail::from_status(status).and_then(|detail| detail.kind) {
        Some(kind) => {
            // A restarted node at this address is reached only by a new connection.
            let stopped = matches!(kind, Kind::Stopped(_));
            (after_refusal(endpoint.to_owned(), kind), stopped)
        }
        None => after_grpc_error(endpoint.to_owned(), effect, status, max_reply_bytes),
    }
}

/// The node itself refused the call and reported why.
fn after_refusal(endpoint: String, kind: Kind) -> Next {
    Next::Tell(match kind {
        Kind::NotLeader(hint) => {
            let address = hint.leader_client_addr;
            return Next::Leader((!address.is_empty()).then_some(address));
        }
        Kind::Busy(busy) => return Next::Pause(ClientError::Busy { endpoint, what: busy.what }),
        Kind::Stopped(stopped) => {
            return Next::Elsewhere(ClientError::Stopped { endpoint, reason: stopped.reason });
        }
        Kind::Expired(_) => {
            let what = "the deadline passed before the node took up the request".to_owned();
            return Next::Pause(ClientError::Busy { endpoint, what });
        }
        Kind::OutcomeUnknown(unknown) => {
            return Next::Unknown(ClientError::OutcomeUnknown { endpoint, reason: unknown.reason });
        }
        Kind::TransferInProgress(transfer) => {
            let address = transfer.successor_client_addr;
            let successor = Some(transfer.successor).filter(|node| *node != 0);
            let error = ClientError::TransferInProgress { endpoint, successor };
            return Next::Successor((!address.is_empty()).then_some(address), error);
        }
        Kind::TransferFailed(failed) => {
            ClientError::TransferFailed { endpoint, reason: failed.reason }
        }
        Kind::TooLarge(large) => {
            ClientError::TooLarge { size: large.size, limit: Some(large.limit) }
        }
        Kind::Refused(refused) => ClientError::Refused { endpoint, reason: refused.reason },
        Kind::NewerCommand(newer) => ClientError::NewerCommand {
            endpoint,
            version: newer.version,
            allowed: newer.allowed,
            held_by: newer.held_by,
            reason: newer.reason,
        },
        Kind::Unsupported(unsupported) => {
            ClientError::Unsupported { endpoint, operation: unsupported.operation }
        }
        Kind::Invalid(invalid) => ClientError::Invalid { endpoint, reason: invalid.reason },
        Kind::SnapshotFailed(failed) => {
            ClientError::SnapshotFailed { endpoint, reason: failed.reason }
        }
        Kind::MembersNotChanged(not_changed) => ClientError::MembersNotChanged {
            endpoint,
            refusal: not_changed.refusal().into(),
            reason: not_changed.reason,
        },
        Kind::StateMachineFailed(failed) => {
            ClientError::StateMachineFailed { endpoint, reason: failed.reason }
        }
    })
}

/// gRPC itself failed: the node's service did not respond, or its response did not arrive.
fn after_grpc_error(
    endpoint: String,
    effect: Effect,
    status: &Status,
    max_reply_bytes: usize,
) -> (Next, bool) {
    // There was no connection, so nothing was sent.
    if was_not_sent(status) {
        return (
            Next::Elsewhere(ClientError::Unreachable { endpoint, reason: innermost(status) }),
            true,
        );
    }
    match (status.code(), effect) {
        // The server at this address has no such service or call, so it has done nothing.
        (Code::Unimplemented, _) => {
            let operation =
                "this call; check that it is the client address of a node of this version"
                    .to_owned();
            (Next::Tell(ClientError::Unsupported { endpoint, operation }), false)
        }
        (Code::OutOfRange, Effect::Read) => (
            Next::Tell(ClientError::Invalid { endpoint, reason: status.message().to_owned() }),
            false,
        ),
        (_, Effect::Read) => {
            (Next::Elsewhere(ClientError::Unreachable { endpoint, reason: lost(status) }), true)
        }
        // The node's bound on messages rejected the command before its service received it: not
        // done.
        (Code::OutOfRange, Effect::Command { size } | Effect::Idempotent { size })
            if size >= NODE_MESSAGE_BYTES_MIN && !names(status, max_reply_bytes) =>
        {
            (Next::Tell(ClientError::TooLarge { size, limit: None }), false)
        }
        // A retry would return a reply of the same length.
        (Code::OutOfRange, _) => {
            let reason = "the reply is longer than max_reply_bytes".to_owned();
            (Next::Tell(ClientError::OutcomeUnknown { endpoint, reason }), false)
        }
        _ => (Next::Unknown(ClientError::OutcomeUnknown { endpoint, reason: lost(status) }), true),
    }
}

/// Whether the text names this number. The code of a message that is too long is the same from the
/// node, where the command was refused, and from this client, where the command has taken effect
/// and only the reply is too long. Only the bound named in the text distinguishes them. In doubt
/// the outcome is unknown.
fn names(status: &Status, bound: usize) -> bool {
    let mut numbers = status.message().split(|c: char| !c.is_ascii_digit());
    numbers.any(|number| number.parse() == Ok(bound))
}

/// Whether the call's own timeout expired before a response: here, or at the node, which knows the
/// remaining time.
pub(crate) fn is_out_of_time(status: &Status, is_over: bool) -> bool {
    let ended_there = matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
        && ErrorDetail::from_status(status).is_none();
    has_cause::<TimeoutExpired>(status) || (is_over && ended_there)
}

/// Whether the status means that there was no connection to send the call on.
pub(crate) fn was_not_sent(status: &Status) -> bool {
    has_cause::<ConnectError>(status)
}

fn has_cause<E: Error + 'static>(status: &Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |&error| error.source());
    causes.any(|error| error.is::<E>())
}

fn lost(status: &Status) -> String {
    format!("the connection was lost with the call in flight: {}", innermost(status))
}

/// Returns the last cause in the chain: "connection refused" rather than "transport error".
pub(crate) fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    match last.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => last.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use d_engine_api::message as wire;

    use super::*;

    const COMMAND: Effect = Effect::Command { size: 9 };
    const LIMIT: usize = 5_000;

    fn after(kind: Kind, effect: Effect) -> Next {
        next_step("n1:1", effect, &ErrorDetail::new(kind).to_status("any text"), LIMIT).0
    }

    #[test]
    fn what_certainly_was_not_done_goes_on_elsewhere_or_after_a_pause() {
        for effect in [COMMAND, Effect::Read] {
            let hint = wire::NotLeader { leader: 2, leader_client_addr: "n2:1".to_owned() };
            let next = after(Kind::NotLeader(hint), effect);
            assert!(matches!(next, Next::Leader(Some(address)) if address == "n2:1"));
            let next = after(Kind::NotLeader(wire::NotLeader::default()), effect);
            assert!(matches!(next, Next::Leader(None)));
            let next = after(Kind::Busy(wire::Busy { what: "proposals".to_owned() }), effect);
            assert!(
                matches!(next, Next::Pause(ClientError::Busy { what, .. }) if what == "proposals")
            );
            let next = after(Kind::Stopped(wire::Stopped { reason: "disk".to_owned() }), effect);
            assert!(
                matches!(next, Next::Elsewhere(ClientError::Stopped { reason, .. }) if reason == "disk")
            );
        }
    }

    #[test]
    fn what_cannot_be_mended_by_asking_again_is_told_with_its_particulars() {
        let told = |kind| match after(kind, COMMAND) {
            Next::Tell(error) => error,
            next => panic!("{next:?}"),
        };
        let endpoint = || "n1:1".to_owned();
        assert_eq!(
            told(Kind::TooLarge(wire::TooLarge { size: 9, limit: 8 })),
            ClientError::TooLarge { size: 9, limit: Some(8) }
        );
        assert_eq!(
            told(Kind::Unsupported(wire::Unsupported { operation: "query".to_owned() })),
            ClientError::Unsupported { endpoint: endpoint(), operation: "query".to_owned() }
        );
        let reason = || "because".to_owned();
        assert_eq!(
            told(Kind::Invalid(wire::Invalid { reason: reason() })),
            ClientError::Invalid { endpoint: endpoint(), reason: reason() }
        );
        assert_eq!(
            told(Kind::Refused(wire::Refused { reason: reason() })),
            ClientError::Refused { endpoint: endpoint(), reason: reason() }
        );
        let newer = wire::NewerCommand { version: 2, allowed: 1, held_by: 3, reason: reason() };
        let expected = ClientError::NewerCommand {
            endpoint: endpoint(),
            version: 2,
            allowed: 1,
            held_by: 3,
            reason: reason(),
        };
        assert_eq!(told(Kind::NewerCommand(newer)), expected);
        assert_eq!(
            told(Kind::StateMachineFailed(wire::StateMachineFailed { reason: reason() })),
            ClientError::StateMachineFailed { endpoint: endpoint(), reason: reason() }
        );
    }

    #[test]
    fn a_lost_leadership_leaves_the_outcome_unknown() {
        let why = || "leadership was lost".to_owned();
        let next = after(Kind::OutcomeUnknown(wire::OutcomeUnknown { reason: why() }), COMMAND);
        let Next::Unknown(ClientError::OutcomeUnknown { reason, .. }) = next else {
            panic!("{next:?}")
        };
        assert_eq!(reason, why());
    }

    #[test]
    fn a_leader_that_hands_over_sends_its_clients_to_the_successor() {
        let transfer = || {
            Kind::TransferInProgress(wire::TransferInProgress {
                successor: 3,
                successor_client_addr: "n3:1".to_owned(),
            })
        };
        for effect in [COMMAND, Effect::Handover] {
            let next = after(transfer(), effect);
            let Next::Successor(Some(address), error) = next else { panic!("{next:?}") };
            assert_eq!(address, "n3:1");
            let expected =
                ClientError::TransferInProgress { endpoint: "n1:1".to_owned(), successor: Some(3) };
            assert_eq!(error, expected);
        }
    }

    /// A command is resent only if it certainly was not accepted, whatever code gRPC chose.
    #[test]
    fn a_command_without_an_answer_is_unknown_and_a_read_goes_on() {
        for code in
            [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::Internal, Code::Aborted]
        {
            let status = Status::new(code, "broken pipe");
            for effect in [COMMAND, Effect::Idempotent { size: 9 }, Effect::Handover] {
                let (next, connection_lost) = next_step("n1:1", effect, &status, LIMIT);
                assert!(
                    matches!(next, Next::Unknown(ClientError::OutcomeUnknown { .. })),
                    "{code:?}: {next:?}"
                );
                assert!(connection_lost);
            }
            let (next, _) = next_step("n1:1", Effect::Read, &status, LIMIT);
            assert!(
                matches!(next, Next::Elsewhere(ClientError::Unreachable { .. })),
                "{code:?}: {next:?}"
            );
        }
    }

    /// The text is for people: a status without a detail means the same, whatever its text.
    #[test]
    fn texts_are_never_understood() {
        let status = Status::new(Code::FailedPrecondition, "this node is not the leader");
        assert!(matches!(
            next_step("n1:1", COMMAND, &status, LIMIT).0,
            Next::Unknown(ClientError::OutcomeUnknown { .. })
        ));
    }

    #[test]
    fn a_refused_connection_is_no_unknown_outcome() {
        let refused = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "refused");
        let status = Status::from_error(Box::new(ConnectError(Box::new(refused))));
        let (next, _) = next_step("n1:1", COMMAND, &status, LIMIT);
        assert!(matches!(next, Next::Elsewhere(ClientError::Unreachable { .. })), "{next:?}");
    }

    /// A reply that is too long looks like a command that is too long, but the command has taken
    /// effect.
    #[test]
    fn an_answer_that_is_too_long_leaves_the_outcome_unknown() {
        let long = Effect::Command { size: 1 << 20 };
        let of_limit = |limit| {
            Status::new(Code::OutOfRange, format!("found 9999 bytes, the limit is: {limit} bytes"))
        };
        let (next, _) = next_step("n1:1", long, &of_limit(66_000), LIMIT);
        assert!(
            matches!(next, Next::Tell(ClientError::TooLarge { size: 1_048_576, limit: None })),
            "{next:?}"
        );
        let (next, _) = next_step("n1:1", long, &of_limit(LIMIT), LIMIT);
        assert!(matches!(next, Next::Tell(ClientError::OutcomeUnknown { .. })), "{next:?}");
        let status = of_limit(66_000);
        // Not even an idempotent command is resent: its reply would be as long again.
        for effect in [COMMAND, Effect::Idempotent { size: 9 }] {
            let (next, _) = next_step("n1:1", effect, &status, LIMIT);
            assert!(matches!(next, Next::Tell(ClientError::OutcomeUnknown { .. })), "{next:?}");
        }
    }
}
