//! Bounds the bytes of client requests and replies in memory, for the whole node. A client that
//! sends without end, or that requests much and reads no reply, receives `Busy` and cannot fill the
//! memory.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use d_engine_api::message::{Busy, ErrorDetail, error_detail::Kind};
use d_engine_locks::Unpoisoned;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, Request, Response};
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;

/// The bytes of one permit.
const UNIT: usize = 1024;

/// A bound on bytes in memory.
#[derive(Clone)]
struct Budget {
    left: Arc<Semaphore>,
    units: u32,
    what: &'static str,
}

impl Budget {
    fn new(bytes: usize, what: &'static str) -> Self {
        let units =
            u32::try_from(bytes.div_ceil(UNIT).min(Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
        Self { left: Arc::new(Semaphore::new(units as usize)), units, what }
    }

    /// Takes `bytes` from the budget, or returns `Busy`. More bytes than the whole budget take all
    /// of it.
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.units);
        self.left.clone().try_acquire_many_owned(units).map_err(|_| {
            let text = format!("the node is busy ({}); retry after a pause", self.what);
            ErrorDetail::new(Kind::Busy(Busy { what: self.what.to_owned() })).to_status(text)
        })
    }
}

/// A service whose requests and replies are counted.
#[derive(Clone)]
pub(crate) struct BoundedBytes<S> {
    inner: S,
    requests: Budget,
    answers: Budget,
}

impl<S> BoundedBytes<S> {
    /// Admits at most `bytes` of requests and as many bytes of replies.
    pub(crate) fn new(inner: S, bytes: usize) -> Self {
        let requests = Budget::new(bytes, "bytes of requests being processed");
        let answers = Budget::new(bytes, "bytes of replies that are not sent yet");
        Self { inner, requests, answers }
    }
}

impl<S: NamedService> NamedService for BoundedBytes<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for BoundedBytes<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // A command has taken effect by now, so its reply is never refused. The state machine must
        // keep it short.
        let is_command = request.uri().path().ends_with("/Propose");
        let held = Arc::new(Mutex::new(None));
        let (budget, holds) = (self.requests.clone(), held.clone());
        let counted = request.map(|body| Body::new(Counted { body, budget, holds }));
        let answered = self.inner.call(counted);
        let answers = self.answers.clone();
        Box::pin(async move {
            let response = answered.await?;
            drop(held.lock().unpoisoned().take());
            if is_command {
                return Ok(response);
            }
            Ok(response.map(|body| Body::new(Answer { body, budget: answers, refused: false })))
        })
    }
}

/// A request's body. Its share of the budget is held until the request is answered.
struct Counted {
    body: Body,
    budget: Budget,
    holds: Arc<Mutex<Option<OwnedSemaphorePermit>>>,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(bytes) = frame.data_ref()
        {
            match self.budget.take(bytes.len()) {
                Err(busy) => return Poll::Ready(Some(Err(busy))),
                Ok(taken) => {
                    let mut holds = self.holds.lock().unpoisoned();
                    match holds.as_mut() {
                        Some(held) => held.merge(taken),
                        None => *holds = Some(taken),
                    }
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A reply's body. Its share of the budget is held until it has been written to the socket.
struct Answer {
    body: Body,
    budget: Budget,
    refused: bool,
}

/// Bytes of a reply, and their share of the budget.
struct Held {
    bytes: Bytes,
    _part: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.refused {
            return Poll::Ready(None);
        }
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(context));
        let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        match self.budget.take(bytes.len()) {
            Ok(part) => {
                let held = Bytes::from_owner(Held { bytes, _part: part });
                Poll::Ready(Some(Ok(Frame::data(held))))
            }
            Err(busy) => {
                self.refused = true;
                let mut trailers = HeaderMap::new();
                Poll::Ready(Some(
                    busy.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.refused || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body of frames with these lengths, all ready at once.
    struct Frames(Vec<usize>);

    impl HttpBody for Frames {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            let next = self.0.pop();
            Poll::Ready(next.map(|length| Ok(Frame::data(Bytes::from(vec![7; length])))))
        }
    }

    fn next(
        body: &mut (impl HttpBody<Data = Bytes, Error = Status> + Unpin),
    ) -> Option<Result<Frame<Bytes>, Status>> {
        let mut context = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => panic!("the body is pending"),
        }
    }

    fn is_busy(status: &Status) -> bool {
        matches!(
            ErrorDetail::from_status(status).and_then(|detail| detail.kind),
            Some(Kind::Busy(_))
        )
    }

    /// A client that requests much and reads none of it: its replies stay in memory, and count
    /// until they are dropped.
    #[test]
    fn an_answer_counts_until_it_is_written_and_more_are_refused_meanwhile() {
        let budget = Budget::new(4 * UNIT, "bytes of this test");
        let answer = || Answer {
            body: Body::new(Frames(vec![3 * UNIT])),
            budget: budget.clone(),
            refused: false,
        };
        let unwritten =
            next(&mut answer()).and_then(Result::ok).and_then(|frame| frame.into_data().ok());
        assert_eq!(unwritten.as_ref().map(Bytes::len), Some(3 * UNIT));
        let mut refused = answer();
        let trailers =
            next(&mut refused).and_then(Result::ok).and_then(|frame| frame.into_trailers().ok());
        let status = trailers.and_then(|trailers| Status::from_header_map(&trailers));
        assert!(status.is_some_and(|status| is_busy(&status)));
        assert!(next(&mut refused).is_none() && refused.is_end_stream());
        // A slice that is still in use holds the whole reply.
        let part = unwritten.map(|bytes| bytes.slice(..1));
        assert!(
            next(&mut answer()).is_some_and(|frame| frame.is_ok_and(|frame| frame.is_trailers()))
        );
        drop(part);
        assert!(next(&mut answer()).is_some_and(|frame| frame.is_ok_and(|frame| frame.is_data())));
    }

    /// A client that sends much and never ends its request.
    #[test]
    fn a_request_counts_until_it_is_answered_and_more_are_refused_meanwhile() {
        let budget = Budget::new(4 * UNIT, "bytes of this test");
        let holds = Arc::new(Mutex::new(None));
        let request = |holds: &Arc<Mutex<Option<OwnedSemaphorePermit>>>| Counted {
            body: Body::new(Frames(vec![UNIT, UNIT, UNIT])),
            budget: budget.clone(),
            holds: holds.clone(),
        };
        let mut first = request(&holds);
        while let Some(frame) = next(&mut first) {
            assert!(frame.is_ok());
        }
        let other = Arc::new(Mutex::new(None));
        let mut second = request(&other);
        assert!(next(&mut second).is_some_and(|frame| frame.is_ok()));
        assert!(next(&mut second).is_some_and(|frame| frame.is_err_and(|status| is_busy(&status))));
        drop(holds.lock().unpoisoned().take());
        assert!(next(&mut second).is_some_and(|frame| frame.is_ok()));
    }

    /// Replies at once to every request, with a body that exceeds what is left of the budget.
    #[derive(Clone)]
    struct Answers;

    impl Service<Request<Body>> for Answers {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            std::future::ready(Ok(Response::new(Body::new(Frames(vec![UNIT])))))
        }
    }

    /// The command has taken effect: a client that received `Busy` would send it again.
    #[tokio::test]
    async fn the_answer_to_a_command_is_never_refused() {
        let mut service = BoundedBytes::new(Answers, 4 * UNIT);
        let _used_up = service.answers.take(4 * UNIT);
        for (call, is_refused) in
            [("Propose", false), ("Get", true), ("Query", true), ("Status", true)]
        {
            let mut request = Request::new(Body::empty());
            *request.uri_mut() = format!("/d_engine.client.v1.Engine/{call}").parse().unwrap();
            let mut answered = service.call(request).await.unwrap().into_body();
            let first = next(&mut answered).and_then(Result::ok).unwrap();
            assert_eq!(first.is_trailers(), is_refused, "{call}");
        }
    }

    #[test]
    fn what_is_taken_is_given_back_and_more_than_all_needs_all() {
        let budget = Budget::new(10 * UNIT, "bytes of this test");
        let first = budget.take(9 * UNIT).ok();
        let refused =
            budget.take(UNIT + 1).err().and_then(|status| ErrorDetail::from_status(&status));
        assert!(matches!(
            refused.and_then(|detail| detail.kind),
            Some(Kind::Busy(Busy { what })) if what == "bytes of this test"
        ));
        assert!(budget.take(1).is_ok());
        drop(first);
        let all = budget.take(usize::MAX);
        assert!(all.is_ok() && budget.take(1).is_err());
    }
}
