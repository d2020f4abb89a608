//! The client service over gRPC. It contains no logic: every call is a method of
//! [`EmbeddedEngine`], and every refusal carries a typed detail.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_api::ReadConsistency;
use d_engine_api::message::{
    BackupRequest, ChangeMembersRequest, ErrorDetail, GetReply, GetRequest, Invalid, MembersReply,
    MembersRequest, ProposeReply, ProposeRequest, QueryReply, QueryRequest, SkipEntryReply,
    SkipEntryRequest, StatusReply, StatusRequest, Stopped, TakeSnapshotReply, TakeSnapshotRequest,
    TransferLeadershipReply, TransferLeadershipRequest,
    engine_server::{Engine, EngineServer},
    error_detail::Kind,
};
use d_engine_replica::{ProposeError, ReadError, StopReason};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::SnapshotRequestError;
use crate::clients::backup::{BackupStream, Backups};
use crate::clients::bytes::BoundedBytes;
use crate::clients::connections;
use crate::clients::errors::{
    propose_error_detail, read_error_detail, skip_error_detail, snapshot_error_detail,
    transfer_error_detail,
};
use crate::clients::members;
use crate::config::Limits;
use crate::node::descriptors;
use crate::node::embedded::{EmbeddedEngine, WeakEngine};

/// The most that a message may exceed its command, in bytes.
const MESSAGE_OVERHEAD: usize = 64 << 10;

/// Serves clients on `listener` until `stopped` has the reason why the node stopped. Calls in
/// progress are answered first.
pub(crate) fn serve(
    node: u64,
    listener: TcpListener,
    engine: WeakEngine,
    limits: &Limits,
    mut stopped: watch::Receiver<Option<StopReason>>,
) -> JoinHandle<()> {
    let service = EngineServer::new(Api { engine, backups: Arc::default() })
        .max_decoding_message_size(limits.max_command_bytes.saturating_add(MESSAGE_OVERHEAD));
    let service = BoundedBytes::new(service, limits.max_client_bytes);
    let (to, connections) = mpsc::channel(1);
    let limit = descriptors::limit();
    descriptors::warn_if_short(node, limits.max_client_connections, limit);
    let places = descriptors::client_places(limits.max_client_connections, limit);
    tokio::spawn(connections::accept(node, listener, places, to));
    let calls = u32::try_from(limits.max_calls_per_connection).unwrap_or(u32::MAX);
    tokio::spawn(async move {
        let served = tonic::transport::Server::builder()
            .max_concurrent_streams(calls)
            .http2_keepalive_interval(Some(Duration::from_secs(20)))
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
                // A closed channel also means that the node has stopped.
                stopped.wait_for(Option::is_some).await.ok();
            })
            .await;
        if let Err(error) = served {
            tracing::error!(node, %error, "the client service has failed; restart the node");
        }
    })
}

struct Api {
    engine: WeakEngine,
    backups: Arc<Backups>,
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
    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        let engine = self.engine()?;
        let deadline = engine.deadline_after(timeout(&request));
        // Copied, because the received bytes are a slice of a larger buffer, which the entry would
        // keep in memory for as long as it is in the log's cache.
        let command = Bytes::copy_from_slice(&request.into_inner().command);
        let proposed = engine.propose_by(command, deadline);
        let reply = proposed.await.map_err(propose_status)?;
        Ok(Response::new(ProposeReply { reply }))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        let engine = self.engine()?;
        let timeout = timeout(&request);
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let read_index = barrier(&engine, consistency, timeout).await?;
        let value = engine.get_applied(&request.key).await.map_err(read_status)?;
        Ok(Response::new(GetReply {
            found: value.is_some(),
            value: value.unwrap_or_default(),
            read_index,
        }))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        let engine = self.engine()?;
        let timeout = timeout(&request);
        let request = request.into_inner();
        let consistency = consistency(request.consistency)?;
        let read_index = barrier(&engine, consistency, timeout).await?;
        let reply = engine.query_applied(&request.request).await.map_err(read_status)?;
        Ok(Response::new(QueryReply { reply, read_index }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipReply>, Status> {
        let to = Some(request.into_inner().to).filter(|to| *to != 0);
        let moved = self.engine()?.transfer_leadership(to).await;
        let leader =
            moved.map_err(|error| transfer_error_detail(&error).to_status(error.to_string()))?;
        Ok(Response::new(TransferLeadershipReply { leader }))
    }

    async fn skip_entry(
        &self,
        request: Request<SkipEntryRequest>,
    ) -> Result<Response<SkipEntryReply>, Status> {
        let entry = request.into_inner().entry.unwrap_or_default();
        let skipped = self.engine()?.skip_entry(entry.term, entry.index).await;
        let decided_at =
            skipped.map_err(|error| skip_error_detail(&error).to_status(error.to_string()))?;
        Ok(Response::new(SkipEntryReply { decided_at }))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.engine()?.status().await.into()))
    }

    async fn members(
        &self,
        _request: Request<MembersRequest>,
    ) -> Result<Response<MembersReply>, Status> {
        Ok(Response::new(self.engine()?.members_with_progress().await.into()))
    }

    type WatchMembersStream = members::MembersStream;

    async fn watch_members(
        &self,
        _request: Request<MembersRequest>,
    ) -> Result<Response<Self::WatchMembersStream>, Status> {
        Ok(Response::new(members::watch(&self.engine()?)))
    }

    type ChangeMembersStream = members::ChangeStream;

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<Self::ChangeMembersStream>, Status> {
        let timeout = timeout(&request);
        members::change(self.engine()?, request.into_inner(), timeout).map(Response::new)
    }

    type BackupStream = BackupStream;

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        let engine = self.engine()?;
        self.backups.begin(&engine, request.into_inner()).await.map(Response::new)
    }

    async fn take_snapshot(
        &self,
        _request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotReply>, Status> {
        let taken = self.engine()?.take_snapshot().await.map_err(snapshot_status)?;
        let last_included = taken.last_included();
        Ok(Response::new(TakeSnapshotReply {
            index: last_included.index.get(),
            term: last_included.term.get(),
            bytes: taken.len,
            sha256: Bytes::copy_from_slice(&taken.sha256),
        }))
    }
}

/// Confirms a read and returns its read index. Waits as long as the caller does.
async fn barrier(
    engine: &EmbeddedEngine,
    consistency: ReadConsistency,
    timeout: Option<Duration>,
) -> Result<u64, Status> {
    let confirmed = match timeout {
        Some(timeout) => engine.read_barrier_within(consistency, timeout).await,
        None => engine.read_barrier(consistency).await,
    };
    confirmed.map_err(read_status)
}

#[allow(clippy::result_large_err, reason = "tonic's handlers return its Status by value")]
fn consistency(number: i32) -> Result<ReadConsistency, Status> {
    ReadConsistency::try_from(number).map_err(|unknown| {
        let reason = unknown.to_string();
        ErrorDetail::new(Kind::Invalid(Invalid { reason: reason.clone() })).to_status(reason)
    })
}

/// Returns the caller's timeout from `grpc-timeout`: up to eight digits and a unit. `None` without
/// one, or if it cannot be parsed.
fn timeout<T>(request: &Request<T>) -> Option<Duration> {
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
    snapshot_error_detail(&error).to_status(error.to_string())
}

fn read_status(error: ReadError) -> Status {
    read_error_detail(&error).to_status(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<Duration> {
        let mut request = Request::new(());
        request.metadata_mut().insert("grpc-timeout", text.parse().ok()?);
        timeout(&request)
    }

    #[test]
    fn the_callers_timeout_is_read_as_grpc_writes_it() {
        assert_eq!(parsed("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parsed("5S"), Some(Duration::from_secs(5)));
        assert_eq!(parsed("99999999H"), Some(Duration::from_secs(99_999_999 * 3_600)));
        assert_eq!(parsed("1u"), Some(Duration::from_micros(1)));
        for wrong in ["", "S", "5", "5x", "-5S", "100000000S", "1.5S", "5 S", "µ"] {
            assert_eq!(parsed(wrong), None, "{wrong:?}");
        }
        assert_eq!(timeout(&Request::new(())), None);
    }
}
