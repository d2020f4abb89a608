//! The calls about members, whose replies are streams.

use std::pin::Pin;
use std::time::Duration;

use d_engine_api::MemberChange;
use d_engine_api::message::{
    ChangeMembersReply, ChangeMembersRequest, ErrorDetail, Invalid, MembersReply,
    change_members_reply::Step, error_detail::Kind,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, WatchStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use crate::ChangeOptions;
use crate::clients::errors::change_error_detail;
use crate::node::embedded::EmbeddedEngine;

pub(super) type MembersStream = Pin<Box<dyn Stream<Item = Result<MembersReply, Status>> + Send>>;
pub(super) type ChangeStream = ReceiverStream<Result<ChangeMembersReply, Status>>;

/// The steps of a change that may wait to be sent.
const STEPS_MAX: usize = 16;

/// The members now and after every change, until the node stops.
pub(super) fn watch(engine: &EmbeddedEngine) -> MembersStream {
    let seen = WatchStream::new(engine.watch_members()).map(Some);
    let stopped = WatchStream::new(engine.stop_signal());
    let end = stopped.filter(Option::is_some).map(|_| None);
    let until_the_end = seen.merge(end).map_while(|members| members);
    Box::pin(until_the_end.map(|members| Ok(MembersReply::from((*members).clone()))))
}

/// Changes the members, and sends what it waits for.
#[allow(clippy::result_large_err, reason = "tonic's handlers return its Status by value")]
pub(super) fn change(
    engine: EmbeddedEngine,
    request: ChangeMembersRequest,
    timeout: Option<Duration>,
) -> Result<ChangeStream, Status> {
    let change = request.change.map(MemberChange::from).ok_or_else(|| {
        let reason = "the request names no change that this version knows".to_owned();
        ErrorDetail::new(Kind::Invalid(Invalid { reason: reason.clone() })).to_status(reason)
    })?;
    let options = ChangeOptions {
        expected: request.expected.map(Into::into),
        accept_risk: request.accept_risk,
        timeout,
    };
    let (steps, sent) = mpsc::channel(STEPS_MAX);
    tokio::spawn(async move {
        let reply = |step| ChangeMembersReply { step: Some(step) };
        let changed = engine.change_members_or_leave(change, options, |text| {
            // A reader that is slow misses a text.
            steps.try_send(Ok(reply(Step::Waiting(text.to_owned())))).ok();
        });
        let gone = steps.clone();
        let outcome = tokio::select! {
            // The change goes on without its caller.
            () = gone.closed() => return,
            outcome = changed => outcome,
        };
        let last = match outcome {
            Ok(members) => Ok(reply(Step::Done((*members).clone().into()))),
            Err(error) => Err(change_error_detail(&error).to_status(error.to_string())),
        };
        steps.send(last).await.ok();
    });
    Ok(ReceiverStream::new(sent))
}
