//! The threads of one node, put together over what was recovered: log, apply, snap and raft, and what they share.

use std::sync::{Arc, RwLock};
use std::time::Duration;

use d_engine_core::GroupId;
use d_engine_replica::{ApplyWorker, LogWorker, Replica, StateMachine, StateMachineHandler};
use d_engine_storage::snapshot::SnapshotStore;
use d_engine_storage::{Identity, LogStore, MetaStore};
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

use crate::StartError;
use crate::apply_thread::ApplyThread;
use crate::clock::Clock;
use crate::config::Snapshots;
use crate::ending::Ending;
use crate::inbox::{Inbox, InboxLimits};
use crate::peer_refusals::PeerRefusals;
use crate::raft_thread::{Patience, RaftThread, Shared, TransportStart, raft_thread};
use crate::read_gate::ReadGate;
use crate::scrub_thread::ScrubThread;
use crate::snapshot_thread::{BuildProgress, SCRUB_EVERY, SnapshotThread};
use crate::transfers::{TransferSettings, Transfers};
use crate::worker_threads::{LogCounters, ROOM_LOOKED_FOR_EVERY, WorkQueue, load_thread, log_thread};

/// What the threads are made of.
pub(crate) struct Materials {
    pub(crate) group: GroupId,
    pub(crate) identity: Identity,
    pub(crate) clock: Clock,
    pub(crate) replica: Replica,
    /// The last entry that the state machine holds.
    pub(crate) applied: u64,
    pub(crate) meta: Box<dyn MetaStore>,
    pub(crate) log: Box<dyn LogStore>,
    pub(crate) handler: StateMachineHandler,
    pub(crate) machine: Arc<dyn StateMachine>,
    pub(crate) snapshots: SnapshotStore,
    pub(crate) settings: Snapshots,
    pub(crate) transfers: TransferSettings,
    pub(crate) intake: InboxLimits,
    pub(crate) patience: Patience,
    pub(crate) runtime: Handle,
}

/// Told once the transport listens, or why it does not.
pub(crate) type HasStarted = oneshot::Receiver<Result<(), StartError>>;

/// Threads that have not started yet.
pub(crate) struct NodeThreads {
    /// What the node's handle shares with them.
    pub(crate) shared: Arc<Shared>,
    raft: RaftThread,
    applies: ApplyThread,
    builds: SnapshotThread,
    scrubs: Option<ScrubThread>,
    log: LogWorker,
}

impl NodeThreads {
    pub(crate) fn new(materials: Materials) -> Self {
        let Materials { group, identity, clock, replica, snapshots, settings, .. } = materials;
        let gate = Arc::new(ReadGate::new(clock));
        gate.applied(materials.applied);
        let inbox = Arc::new(Inbox::new(materials.intake, gate.clone()));
        let building = Arc::new(BuildProgress::default());
        let (log, apply, snap) =
            (Arc::new(WorkQueue::new()), Arc::new(WorkQueue::new()), Arc::new(WorkQueue::new()));
        let transfers = Arc::new(Transfers::new(
            snapshots.clone(),
            materials.machine.clone(),
            inbox.clone(),
            gate.clone(),
            clock,
            materials.transfers,
        ));
        let shared = Arc::new(Shared {
            group,
            inbox: inbox.clone(),
            gate: gate.clone(),
            snapshots: snapshots.clone(),
            patience: materials.patience,
            max_log_bytes: settings.max_log_bytes,
            building: building.clone(),
            scrub_end: Arc::default(),
            transfers: transfers.clone(),
            apply: apply.clone(),
            log_counters: Arc::new(LogCounters::default()),
            late_replies: materials.handler.late_replies(),
            refusals: PeerRefusals::default(),
            membership: RwLock::new(replica.membership().clone()),
            ready: watch::Sender::new(false),
            leader: watch::Sender::new((0, None)),
            stands: watch::Sender::new(None),
            stopped: watch::Sender::new(None),
        });
        let worker = ApplyWorker::new(materials.handler, materials.log.reader(), group)
            .with_snapshots(snapshots.clone(), identity.node)
            .with_records(materials.meta)
            .pausing(|| std::thread::sleep(ROOM_LOOKED_FOR_EVERY));
        let builds = SnapshotThread {
            store: snapshots.clone(),
            bytes_per_second: settings.build_bytes_per_second,
            machine: materials.machine.clone(),
            queue: snap.clone(),
            apply: apply.clone(),
            inbox: inbox.clone(),
            progress: building.clone(),
            transfers,
            scrubs_every: SCRUB_EVERY,
        };
        let applies = ApplyThread {
            worker,
            queue: apply.clone(),
            snapshots: snap.clone(),
            store: snapshots,
            progress: building,
            pause_max: Duration::from_millis(settings.pause_max_ms),
            log_counters: shared.log_counters.clone(),
            inbox,
            gate,
            clock,
            runtime: materials.runtime,
        };
        let scrubs = ScrubThread::over(&shared, materials.log.as_ref(), &settings, &snap);
        let log_worker = LogWorker::new(materials.log, group).with_min_free_bytes(replica.min_free_bytes());
        let node = identity.node;
        let load = Arc::new(WorkQueue::new());
        let raft = RaftThread {
            replica,
            group,
            node,
            clock,
            shared: shared.clone(),
            log,
            load,
            apply,
            snapshots: snap,
        };
        Self { shared, raft, applies, builds, scrubs, log: log_worker }
    }

    /// Starts them.
    ///
    /// # Errors
    /// A thread cannot be started. Those that were started end, and free the directory.
    pub(crate) fn start(self, transport: TransportStart) -> Result<(Ending, HasStarted), StartError> {
        let Self { shared, raft, applies, builds, scrubs, log } = self;
        // An error's span, so that no filter of lines leaves it out.
        let _inside = tracing::error_span!("engine", node = %raft.node).entered();
        let name = |what: &str| format!("{what}-{}", raft.node);
        let names = ["log", "load", "apply", "snap", "scrub", "raft", "end"].map(name);
        let [log_name, load_name, apply_name, snap_name, scrub_name, raft_name, end_name] = names;
        let (logs, loads) = (raft.log.clone(), raft.load.clone());
        let (applying, snaps) = (raft.apply.clone(), raft.snapshots.clone());
        let (loader, scrub_end) = (log.loader(), shared.scrub_end.clone());
        let (started, has_started) = oneshot::channel();
        let ending = Ending::start(end_name, log.directory_locks(), shared.transfers.clone());
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
            // The raft thread first: the others wait for it.
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
