//! The raft thread: drains the inbox, drives the replica, and hands out its jobs. The transport's
//! tasks run on the same thread, so that a message between socket and core does not have to wake
//! another one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use d_engine_core::{GroupId, NodeId, Term};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Admission, ApplyWork, Event, Jobs, LoadQueue, LogWork, PeerMessage, Replica, StopReason,
    TransferError,
};
use d_engine_storage::{ConfigId, Incarnation};
use d_engine_wire::{Answer, Question};

use crate::StartError;
use crate::members::{questions, seeds, view};
use crate::node::clock::Clock;
use crate::threads::building::SnapshotWork;
use crate::threads::inbox::Incoming;
use crate::threads::shared::{KnownMembers, Shared};
use crate::threads::work_queue::WorkQueue;
use crate::threads::workers::{panic_text, start_thread};
use crate::transport::{
    FramedTransport, PeerEvents, PeerRefusal, ReceivePermit, Sent, SnapshotConnection,
};

/// How long a shutdown waits for commands and reads in flight.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a peer that is no member may be silent before its connection is closed.
const PROVISIONAL_TIME: Duration = Duration::from_secs(10);
/// The most such peers.
const PROVISIONAL_MAX: usize = 16;
/// How long a removed node still answers its clients, so that they learn where the members are.
const FAREWELL_TIME: Duration = Duration::from_secs(10);

/// What the raft thread owns.
pub(crate) struct RaftThread {
    pub(crate) replica: Replica,
    pub(crate) group: GroupId,
    pub(crate) node: NodeId,
    pub(crate) clock: Clock,
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<WorkQueue<LogWork>>,
    pub(crate) load: Arc<WorkQueue<LoadQueue>>,
    pub(crate) apply: Arc<WorkQueue<ApplyWork>>,
    pub(crate) snapshots: Arc<WorkQueue<SnapshotWork>>,
    /// When this node stops, because it was removed.
    pub(crate) ends_at: Option<d_engine_core::Instant>,
}

/// What the transport needs to start on the raft thread's runtime.
pub(crate) struct TransportStart {
    pub(crate) identity: crate::transport::TransportIdentity,
    pub(crate) settings: crate::transport::TransportSettings,
    /// Addresses of nodes of the cluster, for when no other one is right.
    pub(crate) seeds: Vec<String>,
    /// Where peers connect; `None` for a single node, which accepts no peers.
    pub(crate) listener: Option<std::net::TcpListener>,
}

/// Starts the raft thread. It reports on `started` once the transport listens, or why it does not.
pub(crate) fn raft_thread(
    name: String,
    raft: RaftThread,
    transport: TransportStart,
    started: tokio::sync::oneshot::Sender<Result<(), StartError>>,
) -> Result<JoinHandle<()>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    let run = move || {
        let shared = raft.shared.clone();
        let (log, load) = (raft.log.clone(), raft.load.clone());
        let (apply, snapshots) = (raft.apply.clone(), raft.snapshots.clone());
        let body = || {
            let reason = runtime.block_on(raft.run(transport, started));
            // Do not let a pending DNS lookup delay the shutdown.
            runtime.shutdown_background();
            reason
        };
        let reason = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = panic_text(panic.as_ref());
            StopReason::new(format_args!(
                "the raft thread panicked: {text}; start the node again, and report the panic"
            ))
        });
        shared.inbox.close(&reason);
        // The workers finish their queues, flush, and end.
        shared.building.stop();
        shared.scrub_end.stop();
        shared.exchange.stop();
        log.close();
        load.close();
        apply.close();
        snapshots.close();
        // For whatever reason it stopped, this node is no longer leader.
        shared.leader.send_modify(|(_, leader)| *leader = None);
        shared.stopped.send_replace(Some(reason));
    };
    start_thread(name, run).map_err(StartError::Thread)
}

impl PeerEvents for Shared {
    fn admission(&self) -> Admission {
        self.admission.read().unpoisoned().clone()
    }

    fn provisional(&self, node: NodeId, peer_addr: String) -> bool {
        let mut places = self.provisional.lock().unpoisoned();
        let has_place = places.len() < PROVISIONAL_MAX || places.contains_key(&node);
        if peer_addr.is_empty() || !has_place {
            return false;
        }
        places.insert(node, self.gate.after(PROVISIONAL_TIME));
        drop(places);
        self.inbox.provisional(node, peer_addr);
        true
    }

    fn removed(&self, by: ConfigId) {
        self.inbox.report(Event::RemovedBy(by));
    }

    fn superseded(&self) {
        self.inbox.report(Event::Superseded);
    }

    fn ask(
        self: Arc<Self>,
        question: Question,
        knows_cluster: bool,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(questions::answer(self, question, knows_cluster))
    }

    fn message(&self, from: NodeId, group: GroupId, message: PeerMessage, room: ReceivePermit) {
        if group == self.group {
            self.inbox.message(from, message, room);
        } else {
            tracing::debug!(%from, %group, "dropped a message for a group that this node lacks");
        }
    }

    fn snapshot(&self, from: NodeId, line: SnapshotConnection) {
        self.exchange.receive(from, line);
    }

    fn refused(&self, refusal: PeerRefusal) {
        self.refusals.note(refusal);
    }

    fn advertised(&self, node: NodeId, peer_addr: String, client_addr: String) {
        self.inbox.report(Event::Advertised { node, peer_addr, client_addr });
    }

    fn up(&self, node: NodeId, incarnation: Incarnation, address: &str) {
        self.refusals.welcomed_by(node);
        self.inbox.report(Event::Reached { node, peer_addr: address.to_owned() });
        self.inbox.report(Event::PeerUp { node, incarnation });
    }

    fn down(&self, node: NodeId) {
        self.inbox.report(Event::PeerDown { node });
    }
}

/// Sends what is queued for the peers, and closes the connections.
async fn stop_transport(transport: Option<FramedTransport>) {
    if let Some(transport) = transport {
        transport.stop().await;
    }
}

impl RaftThread {
    /// Runs until shutdown or failure. Returns the stop reason.
    async fn run(
        mut self,
        transport: TransportStart,
        started: tokio::sync::oneshot::Sender<Result<(), StartError>>,
    ) -> StopReason {
        let mut transport = match self.start_transport(transport) {
            Ok(transport) => {
                // If the receiver is gone, a shutdown is under way.
                started.send(Ok(())).ok();
                transport
            }
            Err(error) => {
                let reason = StopReason::new(&error);
                started.send(Err(error)).ok();
                return reason;
            }
        };
        let mut jobs = Jobs::default();
        self.handle(Event::Deadline, &mut jobs);
        self.carry_out(&mut jobs, transport.as_mut());
        let mut shutdown_by = None;
        let mut handed_over_in = None;
        loop {
            // The transport's tasks share this thread; let them run however much arrives here.
            tokio::task::yield_now().await;
            self.wait(shutdown_by).await;
            let incoming = self.shared.inbox.take();
            let shuts_down = incoming.shutdown && shutdown_by.is_none();
            if shuts_down {
                self.shared.inbox.close(&StopReason::new(crate::SHUT_DOWN));
                shutdown_by = Some(self.clock.now().plus(SHUTDOWN_TIMEOUT));
            }
            for (node, address) in &incoming.provisional {
                self.meet(*node, address, transport.as_mut());
            }
            if let Some(failure) = self.take_in(incoming, &mut jobs) {
                self.carry_out(&mut jobs, transport.as_mut());
                return failure;
            }
            if shutdown_by.is_some() {
                self.hand_over_once(&mut handed_over_in, &mut jobs);
            }
            if self.replica.next_deadline().is_some_and(|due| due <= self.clock.now()) {
                self.handle(Event::Deadline, &mut jobs);
            }
            self.carry_out(&mut jobs, transport.as_mut());
            self.forget_provisional(transport.as_mut());
            if let Some(reason) = self.farewell() {
                self.handle(Event::Failed(reason), &mut jobs);
            }
            if let Some(reason) = self.replica.stopped().cloned() {
                // The replica has stopped by itself; send its last messages to the peers first.
                stop_transport(transport).await;
                tracing::error!(node = %self.node, %reason, "the node stops");
                return reason;
            }
            if let Some(by) = shutdown_by
                && (self.has_handed_over() || self.clock.now() >= by)
            {
                stop_transport(transport).await;
                let reason = StopReason::new(crate::SHUT_DOWN);
                self.handle(Event::Failed(reason.clone()), &mut jobs);
                return reason;
            }
        }
    }

    /// Hands the leadership over, once in each term: a node may win an election while it waits for
    /// its callers, and then names a successor too.
    fn hand_over_once(&mut self, handed_over_in: &mut Option<Term>, jobs: &mut Jobs) {
        let term = self.replica.core().term();
        if self.leads() && *handed_over_in != Some(term) {
            *handed_over_in = Some(term);
            self.hand_over(jobs);
        }
    }

    fn leads(&self) -> bool {
        self.replica.core().role() == d_engine_core::RoleKind::Leader
    }

    /// Names a successor, so that the cluster does not have to wait for an election timeout when a
    /// leader shuts down.
    fn hand_over(&mut self, jobs: &mut Jobs) {
        // Refused if there is no leadership to transfer or no target; the shutdown then continues
        // without it.
        self.handle(Event::TransferLeadership { to: None, responder: Box::new(|_| {}) }, jobs);
    }

    /// Whether no caller waits for a response, no leadership transfer is in progress, and no
    /// message, such as the vote for the successor, waits for the disk.
    fn has_handed_over(&self) -> bool {
        let core = self.replica.core();
        !self.replica.has_callers()
            && !core.is_transferring_leadership()
            && core.held_messages() == 0
    }

    fn start_transport(
        &self,
        start: TransportStart,
    ) -> Result<Option<FramedTransport>, StartError> {
        let Some(listener) = start.listener else { return Ok(None) };
        if !start.seeds.is_empty() {
            // Ends with the runtime of this thread.
            tokio::spawn(seeds::find_members(self.shared.clone(), start.seeds));
        }
        let events: Arc<dyn PeerEvents> = self.shared.clone();
        let started = FramedTransport::start(start.identity, start.settings, listener, events);
        let mut transport = started.map_err(StartError::Thread)?;
        self.connect(&mut transport);
        Ok(Some(transport))
    }

    /// Dials every node that this one must reach, and closes the connections of all others.
    fn connect(&self, transport: &mut FramedTransport) {
        let peers: BTreeMap<NodeId, _> = self.replica.peers().collect();
        for (node, addresses) in &peers {
            let both: Vec<&str> = [addresses.known].into_iter().chain(addresses.moved_to).collect();
            transport.connect(*node, &both);
        }
        let provisional = self.shared.provisional.lock().unpoisoned().clone();
        transport.keep_only(|node| peers.contains_key(&node) || provisional.contains_key(&node));
    }

    /// Dials a peer that is no member here and knows a later configuration.
    fn meet(&self, node: NodeId, address: &str, transport: Option<&mut FramedTransport>) {
        let is_peer = self.replica.peers().any(|(peer, _)| peer == node);
        if let (Some(transport), false) = (transport, is_peer) {
            transport.connect(node, &[address]);
        }
    }

    /// Forgets provisional peers that were not heard for long.
    fn forget_provisional(&self, transport: Option<&mut FramedTransport>) {
        let now = self.clock.now();
        let is_fewer = {
            let mut places = self.shared.provisional.lock().unpoisoned();
            let before = places.len();
            places.retain(|_, until| *until > now);
            places.len() < before
        };
        if let (Some(transport), true) = (transport, is_fewer) {
            self.connect(transport);
        }
    }

    /// Waits for input or the next deadline.
    async fn wait(&self, shutdown_by: Option<d_engine_core::Instant>) {
        let places = self.shared.provisional.lock().unpoisoned().clone();
        let ends = places.into_values().chain(self.ends_at);
        let due = self.replica.next_deadline().into_iter().chain(shutdown_by).chain(ends).min();
        let Some(due) = due else { return self.shared.inbox.filled().await };
        let due = tokio::time::Instant::from_std(self.clock.instant_at(due));
        tokio::select! {
            biased;
            () = self.shared.inbox.filled() => {}
            () = tokio::time::sleep_until(due) => {}
        }
    }

    /// Passes all input to the replica. Returns the reason if the node must stop.
    fn take_in(&mut self, incoming: Incoming, jobs: &mut Jobs) -> Option<StopReason> {
        let mut failure = None;
        for event in incoming.reports {
            if let Event::Failed(reason) = &event {
                failure.get_or_insert_with(|| reason.clone());
            }
            // After a failure the replica itself refuses callers, each with the right error.
            self.handle(event, jobs);
        }
        for (from, message, room) in incoming.messages {
            if let Some(until) = self.shared.provisional.lock().unpoisoned().get_mut(&from) {
                *until = self.clock.now().plus(PROVISIONAL_TIME);
            }
            self.handle(Event::Peer { from, message }, jobs);
            drop(room);
        }
        if !incoming.proposals.is_empty() {
            self.handle(Event::Propose(incoming.proposals), jobs);
        }
        if !incoming.reads.is_empty() {
            self.handle(Event::Read(incoming.reads), jobs);
        }
        for (to, responder) in incoming.transfers {
            match self.silent_target(to) {
                Some(silent) => responder(Err(silent)),
                None => self.handle(Event::TransferLeadership { to, responder }, jobs),
            }
        }
        for request in incoming.changes {
            self.handle(Event::ChangeMembers(Box::new(request)), jobs);
        }
        for (target, responder) in incoming.skips {
            self.handle(Event::SkipEntry { target, responder }, jobs);
        }
        for answer in incoming.status {
            // The caller may have dropped its future.
            answer.send(self.replica.status()).ok();
        }
        failure
    }

    /// Returns an error if the leader has not heard lately from `to`, or from any voter if `to` is
    /// `None`: waiting for such a target would be in vain.
    fn silent_target(&self, to: Option<NodeId>) -> Option<TransferError> {
        let (now, core) = (self.clock.now(), self.replica.core().status());
        let may_lead =
            |node: NodeId| to.is_none_or(|to| to == node) && core.configuration.is_voter(node);
        let targets = core.followers.iter().filter(|follower| may_lead(follower.node));
        let nearest = targets.max_by_key(|follower| follower.last_contact)?;
        let silent_ms = now.since(nearest.last_contact).as_millis();
        let is_silent = silent_ms > self.shared.timeout.silence.as_millis();
        let silent_ms = u64::try_from(silent_ms).unwrap_or(u64::MAX);
        is_silent.then(|| TransferError::TargetSilent { target: nearest.node.get(), silent_ms })
    }

    /// Whether this node must not found a cluster: its log is empty, it knows of no committed
    /// entry, and a peer says that it is not a member. Together with other such nodes it would
    /// found a second cluster under the same name. Until the peers accept it, it neither requests
    /// nor grants votes; to the others this is as if its messages were lost. Nor does a node that
    /// was removed, even if its directory is empty again.
    fn founds_nothing(&self) -> bool {
        let log = self.replica.core().log();
        let is_empty = log.committed.get() == 0 && log.last.index.get() == 0;
        self.replica.removed().is_some() || (is_empty && self.shared.refusals.is_no_member())
    }

    /// Publishes the memberships before any message goes out.
    fn publish_members(&self) {
        let known = known_members(&self.replica);
        let is_news = **self.shared.members.borrow() != known;
        if is_news {
            *self.shared.admission.write().unpoisoned() = self.replica.admission();
            self.shared.members.send_replace(Arc::new(known));
        }
        let (known, leader) = (self.shared.members.borrow(), self.replica.core().leader());
        let view = view::members(&self.shared.identity, &known, leader);
        if **self.shared.members_view.borrow() != view {
            self.shared.members_view.send_replace(Arc::new(view));
        }
    }

    /// The stop reason of a node that was removed, once its clients had time to learn of it.
    fn farewell(&mut self) -> Option<StopReason> {
        let by = self.replica.removed()?;
        let now = self.clock.now();
        let ends_at = *self.ends_at.get_or_insert(now.plus(FAREWELL_TIME));
        (now >= ends_at).then(|| StopReason::removed(self.node, by))
    }

    fn handle(&mut self, event: Event, jobs: &mut Jobs) {
        self.replica.handle(self.clock.time(), event, jobs);
        let core = self.replica.core();
        // Before the jobs are handed out: no message or reply may run ahead of the gate.
        self.shared.gate.publish(core.log().committed, core.lease_until());
    }

    /// Hands the replica's jobs to the threads that execute them.
    fn carry_out(&mut self, jobs: &mut Jobs, mut transport: Option<&mut FramedTransport>) {
        // Messages first: followers write while this node does.
        while let (Some(transport), false) = (&mut transport, jobs.send.is_empty()) {
            let mut not_sent = Vec::new();
            let founds_nothing = self.founds_nothing();
            for outgoing in jobs.send.drain(..) {
                if founds_nothing && is_about_votes(&outgoing.message) {
                    continue;
                }
                match transport.send(outgoing.to, self.group, &outgoing.message) {
                    Sent::Queued => {}
                    Sent::Lost => not_sent.extend(outgoing.not_sent()),
                }
            }
            // These reports correct the leader's record of what it has sent; they cause no resend.
            for event in not_sent {
                self.handle(event, jobs);
            }
        }
        for node in jobs.dropped.drain(..) {
            self.shared.exchange.end_sends_to(node);
        }
        for order in jobs.snapshots.drain(..) {
            let dialer =
                transport.as_ref().and_then(|transport| transport.snapshot_dialer(order.to));
            self.shared.exchange.send(order, dialer);
        }
        if !jobs.load.is_empty() {
            self.load.put(|work| jobs.load.drain(..).for_each(|job| work.put(job)));
        }
        if !jobs.persist.is_empty() || jobs.purge.is_some() {
            self.log.put(|work| work.add(&mut jobs.persist, jobs.purge.take()));
        }
        if !jobs.apply.is_empty() || jobs.hard_state_saved || jobs.snapshot_due {
            self.apply.put(|work| {
                work.jobs.extend(jobs.apply.drain(..));
                work.hard_state_saved |= jobs.hard_state_saved;
                work.snapshot_due |= jobs.snapshot_due;
            });
        }
        if jobs.status_changed {
            self.publish_members();
            if let Some(transport) = transport {
                self.connect(transport);
            }
            let stands = self.replica.apply_stop().map(|stop| stop.reason.clone());
            self.shared
                .stands
                .send_if_modified(|told| std::mem::replace(told, stands.clone()) != stands);
            let core = self.replica.core();
            let seen = (core.term().get(), core.leader());
            if self.shared.leader.send_replace(seen) != seen {
                tracing::info!(
                    node = %self.node, role = ?core.role(), term = %core.term(), leader = ?core.leader(),
                    "term or leader changed"
                );
            }
        }
        if !*self.shared.ready.borrow() && self.replica.is_ready() {
            self.shared.ready.send_replace(true);
        }
        jobs.clear();
    }
}

/// The memberships that a replica knows.
pub(crate) fn known_members(replica: &Replica) -> KnownMembers {
    KnownMembers {
        in_force: replica.membership().clone(),
        committed: replica.committed_membership().clone(),
        removed: replica.removed(),
    }
}

fn is_about_votes(message: &PeerMessage) -> bool {
    matches!(
        message,
        PeerMessage::PreVote { .. }
            | PeerMessage::PreVoteReply { .. }
            | PeerMessage::RequestVote { .. }
            | PeerMessage::VoteReply { .. }
    )
}
