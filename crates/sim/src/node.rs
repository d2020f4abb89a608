//! One simulated node: the real replica, log worker and apply worker, on a simulated disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use d_engine_core::{Duration, GroupId, Instant, LogId, NodeId, Term};
use d_engine_replica::{
    AfterEntries, ApplyJob, ApplyWorker, Event, Jobs, LoadJob, LogWorker, Never, PersistJob, Replica,
    ReplicaConfig, SnapshotPolicy, SnapshotReceiver, SnapshotSender, SnapshotTask, Start,
    StateMachineHandler, StopReason,
};
use d_engine_storage::fs_sim::SimFs;
use d_engine_storage::snapshot::{SnapshotInfo, SnapshotOptions, SnapshotReport, SnapshotStore};
use d_engine_storage::{
    Alignment, ClusterId, FileStorageEngine, FileStorageOptions, Fs, Identity, Incarnation, Member,
    MemberRole, Membership, OpenRequest, RecoveredLog, RecoveryReport, StorageEngine,
};

use crate::choking_machine::ChokingMachine;
use crate::intake::Intake;
use crate::machine::Machine;
use crate::profile::Profile;
use crate::program::NEWEST;
use crate::world_snapshots::Sent;

/// The offset of a wall clock that is right: wrong ones may be behind it or before it.
pub(crate) const RIGHT_TIME_MS: u64 = 86_400_000;
/// Where a node keeps its snapshots.
pub(crate) const SNAPSHOT_DIR: &str = "/data/snapshots";
/// The cluster of all simulated nodes.
pub(crate) const CLUSTER: [u8; 16] = [7; 16];
/// The group of all simulated nodes.
pub(crate) const GROUP: GroupId = GroupId::FIRST;

/// A node: its disk lasts, its life does not.
#[derive(Debug)]
pub(crate) struct Node {
    /// The node's id.
    pub(crate) id: u64,
    /// The disk.
    pub(crate) fs: SimFs,
    /// Rises with every crash: events of an earlier life mean nothing.
    pub(crate) life: u64,
    /// The running process, if it runs.
    pub(crate) running: Option<Running>,
    /// Until when nothing happens on this node.
    pub(crate) paused_until: u64,
    /// Until when nothing on its disk comes to an end.
    pub(crate) disk_hangs_until: u64,
    /// Until when its state machine does not return.
    pub(crate) apply_hangs_until: u64,
    /// The last process ended in an orderly way.
    pub(crate) stopped_orderly: bool,
    /// Not started for now, whatever happens.
    pub(crate) held_back: bool,
    /// Whether an operation on the disk was chosen to fail and has not failed yet.
    pub(crate) disk_fails: bool,
    /// Whether its disk has hardly any room left.
    pub(crate) is_full: bool,
    /// Its program decodes commands up to this version.
    pub(crate) decodes: u32,
    /// That program is too old for what the log or a snapshot holds: it has stopped, or did not start.
    pub(crate) is_too_old: bool,
    /// Bytes on the disk after the last start, if that was refused for want of room.
    pub(crate) refused_with: Option<u64>,
    /// The speed of the node's clock in millionths.
    pub(crate) clock_rate: u64,
    /// The wall clock's error in milliseconds.
    pub(crate) wall_offset_ms: u64,
    /// Commands that need a higher one stop its state machine.
    pub(crate) program: u8,
}

/// A running process.
pub(crate) struct Running {
    /// The replica.
    pub(crate) replica: Replica,
    /// What has come in and waits for the raft thread.
    pub(crate) intake: Intake,
    /// Whether a worker has failed, or the process ends: the replica stops.
    pub(crate) told_to_stop: bool,
    /// Since it was asked to shut down: until when it waits for those who are on their way.
    pub(crate) stops_by: Option<u64>,
    /// What the replica has asked for and not been given yet.
    pub(crate) jobs: Jobs,
    /// The log worker and what waits for it.
    pub(crate) log: LogWorker,
    /// Writes waiting for the log worker.
    pub(crate) writes: Vec<PersistJob>,
    /// Reads waiting for the log worker.
    pub(crate) loads: Vec<LoadJob>,
    /// Whether the log worker is at work.
    pub(crate) log_busy: bool,
    /// The apply worker.
    pub(crate) apply: ApplyWorker,
    /// Jobs waiting for the apply worker.
    pub(crate) applies: VecDeque<ApplyJob>,
    /// Whether the apply worker is at work.
    pub(crate) apply_busy: bool,
    /// How far the log is to be purged.
    pub(crate) purge: Option<LogId>,
    /// What the log worker reports when it is done.
    pub(crate) reports: Vec<Event>,
    /// The state machine.
    pub(crate) machine: Machine,
    /// The node's snapshots.
    pub(crate) snapshots: SnapshotStore,
    /// A snapshot that waits for the snapshot worker.
    pub(crate) building: Option<SnapshotTask>,
    /// What has become of it, for the apply worker.
    pub(crate) built: Option<Result<SnapshotInfo, StopReason>>,
    /// Snapshots on their way out, by connection.
    pub(crate) sends: BTreeMap<u64, SnapshotSender>,
    /// Snapshots on their way in, by connection.
    pub(crate) receives: BTreeMap<u64, SnapshotReceiver>,
    /// Followers that a snapshot was ordered for.
    pub(crate) sending: BTreeMap<NodeId, Sent>,
    /// Those of them whose last attempt has ended early.
    pub(crate) cut: BTreeSet<NodeId>,
    /// The archive that was chosen for a follower last.
    pub(crate) chosen: BTreeMap<NodeId, LogId>,
    /// The snapshot that was received and not yet installed.
    pub(crate) installing: Option<LogId>,
    /// The term that its sender leads, or led.
    pub(crate) sent_in: Term,
    /// This life's data directory.
    pub(crate) incarnation: Incarnation,
    /// The deadline that an event is scheduled for.
    pub(crate) deadline: Option<Instant>,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("core", &self.replica.status().core).finish_non_exhaustive()
    }
}

/// What the apply worker has reported of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub(crate) through: d_engine_replica::LogId,
    pub(crate) next_expiry_ms: Option<u64>,
    pub(crate) command_version: u32,
}

/// What a start has found.
#[derive(Debug)]
pub(crate) struct Started {
    /// The recovered log, for the monitors.
    pub(crate) recovered: RecoveredLog,
    /// The same after the state machine was brought there: begun anew, if an install was cut short.
    pub(crate) restored: RecoveredLog,
    /// What the store of snapshots has found.
    pub(crate) snapshots: SnapshotReport,
    /// What recovery did.
    pub(crate) report: RecoveryReport,
}

/// The id as the engine's type.
///
/// # Panics
/// For the reserved zero, which the simulator never uses.
#[must_use]
pub(crate) fn node_id(id: u64) -> NodeId {
    NodeId::new(id).unwrap_or_else(|| unreachable!("simulated nodes are numbered from 1"))
}

impl Node {
    /// A node that has never run.
    #[must_use]
    pub(crate) fn new(id: u64, clock_rate: u64) -> Self {
        let fs = SimFs::new();
        Self {
            id,
            fs,
            life: 0,
            running: None,
            paused_until: 0,
            disk_hangs_until: 0,
            apply_hangs_until: 0,
            stopped_orderly: false,
            held_back: false,
            disk_fails: false,
            is_full: false,
            decodes: NEWEST,
            is_too_old: false,
            refused_with: None,
            clock_rate,
            wall_offset_ms: RIGHT_TIME_MS,
            program: 0,
        }
    }

    /// What this node's monotonic clock shows at true time `now`.
    #[must_use]
    pub(crate) fn clock(&self, now: u64) -> Instant {
        let scaled = u128::from(now) * u128::from(self.clock_rate) / 1_000_000;
        Instant::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// The true time at which this node's clock shows `at`, or a moment later.
    #[must_use]
    pub(crate) fn true_time(&self, at: Instant) -> u64 {
        let rate = u128::from(self.clock_rate.max(1));
        let scaled = (u128::from(at.as_nanos()) * 1_000_000).div_ceil(rate) + 1;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// What this node's wall clock shows at true time `now`.
    #[must_use]
    pub(crate) fn wall_ms(&self, now: u64) -> u64 {
        1_700_000_000_000 + self.wall_offset_ms + now / 1_000_000
    }

    /// Starts the process on what the disk holds.
    ///
    /// # Errors
    /// Why the node does not start; expected only when the disk was told to fail.
    pub(crate) fn start(&mut self, seed: u64, now: u64, profile: &Profile) -> Result<Started, String> {
        let segment_bytes = if profile.snapshots.small_segments { 8 << 10 } else { profile.segment_bytes };
        let options = FileStorageOptions {
            segment_bytes,
            alignment: if profile.sector_aligned { Alignment::Sector } else { Alignment::Page },
            grow_bytes: 4096,
            prepare_bytes: 8192,
            spare_segments: 2,
            reserve_bytes: 16 << 10,
        };
        let fs: Arc<dyn Fs> = Arc::new(self.fs.clone());
        let engine = FileStorageEngine::new("/data", options, fs);
        let request = OpenRequest {
            cluster: Some(ClusterId(CLUSTER)),
            node: node_id(self.id),
            group: GROUP,
            initial: members(profile.nodes),
            fresh_cluster: ClusterId(CLUSTER),
            fresh_incarnation: self.incarnation(),
        };
        let mut opened = engine.open(&request).map_err(|error| error.to_string())?;
        let found = opened.recovered.clone();
        let machine = Machine::new(Arc::new(self.fs.clone()), profile.snapshots.machine_of(self.id));
        let choking =
            Arc::new(ChokingMachine::new(machine.shared(), self.program, self.command_version_max(profile)));
        let (snapshots, snapshot_report) = self.open_snapshots(&opened.identity, profile)?;
        let policy: Arc<dyn SnapshotPolicy> = match profile.snapshots.after_entries {
            0 => Arc::new(Never),
            entries => Arc::new(AfterEntries(entries)),
        };
        let from = Start {
            identity: &opened.identity,
            log: opened.log.as_mut(),
            recovered: &mut opened.recovered,
            snapshots: &snapshots,
        };
        let (handler, footing) = now_or_never(StateMachineHandler::open(choking, policy, from))
            .inspect_err(|reason| self.is_too_old = reason.needs_newer_program())
            .map_err(|reason| reason.to_string())?;
        let config = replica_config(profile);
        let replica =
            Replica::new(config, &opened.identity, &opened.recovered, &footing, seed, self.clock(now))
                .map_err(|error| error.to_string())?;
        let reader = opened.log.reader();
        self.running = Some(Running {
            replica,
            intake: Intake::default(),
            stops_by: None,
            told_to_stop: false,
            jobs: Jobs::default(),
            log: LogWorker::new(opened.log, GROUP).with_min_free_bytes(profile.min_free_bytes),
            writes: Vec::new(),
            loads: Vec::new(),
            log_busy: false,
            apply: ApplyWorker::new(handler, reader, GROUP)
                .with_snapshots(snapshots.clone(), node_id(self.id))
                .with_records(opened.meta),
            applies: VecDeque::new(),
            apply_busy: false,
            purge: None,
            reports: Vec::new(),
            machine,
            snapshots,
            building: None,
            built: None,
            sends: BTreeMap::new(),
            receives: BTreeMap::new(),
            sending: BTreeMap::new(),
            cut: BTreeSet::new(),
            chosen: BTreeMap::new(),
            installing: None,
            sent_in: Term::ZERO,
            incarnation: opened.identity.incarnation,
            deadline: None,
        });
        Ok(Started {
            recovered: found,
            restored: opened.recovered,
            snapshots: snapshot_report,
            report: opened.report,
        })
    }

    /// What its data directory is called in the cluster.
    fn incarnation(&self) -> Incarnation {
        let mut bytes = [0; 16];
        bytes[0] = u8::try_from(self.id).unwrap_or(0);
        Incarnation(bytes)
    }

    /// Which commands this node's program decodes.
    fn command_version_max(&self, profile: &Profile) -> u32 {
        if profile.programs.are_mixed() { self.decodes } else { 0 }
    }

    fn open_snapshots(
        &self,
        identity: &Identity,
        profile: &Profile,
    ) -> Result<(SnapshotStore, SnapshotReport), String> {
        let options = SnapshotOptions {
            chunk_bytes: profile.snapshots.chunk_bytes,
            sync_bytes: profile.snapshots.sync_bytes,
            retained: profile.snapshots.retained,
            reserve_bytes: 0,
            command_version_max: self.command_version_max(profile),
            ..SnapshotOptions::new(identity.cluster, GROUP)
        };
        SnapshotStore::open(Arc::new(self.fs.clone()), Path::new(SNAPSHOT_DIR), options)
            .map_err(|error| error.to_string())
    }

    /// Whether a snapshot, or a state machine's own file, may fail to be written.
    pub(crate) const fn may_refuse_files(&self) -> bool {
        self.disk_fails || self.is_full
    }

    /// Whether a state machine with a file of its own finds no room for it: that stops the node, with the reason.
    pub(crate) fn machine_lacks_room(&self) -> bool {
        self.is_full && self.running.as_ref().is_some_and(|it| it.machine.is_durable())
    }

    /// The process dies and, with the machine, everything that was not synced.
    pub(crate) fn crash(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        // The disk goes first, so that nothing that runs on drop can still reach it.
        self.fs.halt_at(0);
        self.running = None;
        self.fs.crash(random);
        self.life += 1;
    }
}

impl Running {
    /// Applies one job on the spot.
    ///
    /// # Errors
    /// The state machine cannot go on.
    pub(crate) fn run_apply(&mut self, job: ApplyJob) -> Result<Event, StopReason> {
        now_or_never(self.apply.run(job))
    }
}

fn replica_config(profile: &Profile) -> ReplicaConfig {
    let mut config = ReplicaConfig { cache_bytes_max: profile.cache_bytes, ..ReplicaConfig::default() };
    config.core.append_bytes_max = profile.append_bytes;
    config.core.clock_drift_percent_max = profile.clock_drift_percent_max;
    profile.limits.set(&mut config);
    config.min_free_bytes = profile.min_free_bytes;
    config.tail_entries = profile.snapshots.tail_entries;
    config.held_bytes = profile.snapshots.held_bytes;
    config.snapshot_reserve_bytes = 0;
    config.purge_patience = Duration::from_millis(profile.snapshots.purge_patience_ms);
    config
}

fn members(count: u64) -> Membership {
    let members = (1..=count).map(|node| Member {
        node,
        peer_addr: format!("sim:{node}"),
        client_addr: format!("sim-client:{node}"),
        role: MemberRole::Voter,
        incarnation: None,
    });
    Membership::new(members).unwrap_or_default()
}

/// Polls a future that has nothing to wait for. A state machine that needs a reactor or a timer
/// cannot run in the simulator and is told so by name.
pub(crate) fn now_or_never<T>(future: impl Future<Output = Result<T, StopReason>>) -> Result<T, StopReason> {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(StopReason::new(
            "the state machine waits for something outside itself (a timer, a socket, another task); the simulator \
             has none of these",
        )),
    }
}
