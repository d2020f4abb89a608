//! One simulated node: the real replica, log worker and apply worker, on a simulated disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_core::{Instant, LogId, Now, Term};
use d_engine_replica::{
    AfterEntries, ApplyJob, ApplyRun, ApplySteps, ApplyWork, ApplyWorker, Event, Jobs, LoadQueue,
    LogSteps, LogWork, LogWorker, Never, Replica, ReplicaConfig, SnapshotPolicy, SnapshotReceiver,
    SnapshotSender, SnapshotSends, SnapshotTask, Start, StateMachineHandler, StopReason,
};
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::snapshot::{
    FullSpeed, SnapshotInfo, SnapshotOptions, SnapshotReport, SnapshotStore,
};
use d_engine_storage::{
    Alignment, ClusterId, ConfigId, FileStorageEngine, FileStorageOptions, Fs, Identity,
    Incarnation, Membership, OpenRequest, OpenedStorage, RecoveredLog, RecoveryReport,
    StorageEngine,
};

use crate::machines::choice::Machine;
use crate::machines::choking::ChokingMachine;
use crate::monitors::sends::SendMonitor;
use crate::names::{CLUSTER, GROUP, SNAPSHOT_DIR, node_id};
use crate::now_or_never::now_or_never;
use crate::profile::Profile;
use crate::profile::programs::NEWEST;
use crate::time::RIGHT_TIME_MS;
use crate::world::gate::Gate;
use crate::world::intake::Intake;
use crate::world::refused::RefusedStarts;

/// How often a simulated node uses an idle log after a burst of writes; a real one does so more
/// often.
const IDLE_CALLS_MAX: u32 = 1;

/// A node: its disk outlives its processes.
#[derive(Debug)]
pub(crate) struct Node {
    /// The node's id.
    pub(crate) id: u64,
    /// The disk.
    pub(crate) fs: SimFs,
    /// The number of the node's current boot. It rises when a process ends; events of an earlier
    /// boot are dropped.
    pub(crate) boot: u64,
    /// The running process, if there is one.
    pub(crate) running: Option<Running>,
    /// The node is paused until this time.
    pub(crate) paused_until: u64,
    /// No disk operation completes before this time.
    pub(crate) disk_hangs_until: u64,
    /// The state machine does not return before this time.
    pub(crate) apply_hangs_until: u64,
    /// Whether the last process shut down in an orderly way.
    pub(crate) stopped_orderly: bool,
    /// Whether starts are suppressed for now.
    pub(crate) held_back: bool,
    /// Whether its disk is lost, or it never had one: it never starts.
    pub(crate) is_lost: bool,
    /// The incarnation of its data directory.
    pub(crate) incarnation: Incarnation,
    /// The configuration that added it; `None` for the members at the cluster's birth.
    pub(crate) born: Option<ConfigId>,
    /// Whether a disk operation was chosen to fail and has not failed yet.
    pub(crate) disk_fails: bool,
    /// Whether its disk has little or no free space.
    pub(crate) is_full: bool,
    /// The highest command version that its program decodes.
    pub(crate) decodes: u32,
    /// Whether the program is too old for an entry or a snapshot that the node holds, and therefore
    /// stopped or did not start.
    pub(crate) is_too_old: bool,
    /// The starts that were refused since the disk became full.
    pub(crate) refused: RefusedStarts,
    /// The speed of the node's clock in millionths.
    pub(crate) clock_rate: u64,
    /// The wall clock's error in milliseconds.
    pub(crate) wall_offset_ms: u64,
    /// The program number; a command that needs a higher one halts the state machine.
    pub(crate) program: u8,
}

/// A running process.
pub(crate) struct Running {
    /// The replica.
    pub(crate) replica: Replica,
    /// Events that wait for the raft thread.
    pub(crate) intake: Intake,
    /// Whether the replica was stopped from outside: a worker has failed, or the process is
    /// shutting down.
    pub(crate) told_to_stop: bool,
    /// Set once a shutdown was requested: the time until which it waits for pending calls.
    pub(crate) stops_by: Option<u64>,
    /// Jobs that the replica has requested; the buffer is reused between turns.
    pub(crate) jobs: Jobs,
    /// The log worker.
    pub(crate) log: LogWorker,
    /// Orders the log worker's work.
    pub(crate) log_steps: LogSteps,
    /// Work waiting for the log worker.
    pub(crate) log_work: LogWork,
    /// Reads waiting for the log worker.
    pub(crate) loads: LoadQueue,
    /// Whether the log worker is busy.
    pub(crate) log_busy: bool,
    /// The apply worker.
    pub(crate) apply: ApplyWorker,
    /// Orders the apply worker's work.
    pub(crate) steps: ApplySteps,
    /// Work waiting for the apply worker.
    pub(crate) apply_work: ApplyWork,
    /// Whether the apply worker is busy.
    pub(crate) apply_busy: bool,
    /// Events that the log worker reports when its current work is done.
    pub(crate) reports: Vec<Event>,
    /// The state machine.
    pub(crate) machine: Machine,
    /// The node's snapshots.
    pub(crate) snapshots: SnapshotStore,
    /// A frozen snapshot that waits for the snapshot worker.
    pub(crate) building: Option<SnapshotTask>,
    /// The result of the build, for the apply worker.
    pub(crate) built: Option<Result<SnapshotInfo, StopReason>>,
    /// Snapshots being sent, by connection.
    pub(crate) sends: BTreeMap<u64, SnapshotSender>,
    /// Snapshots being received, by connection.
    pub(crate) receives: BTreeMap<u64, SnapshotReceiver>,
    /// What the monitor knows of the snapshots that are being sent.
    pub(crate) sends_watched: SendMonitor,
    /// The attempts to send snapshots.
    pub(crate) attempts: SnapshotSends,
    /// The last included log id of a snapshot that is received and not yet installed.
    pub(crate) installing: Option<LogId>,
    /// The term in which its sender was leader.
    pub(crate) sent_in: Term,
    /// The incarnation of the data directory.
    pub(crate) incarnation: Incarnation,
    /// The earliest deadline for which an event is scheduled.
    pub(crate) deadline: Option<Instant>,
    /// What it has published for reads.
    pub(crate) gate: Gate,
    /// The membership in force before the present event.
    pub(crate) known: Membership,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("core", &self.replica.status().core).finish_non_exhaustive()
    }
}

/// The apply worker's report of a job.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applied {
    pub(crate) through: d_engine_replica::LogId,
    pub(crate) next_expiry_ms: Option<u64>,
    pub(crate) command_version: u32,
}

/// What a start found on the disk.
#[derive(Debug)]
pub(crate) struct Started {
    /// The recovered log, for the monitors.
    pub(crate) recovered: RecoveredLog,
    /// The log after the state machine was restored; it differs from `recovered` if the start
    /// finished an interrupted install.
    pub(crate) restored: RecoveredLog,
    /// What the snapshot store found.
    pub(crate) snapshots: SnapshotReport,
    /// What recovery did.
    pub(crate) report: RecoveryReport,
}

impl Node {
    /// A node that has never run.
    #[must_use]
    pub(crate) fn new(id: u64, clock_rate: u64) -> Self {
        let fs = SimFs::new();
        Self {
            id,
            fs,
            boot: 0,
            running: None,
            paused_until: 0,
            disk_hangs_until: 0,
            apply_hangs_until: 0,
            stopped_orderly: false,
            held_back: false,
            is_lost: false,
            incarnation: incarnation_of(id),
            born: None,
            disk_fails: false,
            is_full: false,
            decodes: NEWEST,
            is_too_old: false,
            refused: RefusedStarts::default(),
            clock_rate,
            wall_offset_ms: RIGHT_TIME_MS,
            program: 0,
        }
    }

    /// Returns what this node's monotonic clock shows at true time `now`.
    #[must_use]
    pub(crate) fn clock(&self, now: u64) -> Instant {
        let scaled = u128::from(now) * u128::from(self.clock_rate) / 1_000_000;
        Instant::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }

    /// Returns the true time at which this node's clock shows `at`, rounded up.
    #[must_use]
    pub(crate) fn true_time(&self, at: Instant) -> u64 {
        let rate = u128::from(self.clock_rate.max(1));
        let scaled = (u128::from(at.as_nanos()) * 1_000_000).div_ceil(rate) + 1;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    }

    /// Returns what this node's clocks show at true time `now`.
    #[must_use]
    pub(crate) fn time(&self, now: u64) -> Now {
        let wall_ms = 1_700_000_000_000 + self.wall_offset_ms + now / 1_000_000;
        Now { monotonic: self.clock(now), wall_ms }
    }

    /// Starts the process on the present content of the disk.
    ///
    /// # Errors
    /// Returns the reason why the node does not start. Expected only after an injected disk
    /// failure, on a full disk, or for a program that is too old.
    pub(crate) fn start(
        &mut self,
        seed: u64,
        now: u64,
        profile: &Profile,
    ) -> Result<Started, String> {
        let mut opened = self.open_log(&self.fs, profile)?;
        let found = opened.recovered.clone();
        let machine =
            Machine::new(Arc::new(self.fs.clone()), profile.snapshots.machine_of(self.id));
        let choking = Arc::new(ChokingMachine::new(
            machine.shared(),
            self.program,
            self.command_version_max(profile),
        ));
        let (snapshots, snapshot_report) = self.open_snapshots(&opened.identity, profile)?;
        let policy = snapshot_policy(profile);
        let from = Start {
            identity: &opened.identity,
            log: opened.log.as_mut(),
            recovered: &mut opened.recovered,
            snapshots: &snapshots,
        };
        let (handler, start_position) =
            now_or_never(StateMachineHandler::open(choking, policy, from))
                .inspect_err(|reason| self.is_too_old = reason.needs_newer_program())
                .map_err(|reason| reason.to_string())?;
        let replica = Replica::new(
            replica_config(profile),
            &opened.identity,
            &opened.recovered,
            &start_position,
            seed,
            self.clock(now),
        )
        .map_err(|error| error.to_string())?;
        let reader = opened.log.reader();
        let log = LogWorker::new(opened.log, GROUP).with_min_free_bytes(profile.min_free_bytes);
        let apply = ApplyWorker::new(handler, reader, GROUP)
            .with_snapshots(snapshots.clone(), node_id(self.id))
            .with_records(opened.meta);
        let incarnation = opened.identity.incarnation;
        self.running = Some(Running::new(replica, log, apply, machine, snapshots, incarnation));
        Ok(Started {
            recovered: found,
            restored: opened.recovered,
            snapshots: snapshot_report,
            report: opened.report,
        })
    }

    fn open_log(&self, fs: &SimFs, profile: &Profile) -> Result<OpenedStorage, String> {
        let fs: Arc<dyn Fs> = Arc::new(fs.clone());
        let engine = FileStorageEngine::new("/data", storage_options(profile), Arc::clone(&fs));
        let request = OpenRequest {
            cluster: Some(ClusterId(CLUSTER)),
            node: node_id(self.id),
            group: GROUP,
            initial: self.initial_members(profile),
            fresh_cluster: ClusterId(CLUSTER),
            fresh_incarnation: self.incarnation,
        };
        // Damage in the log is skipped if a snapshot holds what it may have destroyed.
        let mut covered = |identity: &Identity| {
            let options = self.snapshot_options(identity, profile);
            let dir = Path::new(SNAPSHOT_DIR);
            let (store, _) = SnapshotStore::open(Arc::clone(&fs), dir, options).ok()?;
            let (whole, _) = store.find_whole(&mut FullSpeed).ok()?;
            whole.map(|info| info.last_included())
        };
        engine.open_behind(&request, &mut covered).map_err(|error| error.to_string())
    }

    /// What this node would recover from a copy of its disk.
    ///
    /// # Errors
    /// Why it would not start.
    pub(crate) fn recovered_in(
        &self,
        copy: &SimFs,
        profile: &Profile,
    ) -> Result<RecoveredLog, String> {
        self.open_log(copy, profile).map(|opened| opened.recovered)
    }

    /// The members at the cluster's birth; nobody at a node that joins later.
    fn initial_members(&self, profile: &Profile) -> Membership {
        match self.born {
            None => profile.founded(),
            Some(born) => Membership::before_joining(born),
        }
    }

    /// The highest command version that this node's program decodes.
    fn command_version_max(&self, profile: &Profile) -> u32 {
        if profile.programs.are_mixed() { self.decodes } else { 0 }
    }

    fn open_snapshots(
        &self,
        identity: &Identity,
        profile: &Profile,
    ) -> Result<(SnapshotStore, SnapshotReport), String> {
        let options = self.snapshot_options(identity, profile);
        SnapshotStore::open(Arc::new(self.fs.clone()), Path::new(SNAPSHOT_DIR), options)
            .map_err(|error| error.to_string())
    }

    fn snapshot_options(&self, identity: &Identity, profile: &Profile) -> SnapshotOptions {
        SnapshotOptions {
            chunk_bytes: profile.snapshots.chunk_bytes,
            sync_bytes: profile.snapshots.sync_bytes,
            retained: profile.snapshots.retained,
            reserve_bytes: 0,
            command_version_max: self.command_version_max(profile),
            ..SnapshotOptions::new(identity.cluster, GROUP)
        }
    }

    /// Whether a write of a snapshot or of a state machine's own file may fail because of an
    /// injected fault.
    pub(crate) const fn may_refuse_files(&self) -> bool {
        self.disk_fails || self.is_full
    }

    /// Whether a state machine with a file of its own may lack space for it. That stops the node
    /// with an error.
    pub(crate) fn machine_lacks_room(&self) -> bool {
        self.is_full && self.running.as_ref().is_some_and(|it| it.machine.is_durable())
    }

    /// Simulates a power loss: the process ends, and everything that was not synced may be lost.
    pub(crate) fn crash(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        // Halt the disk first, so that nothing that runs on drop can write to it.
        self.fs.halt_at(0);
        self.running = None;
        self.fs.crash(random);
        self.boot += 1;
    }
}

impl Running {
    /// A process that has just started.
    fn new(
        replica: Replica,
        log: LogWorker,
        mut apply: ApplyWorker,
        machine: Machine,
        snapshots: SnapshotStore,
        incarnation: Incarnation,
    ) -> Self {
        Self {
            gate: Gate::new(apply.handler().applied().index.get()),
            known: replica.membership().clone(),
            replica,
            intake: Intake::default(),
            stops_by: None,
            told_to_stop: false,
            jobs: Jobs::default(),
            log,
            log_steps: LogSteps::new(IDLE_CALLS_MAX),
            log_work: LogWork::default(),
            loads: LoadQueue::default(),
            log_busy: false,
            apply,
            steps: ApplySteps::default(),
            apply_work: ApplyWork::default(),
            apply_busy: false,
            reports: Vec::new(),
            machine,
            snapshots,
            building: None,
            built: None,
            sends: BTreeMap::new(),
            receives: BTreeMap::new(),
            sends_watched: SendMonitor::default(),
            attempts: SnapshotSends::default(),
            installing: None,
            sent_in: Term::ZERO,
            incarnation,
            deadline: None,
        }
    }

    /// Runs one apply job to its end, or as far as there is space.
    ///
    /// # Errors
    /// Returns the reason why the apply worker cannot continue.
    pub(crate) fn run_apply(&mut self, job: ApplyJob) -> Result<ApplyRun, StopReason> {
        let event = now_or_never(self.apply.run_or_wait(job));
        self.gate.applied = self.apply.handler().applied().index.get();
        self.gate.is_halted = self.apply.stop().is_some();
        event
    }
}

/// The incarnation of a data directory that was there at the cluster's birth.
fn incarnation_of(node: u64) -> Incarnation {
    let mut bytes = [0; 16];
    bytes[0] = u8::try_from(node).unwrap_or(0);
    Incarnation(bytes)
}

fn replica_config(profile: &Profile) -> ReplicaConfig {
    let mut config =
        ReplicaConfig { cache_bytes_max: profile.cache_bytes, ..ReplicaConfig::default() };
    config.core.append_bytes_max = profile.append_bytes;
    config.core.clock_drift_percent_max = profile.clock_drift_percent_max;
    profile.limits.set(&mut config);
    config.min_free_bytes = profile.min_free_bytes;
    config.tail_entries = profile.snapshots.tail_entries;
    config.held_bytes = profile.snapshots.held_bytes;
    config.snapshot_reserve_bytes = 0;
    config.purge_timeout = Duration::from_millis(profile.snapshots.purge_timeout_ms);
    config
}

fn snapshot_policy(profile: &Profile) -> Arc<dyn SnapshotPolicy> {
    match profile.snapshots.after_entries {
        0 => Arc::new(Never),
        entries => Arc::new(AfterEntries(entries)),
    }
}

fn storage_options(profile: &Profile) -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: if profile.snapshots.small_segments {
            8 << 10
        } else {
            profile.segment_bytes
        },
        alignment: if profile.sector_aligned { Alignment::Sector } else { Alignment::Page },
        grow_bytes: 4096,
        prepare_bytes: 8192,
        spare_segments: 2,
        reserve_bytes: 16 << 10,
    }
}
