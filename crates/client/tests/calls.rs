//! Deadlines, limits, and operator requests of a client.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use d_engine_api::message::engine_server::{Engine, EngineServer};
use d_engine_api::message::{
    BackupReply, BackupRequest, ChangeMembersReply, ChangeMembersRequest, GetReply, GetRequest,
    MembersReply, MembersRequest, ProposeReply, ProposeRequest, QueryReply, QueryRequest,
    SkipEntryReply, SkipEntryRequest, StatusReply, StatusRequest, TakeSnapshotReply,
    TakeSnapshotRequest, TransferLeadershipReply, TransferLeadershipRequest,
    change_members_reply::Step,
};
use d_engine_client::{Client, ClientError, ClientOptions, ReadConsistency};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::codegen::{BoxStream, tokio_stream};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use support::{Cluster, TIMEOUT, Wire, alone, client, put, wait_until};

/// A stand-in for a node, which reports each request that it receives: the call, its timeout, its
/// consistency.
struct Listening(Mutex<mpsc::UnboundedSender<(&'static str, Option<String>, i32)>>);

impl Listening {
    async fn start() -> (String, mpsc::UnboundedReceiver<(&'static str, Option<String>, i32)>) {
        let (heard, hears) = mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let service = EngineServer::new(Self(Mutex::new(heard)));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (address, hears)
    }

    fn heard<T>(&self, call: &'static str, consistency: i32, request: &Request<T>) {
        let timeout =
            request.metadata().get("grpc-timeout").map(|time| time.to_str().unwrap().to_owned());
        self.0.lock().unwrap().send((call, timeout, consistency)).unwrap();
    }
}

#[tonic::async_trait]
impl Engine for Listening {
    async fn propose(
        &self,
        request: Request<ProposeRequest>,
    ) -> Result<Response<ProposeReply>, Status> {
        self.heard("propose", 0, &request);
        Ok(Response::new(ProposeReply::default()))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetReply>, Status> {
        self.heard("get", request.get_ref().consistency, &request);
        Ok(Response::new(GetReply::default()))
    }

    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryReply>, Status> {
        self.heard("query", request.get_ref().consistency, &request);
        Ok(Response::new(QueryReply::default()))
    }

    async fn status(
        &self,
        _request: Request<StatusRequest>,
    ) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(StatusReply::default()))
    }

    async fn transfer_leadership(
        &self,
        request: Request<TransferLeadershipRequest>,
    ) -> Result<Response<TransferLeadershipReply>, Status> {
        self.heard("transfer", 0, &request);
        Ok(Response::new(TransferLeadershipReply::default()))
    }

    async fn skip_entry(
        &self,
        request: Request<SkipEntryRequest>,
    ) -> Result<Response<SkipEntryReply>, Status> {
        self.heard("skip", 0, &request);
        Ok(Response::new(SkipEntryReply::default()))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotReply>, Status> {
        self.heard("snapshot", 0, &request);
        Ok(Response::new(TakeSnapshotReply::default()))
    }

    type BackupStream = BoxStream<BackupReply>;

    async fn backup(
        &self,
        request: Request<BackupRequest>,
    ) -> Result<Response<Self::BackupStream>, Status> {
        self.heard("backup", 0, &request);
        Ok(Response::new(Box::pin(tokio_stream::empty())))
    }

    async fn members(
        &self,
        request: Request<MembersRequest>,
    ) -> Result<Response<MembersReply>, Status> {
        self.heard("members", 0, &request);
        Ok(Response::new(MembersReply::default()))
    }

    type WatchMembersStream = BoxStream<MembersReply>;

    async fn watch_members(
        &self,
        request: Request<MembersRequest>,
    ) -> Result<Response<Self::WatchMembersStream>, Status> {
        self.heard("watch", 0, &request);
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(MembersReply::default())))))
    }

    type ChangeMembersStream = BoxStream<ChangeMembersReply>;

    async fn change_members(
        &self,
        request: Request<ChangeMembersRequest>,
    ) -> Result<Response<Self::ChangeMembersStream>, Status> {
        self.heard("change", 0, &request);
        let done = ChangeMembersReply { step: Some(Step::Done(MembersReply::default())) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(done)))))
    }
}

/// Reads a timeout as gRPC writes it.
fn time(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "n" => Duration::from_nanos(number),
        "u" => Duration::from_micros(number),
        "m" => Duration::from_millis(number),
        "S" => Duration::from_secs(number),
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_carries_the_time_that_is_left_and_the_consistency() {
    let (address, mut hears) = Listening::start().await;
    let all =
        Client::new([&address], ClientOptions::default().timeout(Duration::from_secs(50))).unwrap();
    let hurried = all.with_timeout(Duration::from_secs(20));
    for (client, most) in [(&all, 50), (&hurried, 20)] {
        client.propose("c").await.unwrap();
        client.propose_idempotent("c").await.unwrap();
        client.get("k", ReadConsistency::Linearizable).await.unwrap();
        client.get("k", ReadConsistency::Eventual).await.unwrap();
        client.query("q", ReadConsistency::Lease).await.unwrap();
        client.transfer_leadership(None).await.unwrap();
        client.skip_entry(3, 131).await.unwrap();
        client.take_snapshot(&address).await.unwrap();
        let expected = [
            ("propose", 0),
            ("propose", 0),
            ("get", 1),
            ("get", 3),
            ("query", 2),
            ("transfer", 0),
            ("skip", 0),
            ("snapshot", 0),
        ];
        for (call, consistency) in expected {
            let (heard, timeout, of) = hears.recv().await.unwrap();
            assert_eq!((heard, of), (call, consistency));
            let timeout = time(&timeout.unwrap());
            assert!(
                timeout <= Duration::from_secs(most) && timeout > Duration::from_secs(most - 10)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_call_may_have_a_deadline_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let options = ClientOptions::default().timeout(TIMEOUT).ping(TIMEOUT, TIMEOUT);
    let client = Client::new([&wire.address], options).unwrap();
    client.propose(put("k", "1")).await.unwrap();
    wire.mute();
    let began = Instant::now();
    let outcome =
        client.with_timeout(Duration::from_millis(200)).get("k", ReadConsistency::Eventual).await;
    assert!(matches!(outcome, Err(ClientError::DeadlineElapsed { .. })), "{outcome:?}");
    assert!(began.elapsed() < TIMEOUT / 3, "{:?}", began.elapsed());
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_more_than_may_be_in_flight_is_busy_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let options = ClientOptions::default().timeout(TIMEOUT).max_in_flight(1);
    let client = Client::new([&wire.address], options).unwrap();
    client.get("k", ReadConsistency::Eventual).await.unwrap();
    wire.mute();
    let first = tokio::spawn({
        let client = client.clone();
        async move { client.get("k", ReadConsistency::Eventual).await }
    });
    wait_until(TIMEOUT, async || (wire.lost() > 0).then_some(())).await;
    let began = Instant::now();
    let refused = client.get("k", ReadConsistency::Eventual).await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::Busy { endpoint, .. } if endpoint == "this client"),
        "{refused}"
    );
    assert!(began.elapsed() < TIMEOUT / 3);
    // The slot is free again once the first call has its response.
    wire.cut();
    first.await.unwrap().unwrap();
    client.get("k", ReadConsistency::Eventual).await.unwrap();
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_longer_than_allowed_is_not_sent() {
    let (address, mut hears) = Listening::start().await;
    let client = Client::new([&address], ClientOptions::default().max_command_bytes(100)).unwrap();
    let too_large = ClientError::TooLarge { size: 101, limit: Some(100) };
    assert_eq!(client.propose(vec![0; 101]).await.unwrap_err(), too_large);
    assert_eq!(client.propose_idempotent(vec![0; 101]).await.unwrap_err(), too_large);
    assert_eq!(client.query(vec![0; 101], ReadConsistency::Eventual).await.unwrap_err(), too_large);
    assert!(too_large.to_string().contains("101 bytes, more than the limit of 100"), "{too_large}");
    client.propose(vec![0; 100]).await.unwrap();
    // The first request that arrives is the one that fits.
    assert_eq!(hears.recv().await.unwrap().0, "propose");
    assert!(hears.try_recv().is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_longer_than_allowed_is_told_and_a_command_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    client(std::slice::from_ref(&address)).propose(put("k", &"x".repeat(1000))).await.unwrap();
    let client = Client::new([&address], ClientOptions::default().max_reply_bytes(500)).unwrap();
    let error = client.get("k", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(matches!(error, ClientError::Invalid { .. }), "{error}");
    let returning = d_engine_client::PutOptions::default().previous();
    // A short command, and one so long that it could have been refused.
    for value in ["y".repeat(501), "z".repeat(100_000)] {
        let command = d_engine_client::KvCommand::put_with("k", value.clone(), returning).encode();
        let began = Instant::now();
        let error = client.propose_idempotent(command).await.unwrap_err();
        assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
        assert!(began.elapsed() < TIMEOUT / 3, "it was resent repeatedly");
        assert_eq!(engine.state_machine().get(b"k").unwrap().unwrap(), value);
    }
    engine.stop().await;
}

/// The first attempt may have taken effect, whatever later attempts return.
#[tokio::test(flavor = "multi_thread")]
async fn an_idempotent_command_that_was_once_in_doubt_stays_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let wire = Wire::to(&address).await;
    let (through, direct) = (client(std::slice::from_ref(&wire.address)), client(&[address]));
    let through = through.with_timeout(Duration::from_secs(3));
    through.get("k", ReadConsistency::Linearizable).await.unwrap();
    wire.mute();
    let call = tokio::spawn(async move { through.propose_idempotent(put("k", "v")).await });
    wait_until(TIMEOUT, async || direct.get("k", ReadConsistency::Linearizable).await.unwrap())
        .await;
    engine.stop().await;
    wire.cut();
    let outcome = call.await.unwrap();
    assert!(matches!(outcome, Err(ClientError::OutcomeUnknown { .. })), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_goes_where_it_is_sent_and_the_client_follows() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(dir.path()).await;
    let leader = cluster.leader().await;
    let target = (leader + 1) % 3;
    // The request finds the leader from any node.
    let client = client(&[cluster.addresses[target].clone()]);
    let to = target as u64 + 1;
    assert_eq!(client.transfer_leadership(Some(to)).await.unwrap(), to);
    assert_eq!(client.leader(), None, "the former leader is still asked first");
    client.propose(put("k", "v")).await.unwrap();
    assert_eq!(client.leader(), Some(cluster.addresses[target].clone()));
    // Without a named target.
    let next = client.transfer_leadership(None).await.unwrap();
    assert_ne!(next, to);
    let error = client.transfer_leadership(Some(9)).await.unwrap_err();
    assert!(matches!(error, ClientError::Invalid { .. }), "{error}");
    cluster.stop_all().await;
}

/// The node's state machine checks a command before it is logged: bytes that are no command of it
/// have no effect on any node.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_state_machine_takes_for_no_command_is_refused_over_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, address) = alone(dir.path(), |_| ()).await;
    let client = client(std::slice::from_ref(&address));
    client.propose(put("k", "v")).await.unwrap();
    let last = || async { engine.replica_status().await.unwrap().core.log.last };
    let before = last().await;
    let refused = client.propose(vec![0xFF; 24]).await.unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused { reason, .. } if reason.contains("not a key-value message")),
        "{refused}"
    );
    assert!(refused.to_string().contains("right cluster"), "{refused}");
    assert_eq!(last().await, before);
    engine.stop().await;
}
