//! Futures that are ready at once.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use d_engine_replica::StopReason;

/// Polls a future that must be ready at once. A state machine that needs a reactor or a timer
/// cannot run in the simulator; the error says so.
pub(crate) fn now_or_never<T>(
    future: impl Future<Output = Result<T, StopReason>>,
) -> Result<T, StopReason> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(StopReason::new(
            "the state machine waits for something outside itself (a timer, a socket, another \
             task); the simulator has none of these",
        )),
    }
}
