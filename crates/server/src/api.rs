//! The client service over gRPC. It holds no logic of its own: every call is one of [`EmbeddedEngine`]'s, and every
//! refusal carries a typed detail.

mod status;

use std::time::Duration;

use bytes::Bytes;
use d_engine_proto::client::{
    Busy, Consistency, ErrorDetail, GetReply, GetRequest, Invalid, ProposeReply, ProposeRequest, QueryReply,
    QueryRequest, SkipEntryReply, SkipEntryRequest, SnapshotFailed, StatusReply, StatusRequest, Stopped,
    TakeSnapshotReply, TakeSnapshotRequest, TransferLeadershipReply, TransferLeadershipRequest,
    engine_server::{Engine, EngineServer},
    error_detail::Kind,
};
use d_engine_proto::engine::{
    propose_error_detail, read_error_detail, skip_error_detail, transfer_error_detail,
};
use d_engine_replica::{ProposeError, ReadConsistency, ReadError, StopReason};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::SnapshotRequestError;
use crate::client_bytes::BoundedBytes;
use crate::client_connections;
use crate::config::Limits;
use crate::descriptors;
use crate::embedded::{EmbeddedEngine, WeakEngine};

/// Bytes around a command in its message.
const MESSAGE_OVERHEAD: usize = 64 << 10;

/// Serves clients on `listener` until `stopped` says why the node has stopped; calls on their way are
/// answered first.
pub(crate) fn serve(
    node: u64,
    listener: TcpListener,
    engine: WeakEngine,
    limits: &Limits,
    mut stopped: watch::Receiver<Option<StopReason>>,
) -> JoinHandle<()> {
    let service = EngineServer::new(Api { engine })
        .max_decoding_message_size(limits.max_command_bytes.saturating_add(MESSAGE_OVERHEAD));
    let service = BoundedBytes::new(service, limits.max_client_bytes);
    let (to, connections) = mpsc::channel(1);
    let limit = descriptors::limit();
    descriptors::warn_if_short(node, limits.max_client_connections, limit);
    let places = descriptors::client_places(limits.max_client_connections, limit);
    tokio::spawn(client_connections::accept(node, listener, places, to));
    let calls = u32::try_from(limits.max_calls_per_connection).unwrap_or(u32::MAX);
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .max_concurrent_streams(calls)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
                // A closed channel means that the node is gone: also the end.
                stopped.wait_for(Option::is_some).await.ok();
            })
            .await;
        if let Err(error) = served {
            tracing::error!(node, %error, "the client service ended");
        }
    })
}

struct Api {
    engine: WeakEngine,
}

impl Api {
    #[allow(clippy::result_large_err, reason = "tonic's handlers return its Status by value")]
    fn engine(&self) -> Result<EmbeddedEngine, Status> {
        self.engine.upgrade().ok_or_else(|| {
            let reason = crate::SHUT_DOWN.to_owned();
            ErrorDetail::new(Kind::Stopped(Stopped { reason: reason.clone() })).to_status(reason)
        })
    }
}

#[tonic::async_trait]
impl Engine for Api {
    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeReply>, Status> {
        let engine = self.engine()?;
        let deadline = engine.deadline_after(patience(&request));
        // A copy of its own size: what was received is a slice of a larger buffer, which the entry would keep in
        // memory for as long as it is in the log's cache.
        let command = Bytes::copy_from_slice(&request.into_inner().command);
        let proposed = engine.propose_by(command, deadline);
        let reply = proposed.await.map_err(propose_status)?;
        Ok(Response::new(ProposeReply { reply }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let engine = self.engine()?;
        let patience = patience(&request);
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let read_index = barrier(&engine, consistency, patience).await?;
        let value = engine.get_applied(&request.key).await.map_err(read_status)?;
        Ok(Response::new(GetReply { found: value.is_some(), value: value.unwrap_or_default(), read_index }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let engine = self.engine()?;
        let patience = patience(&request);
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let read_index = barrier(&engine, consistency, patience).await?;
        let reply = engine.query_applied(&request.request).await.map_err(read_status)?;
        Ok(Response::new(QueryReply { reply, read_index }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipReply>, Status> {
        let to = Some(request.into_inner().to).filter(|to| *to != 0);
        let moved = self.engine()?.transfer_leadership(to).await;
        let leader = moved.map_err(|error| transfer_error_detail(&error).to_status(error.to_string()))?;
        Ok(Response::new(TransferLeadershipReply { leader }))
    }

    async fn skip_entry(
        &self,
        request: Request<SkipEntryRequest>,
    ) -> Result<Response<SkipEntryReply>, Status> {
        let entry = request.into_inner().entry.unwrap_or_default();
        let skipped = self.engine()?.skip_entry(entry.term, entry.index).await;
        let decided_at = skipped.map_err(|error| skip_error_detail(&error).to_status(error.to_string()))?;
        Ok(Response::new(SkipEntryReply { decided_at }))
    }

    async fn status(&self, _request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(status::reply(self.engine()?.status().await)))
    }

    async fn take_snapshot(
        &self,
        _request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotReply>, Status> {
        let taken = self.engine()?.take_snapshot().await.map_err(snapshot_status)?;
        let label = taken.label();
        Ok(Response::new(TakeSnapshotReply {
            index: label.index.get(),
            term: label.term.get(),
            bytes: taken.len,
            sha256: Bytes::copy_from_slice(&taken.sha256),
        }))
    }
}

/// Waits for as long as the caller does.
async fn barrier(
    engine: &EmbeddedEngine,
    consistency: ReadConsistency,
    patience: Option<Duration>,
) -> Result<u64, Status> {
    let confirmed = match patience {
        Some(patience) => engine.read_barrier_within(consistency, patience).await,
        None => engine.read_barrier(consistency).await,
    };
    confirmed.map_err(read_status)
}

#[allow(clippy::result_large_err, reason = "tonic's handlers return its Status by value")]
fn consistency(number: i32) -> Result<ReadConsistency, Status> {
    match Consistency::try_from(number) {
        Ok(Consistency::Unspecified | Consistency::Linearizable) => Ok(ReadConsistency::Linearizable),
        Ok(Consistency::Eventual) => Ok(ReadConsistency::Eventual),
        Ok(Consistency::Lease) => Ok(ReadConsistency::Lease),
        Err(_) => {
            let reason = format!("{number} is no read consistency; 0 to 3 are");
            Err(ErrorDetail::new(Kind::Invalid(Invalid { reason: reason.clone() })).to_status(reason))
        }
    }
}

/// How long the caller waits, as it says in `grpc-timeout`: up to eight digits and a unit. One that cannot
/// be read is none.
fn patience<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

fn propose_status(error: ProposeError) -> Status {
    propose_error_detail(&error).to_status(error.to_string())
}

fn snapshot_status(error: SnapshotRequestError) -> Status {
    let text = error.to_string();
    let kind = match error {
        SnapshotRequestError::Failed { reason } => {
            Kind::SnapshotFailed(SnapshotFailed { reason: reason.to_string() })
        }
        SnapshotRequestError::Busy => Kind::Busy(Busy { what: "callers who wait for a snapshot".to_owned() }),
        SnapshotRequestError::Stopped { reason } => Kind::Stopped(Stopped { reason: reason.to_string() }),
    };
    ErrorDetail::new(kind).to_status(text)
}

fn read_status(error: ReadError) -> Status {
    read_error_detail(&error).to_status(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience_of(text: &str) -> Option<Duration> {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", text.parse().ok()?);
        patience(&request)
    }

    #[test]
    fn the_callers_patience_is_read_as_grpc_writes_it() {
        assert_eq!(patience_of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(patience_of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(patience_of("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(patience_of("1u"), Some(Duration::from_micros(1)));
        for wrong in ["", "S", "5", "5x", "-5S", "100000000S", "1.5S", "5 S", "µ"] {
            assert_eq!(patience_of(wrong), None, "{wrong:?}");
        }
        assert_eq!(patience(&Request::new(())), None);
    }
}
