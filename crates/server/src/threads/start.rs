//! Assembles the threads of one node on its recovered state: log, load, apply, snapshot, scrub and
//! raft, and what they share.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use d_engine_core::GroupId;
use d_engine_replica::{
    ApplyWorker, LogWorker, Replica, SPACE_RETRY_INTERVAL, StateMachine, StateMachineHandler,
};
use d_engine_storage::snapshot::SnapshotStore;
use d_engine_storage::{Identity, LogStore, MetaStore};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::StartError;
use crate::config::Snapshots;
use crate::members::view;
use crate::node::clock::Clock;
use crate::node::shutdown::Shutdown;
use crate::snapshots::{Exchange, ExchangeSettings};
use crate::threads::apply::ApplyThread;
use crate::threads::inbox::{Inbox, InboxLimits};
use crate::threads::raft::{RaftThread, TransportStart, known_members, raft_thread};
use crate::threads::read_gate::ReadGate;
use crate::threads::scrub::ScrubThread;
use crate::threads::shared::{Shared, Timeouts};
use crate::threads::snapshot::SnapshotThread;
use crate::threads::work_queue::WorkQueue;
use crate::threads::workers::{LogCounters, load_thread, log_thread};
use crate::transport::peer_refusals::PeerRefusals;

/// The components of the threads.
pub(crate) struct ThreadComponents {
    pub(crate) group: GroupId,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
    pub(crate) replica: Replica,
    /// The index of the last entry that the state machine has applied.
    pub(crate) applied: u64,
    pub(crate) meta: Box<dyn MetaStore>,
    pub(crate) log: Box<dyn LogStore>,
    pub(crate) handler: StateMachineHandler,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) settings: Snapshots,
    pub(crate) exchange: ExchangeSettings,
    pub(crate) intake: InboxLimits,
    pub(crate) timeout: Timeouts,
    pub(crate) runtime: Handle,
}

/// Receives whether the transport listens, or why it does not.
pub(crate) type HasStarted = oneshot::Receiver<Result<(), StartError>>;

/// The threads of a node, not started yet.
pub(crate) struct NodeThreads {
    /// What the threads share with the node's handle.
    pub(crate) shared: Arc<Shared>,
    raft: RaftThread,
    applies: ApplyThread,
    builds: SnapshotThread,
    scrubs: Option<ScrubThread>,
    log: LogWorker,
}

impl NodeThreads {
    pub(crate) fn new(components: ThreadComponents) -> Self {
        let shared = share(&components);
        let ThreadComponents { group, identity, clock, replica, snapshots, settings, .. } =
            components;
        let (log, apply, snap) =
            (Arc::new(WorkQueue::new()), shared.apply.clone(), Arc::new(WorkQueue::new()));
        let worker = ApplyWorker::new(components.handler, components.log.reader(), group)
            .with_snapshots(snapshots.clone(), identity.node)
            .with_records(components.meta)
            .pausing(|| std::thread::sleep(SPACE_RETRY_INTERVAL));
        let builds = SnapshotThread::new(&shared, components.machine, &settings, snap.clone());
        let applies = ApplyThread {
            worker,
            queue: apply.clone(),
            snapshots: snap.clone(),
            progress: shared.building.clone(),
            pause_max: Duration::from_millis(settings.pause_max_ms),
            log_counters: shared.log_counters.clone(),
            inbox: shared.inbox.clone(),
            gate: shared.gate.clone(),
            clock,
            runtime: components.runtime,
        };
        let scrubs = ScrubThread::over(&shared, components.log.as_ref(), &settings, &snap);
        let log_worker =
            LogWorker::new(components.log, group).with_min_free_bytes(replica.min_free_bytes());
        let (node, load) = (identity.node, Arc::new(WorkQueue::new()));
        let threads = shared.clone();
        let raft = RaftThread {
            replica,
            group,
            node,
            clock,
            shared: threads,
            log,
            load,
            apply,
            snapshots: snap,
            ends_at: None,
        };
        Self { shared, raft, applies, builds, scrubs, log: log_worker }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`StartError::Thread`] if a thread cannot be started. The others then end and release the
    /// directory.
    pub(crate) fn start(
        self,
        transport: TransportStart,
    ) -> Result<(Shutdown, HasStarted), StartError> {
        let Self { shared, raft, applies, builds, scrubs, log } = self;
        // A span of level ERROR, so that no level filter disables it.
        let _inside = tracing::error_span!("engine", node = %raft.node).entered();
        let name = |what: &str| format!("{what}-{}", raft.node);
        let names = ["log", "load", "apply", "snap", "scrub", "raft", "end"].map(name);
        let [log_name, load_name, apply_name, snap_name, scrub_name, raft_name, end_name] = names;
        let (logs, loads) = (raft.log.clone(), raft.load.clone());
        let (applying, snaps) = (raft.apply.clone(), raft.snapshots.clone());
        let (loader, scrub_end) = (log.loader(), shared.scrub_end.clone());
        let (started, has_started) = oneshot::channel();
        let ending = Shutdown::start(end_name, log.directory_locks(), shared.exchange.clone());
        let (ending, joins) = ending.map_err(StartError::Thread)?;
        let spawn = || -> Result<(), StartError> {
            let (inbox, counters) = (shared.inbox.clone(), shared.log_counters.clone());
            let log = log_thread(log_name, log, logs.clone(), inbox.clone(), counters)?;
            let load = load_thread(load_name, loader, loads.clone(), inbox);
            let scrubs = scrubs.map(|scrubs| scrubs.start(scrub_name));
            let mut others = vec![load, applies.start(apply_name), builds.start(snap_name)];
            others.extend(scrubs);
            let raft = match others.iter().all(Result::is_ok) {
                true => Some(raft_thread(raft_name, raft, transport, started)),
                false => None,
            };
            // The raft thread is joined first: the others wait for it.
            let threads = raft.into_iter().chain([Ok(log)]).chain(others);
            threads.map(|thread| thread.map(|thread| joins.add(thread))).fold(Ok(()), Result::and)
        };
        spawn().inspect_err(|_| {
            logs.close();
            loads.close();
            applying.close();
            snaps.close();
            scrub_end.stop();
        })?;
        Ok((ending, has_started))
    }
}

/// Creates what the threads share with the node's handle.
fn share(components: &ThreadComponents) -> Arc<Shared> {
    let gate = Arc::new(ReadGate::new(components.clock));
    gate.set_applied(components.applied);
    let inbox = Arc::new(Inbox::new(components.intake, gate.clone()));
    let exchange = Exchange::new(
        components.snapshots.clone(),
        components.machine.clone(),
        inbox.clone(),
        gate.clone(),
        components.clock,
        components.exchange,
    );
    Arc::new(Shared {
        group: components.group,
        inbox,
        gate,
        snapshots: components.snapshots.clone(),
        timeout: components.timeout,
        max_log_bytes: components.settings.max_log_bytes,
        building: Arc::default(),
        scrub_end: Arc::default(),
        exchange: Arc::new(exchange),
        apply: Arc::new(WorkQueue::new()),
        log_counters: Arc::new(LogCounters::default()),
        late_replies: components.handler.late_replies(),
        refusals: PeerRefusals::default(),
        identity: components.identity.clone(),
        state_machine: components.machine.name().to_owned(),
        provisional: std::sync::Mutex::default(),
        admission: RwLock::new(components.replica.admission()),
        members_view: watch::Sender::new(Arc::new(view::members(
            &components.identity,
            &known_members(&components.replica),
            None,
        ))),
        members: watch::Sender::new(Arc::new(known_members(&components.replica))),
        ready: watch::Sender::new(false),
        leader: watch::Sender::new((0, None)),
        stands: watch::Sender::new(None),
        stopped: watch::Sender::new(None),
    })
}
