//! From a configuration to a running node.

use std::path::PathBuf;
use std::sync::Arc;

use d_engine_core::{CoreConfig, Duration, GroupId, NodeId};
use d_engine_kv::KvStateMachine;
use d_engine_replica::{
    Footing, Replica, ReplicaConfig, SendLimits, SnapshotPolicy, Start, StateMachine, StateMachineHandler,
    StopReason,
};
use d_engine_storage::snapshot::{FullSpeed, SnapshotOptions, SnapshotStore};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Fs, Identity, Incarnation, LogStore, Membership,
    MetaStore, OpenRequest, OpenedStorage, RealFs, RecoveredLog, StorageEngine,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::absolute;
use crate::embedded::{EmbeddedEngine, Parts};
use crate::inbox::InboxLimits;
use crate::node_threads::{Materials, NodeThreads};
use crate::raft_thread::{Patience, TransportStart};
use crate::transfers::TransferSettings;
use crate::transport::{TransportIdentity, TransportSettings};
use crate::{Config, ConfigError, StartError, api, descriptors, entropy};

/// A state machine behind an `Arc`, of a type of its own or as `Arc<dyn StateMachine>`.
pub trait IntoStateMachine {
    /// The machine as the engine keeps it.
    fn into_state_machine(self) -> Arc<dyn StateMachine>;
}

impl<M: StateMachine> IntoStateMachine for Arc<M> {
    fn into_state_machine(self) -> Arc<dyn StateMachine> {
        self
    }
}

impl IntoStateMachine for Arc<dyn StateMachine> {
    fn into_state_machine(self) -> Self {
        self
    }
}

/// Puts a node together. Without [`NodeBuilder::storage_engine`] and [`NodeBuilder::state_machine`] it
/// takes the file-based log in `config.data_dir` and the key-value state machine.
///
/// ```no_run
/// # use std::sync::Arc;
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use d_engine_server::{Config, NodeBuilder};
/// let (shutdown_tx, shutdown_rx) = tokio::sync::watch::channel(());
/// let config = Config { data_dir: "/var/lib/app".into(), ..Config::default() };
/// let node = NodeBuilder::new(config, shutdown_rx).build()?;
/// node.run().await?;
/// # drop(shutdown_tx);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct NodeBuilder {
    config: Config,
    shutdown: watch::Receiver<()>,
    machine: Option<Arc<dyn StateMachine>>,
    storage: Option<Arc<dyn StorageEngine>>,
    policy: Option<Arc<dyn SnapshotPolicy>>,
    fs: Arc<dyn Fs>,
}

impl NodeBuilder {
    /// A node with this configuration. It shuts down when `shutdown_rx` sees a change or its sender is
    /// dropped.
    pub fn new(config: Config, shutdown_rx: watch::Receiver<()>) -> Self {
        let fs = Arc::new(RealFs::new());
        Self { config, shutdown: shutdown_rx, machine: None, storage: None, policy: None, fs }
    }

    /// The state machine to replicate.
    pub fn state_machine(mut self, machine: impl IntoStateMachine) -> Self {
        self.machine = Some(machine.into_state_machine());
        self
    }

    /// Where the log is kept.
    pub fn storage_engine(mut self, storage: Arc<impl StorageEngine>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// When snapshots are due, in the place of what `config.snapshots` says.
    pub fn snapshot_policy(mut self, policy: Arc<impl SnapshotPolicy>) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Where the snapshots are kept, and the log unless a storage engine is given. Default: the system's file
    /// system.
    pub fn file_system(mut self, fs: Arc<dyn Fs>) -> Self {
        self.fs = fs;
        self
    }

    /// Checks everything that can be checked without touching a file, a thread or a socket.
    ///
    /// # Errors
    /// [`StartError::Config`] names the field that is wrong.
    pub fn build(mut self) -> Result<Node, StartError> {
        self.config.validate()?;
        self.config.data_dir = absolute(&self.config.data_dir);
        let storage = self.storage.unwrap_or_else(|| {
            let options = FileStorageOptions {
                segment_bytes: self.config.limits.segment_bytes as u64,
                ..FileStorageOptions::default()
            };
            Arc::new(FileStorageEngine::new(&self.config.data_dir, options, self.fs.clone()))
        });
        let machine = self.machine.unwrap_or_else(|| Arc::new(KvStateMachine::new()));
        check_name(machine.name())?;
        let policy = self.policy.unwrap_or_else(|| self.config.snapshots.policy());
        Ok(Node { config: self.config, shutdown: self.shutdown, machine, storage, policy, fs: self.fs })
    }
}

/// A longer name fits into no snapshot.
const MACHINE_NAME_BYTES_MAX: usize = 255;

fn check_name(name: &str) -> Result<(), StartError> {
    if name.len() <= MACHINE_NAME_BYTES_MAX {
        return Ok(());
    }
    Err(StartError::Config(ConfigError::Refused {
        file: None,
        field: "StateMachine::name".to_owned(),
        value: format!("{} bytes long", name.len()),
        allowed: format!("at most {MACHINE_NAME_BYTES_MAX} bytes are allowed"),
    }))
}

/// Whether the runtime has what the node's handle needs: tokio says so only by panicking.
fn check_runtime(serves_clients: bool) -> Result<(), StartError> {
    let has_all = std::panic::catch_unwind(|| {
        drop(tokio::time::sleep(std::time::Duration::ZERO));
        if serves_clients {
            drop(tokio::net::TcpSocket::new_v4().and_then(|socket| socket.listen(1)));
        }
    });
    has_all.map_err(|_| StartError::NoRuntime)
}

/// What a node goes on from.
struct Recovered {
    identity: Identity,
    meta: Box<dyn MetaStore>,
    log: Box<dyn LogStore>,
    recovered: RecoveredLog,
    handler: StateMachineHandler,
    footing: Footing,
    snapshots: SnapshotStore,
}

/// Below the data directory.
const SNAPSHOT_DIR: &str = "snapshots";

/// A node that is put together and does nothing yet.
#[must_use = "a node does nothing until it is started"]
pub struct Node {
    config: Config,
    shutdown: watch::Receiver<()>,
    machine: Arc<dyn StateMachine>,
    storage: Arc<dyn StorageEngine>,
    policy: Arc<dyn SnapshotPolicy>,
    fs: Arc<dyn Fs>,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Node {
    /// Locks the data directory, recovers, starts the threads, and listens. Call inside a tokio
    /// runtime: it polls the state machine's futures and runs the client service.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing is left running.
    pub async fn start(self) -> Result<EmbeddedEngine, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        check_runtime(self.config.client_listen_addr().is_some())?;
        descriptors::warn_if_scarce(self.config.node_id, descriptors::limit());
        let group = GroupId::FIRST;
        let opened = self.open_storage(group).await?;
        let OpenedStorage { identity, meta, mut log, mut recovered, report } = opened;
        if report.torn_bytes > 0 {
            tracing::warn!(
                node = self.config.node_id, bytes = report.torn_bytes, at = ?report.torn_at,
                "the end of the log does not verify and was cut off; a crash in the middle of a write leaves such an \
                 end, and then nothing in it was acknowledged. If nothing has crashed here, or the files were copied, \
                 acknowledged entries may have been in it: compare with the other nodes before this one is relied on"
            );
        }
        if let Some(damage) = &report.passed_over {
            tracing::error!(
                node = self.config.node_id, base = %recovered.base, %damage,
                "the log is damaged where a whole snapshot of this node holds what was there: it begins behind that \
                 snapshot now; look at this disk"
            );
        }
        for path in &report.mended {
            tracing::warn!(
                node = self.config.node_id, path = %path.display(),
                "one of two copies was damaged or missing; it was written anew from the other"
            );
        }
        let snapshots = self.open_snapshots(&identity)?;
        let (machine, policy) = (self.machine.clone(), self.policy.clone());
        let (place, inside) = (snapshots.clone(), runtime.clone());
        // Off the runtime: a snapshot may take long to read.
        let opened = tokio::task::spawn_blocking(move || {
            let start = Start {
                identity: &identity,
                log: log.as_mut(),
                recovered: &mut recovered,
                snapshots: &place,
            };
            let opened = inside.block_on(StateMachineHandler::open(machine, policy, start));
            opened.map(|(handler, footing)| Recovered {
                identity,
                meta,
                log,
                recovered,
                handler,
                footing,
                snapshots: place,
            })
        });
        let opened = opened.await.map_err(|error| StartError::Stopped(StopReason::new(error)))?;
        let recovered = opened.map_err(StartError::StateMachine)?;
        let started = self.start_threads(recovered, runtime, group).await;
        let engine = match started {
            Ok(engine) => engine,
            Err(error) => {
                // The machine was started; whatever else failed, it is told that this is the end.
                if let Err(error) = self.machine.stop() {
                    tracing::warn!(%error, "the state machine's stop failed");
                }
                return Err(error);
            }
        };
        engine.stops_on(self.shutdown);
        Ok(engine)
    }

    /// Starts, and returns after the shutdown.
    ///
    /// # Errors
    /// See [`StartError`]; [`StartError::Stopped`] when the node failed while it ran.
    pub async fn run(self) -> Result<(), StartError> {
        let engine = self.start().await?;
        engine.stopped().await
    }

    /// Starts the threads over what was recovered, and returns once the node listens.
    async fn start_threads(
        &self,
        recovered: Recovered,
        runtime: Handle,
        group: GroupId,
    ) -> Result<EmbeddedEngine, StartError> {
        let Recovered { identity, meta, log, recovered, handler, footing, snapshots } = recovered;
        let limits = &self.config.limits;
        let clock = Clock::start();
        let seed = entropy::seed()?;
        let replica =
            Replica::new(self.replica_config(), &identity, &recovered, &footing, seed, clock.now())?
                .with_machine_steps(handler.steps());
        let intake = InboxLimits {
            proposals: limits.max_pending_proposals,
            bytes: limits.max_pending_bytes,
            reads: limits.max_pending_reads,
        };
        let threads = NodeThreads::new(Materials {
            group,
            identity: identity.clone(),
            clock,
            replica,
            applied: footing.applied.get(),
            meta,
            log,
            handler,
            machine: self.machine.clone(),
            snapshots,
            settings: self.config.snapshots.clone(),
            transfers: self.transfer_settings(),
            intake,
            patience: Patience::of(&self.config),
            runtime,
        });
        let client_listener = self.bind_clients().await?;
        let client_addr = client_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let shared = threads.shared.clone();
        let (ending, has_started) = threads.start(self.transport_start(&identity)?)?;
        let machine = self.machine.clone();
        let engine = EmbeddedEngine::new(Parts { identity, machine, shared, ending, client_addr });
        let started = has_started.await.unwrap_or_else(|_| Err(StartError::Stopped(engine.stop_reason())));
        if let Err(error) = started {
            engine.stop().await;
            return Err(error);
        }
        if let Some(listener) = client_listener {
            engine.serves_clients(api::serve(
                self.config.node_id,
                listener,
                engine.weak(),
                limits,
                engine.stop_signal(),
            ));
        }
        Ok(engine)
    }

    /// Opens the node's snapshots: what a crash has left half-done is removed.
    fn open_snapshots(&self, identity: &Identity) -> Result<SnapshotStore, StartError> {
        let options = self.snapshot_options(identity.cluster, identity.group);
        let (store, report) = SnapshotStore::open(self.fs.clone(), &self.snapshot_dir(), options)?;
        for error in &report.unusable {
            tracing::warn!(node = self.config.node_id, %error, "a snapshot cannot be used");
        }
        Ok(store)
    }

    fn snapshot_dir(&self) -> PathBuf {
        self.config.data_dir.join(SNAPSHOT_DIR)
    }

    fn snapshot_options(&self, cluster: ClusterId, group: GroupId) -> SnapshotOptions {
        let settings = &self.config.snapshots;
        SnapshotOptions {
            retained: settings.retained,
            max_bytes: settings.max_bytes,
            reserve_bytes: settings.reserve_bytes,
            machine: self.machine.name().to_owned(),
            user_format: self.machine.snapshot_format(),
            command_version_max: self.machine.command_version_max(),
            compression: settings.compression.into(),
            ..SnapshotOptions::new(cluster, group)
        }
    }

    fn transfer_settings(&self) -> TransferSettings {
        let settings = &self.config.snapshots;
        TransferSettings {
            limits: SendLimits {
                silence: Duration::from_millis(settings.transfer_timeout_ms),
                apply: Duration::from_millis(settings.apply_timeout_ms),
                ..SendLimits::default()
            },
            bytes_per_second: settings.send_bytes_per_second,
            len_max: settings.max_bytes,
        }
    }

    fn transport_start(&self, identity: &Identity) -> Result<TransportStart, StartError> {
        Ok(TransportStart {
            identity: TransportIdentity {
                cluster: identity.cluster,
                group: identity.group,
                node: identity.node,
                incarnation: identity.incarnation,
                start: entropy::seed()?.max(1),
                state_machine: self.machine.name().to_owned(),
            },
            settings: TransportSettings {
                queue_frames: self.config.limits.peer_queue_frames,
                queue_bytes: self.config.limits.peer_queue_bytes,
                entropy: entropy::seed()?,
                ..TransportSettings::default()
            },
            listen: self.listens_for_peers().then(|| self.config.peer_listen_addr().to_owned()),
        })
    }

    fn listens_for_peers(&self) -> bool {
        !self.config.members.is_empty() || self.config.peer_listen.is_some()
    }

    /// Opens the data directory, off the runtime: recovery reads the whole log.
    async fn open_storage(&self, group: GroupId) -> Result<OpenedStorage, StartError> {
        let node = NodeId::new(self.config.node_id).unwrap_or_else(|| unreachable!("validated: not zero"));
        let client_addr = self.config.client_listen_addr().unwrap_or_default();
        // A node that is alone and listens for nobody has no address for others.
        let peer_addr = if self.listens_for_peers() { self.config.peer_listen_addr() } else { "" };
        let initial = self.config.membership(peer_addr, client_addr)?;
        let request = OpenRequest {
            cluster: self.config.cluster(),
            node,
            group,
            initial,
            fresh_cluster: ClusterId(entropy::sixteen_bytes()?),
            fresh_incarnation: Incarnation(entropy::sixteen_bytes()?),
        };
        let (storage, configured) = (self.storage.clone(), request.initial.clone());
        let (fs, dir, options) =
            (self.fs.clone(), self.snapshot_dir(), self.snapshot_options(request.fresh_cluster, group));
        // Asked only if the log is damaged; off the runtime, because a snapshot may take long to read.
        let mut covered = move |identity: &Identity| {
            let options = SnapshotOptions { cluster: identity.cluster, ..options.clone() };
            let (store, _) = SnapshotStore::open(fs.clone(), &dir, options).ok()?;
            let (whole, _) = store.find_whole(&mut FullSpeed).ok()?;
            whole.map(|info| info.label())
        };
        let opened = tokio::task::spawn_blocking(move || storage.open_behind(&request, &mut covered)).await;
        let mut opened =
            opened.map_err(|error| StartError::Stopped(d_engine_replica::StopReason::new(error)))??;
        self.take_addresses(&mut opened.identity, configured)?;
        Ok(opened)
    }

    /// Who the members are was settled when the directory was made; where they are found is what the configuration says
    /// today.
    fn take_addresses(&self, identity: &mut Identity, configured: Membership) -> Result<(), StartError> {
        let ids = |membership: &Membership| -> Vec<u64> {
            membership.members().iter().map(|member| member.node).collect()
        };
        let (stored, wanted) = (ids(&identity.initial), ids(&configured));
        // A storage engine of the user's need not keep them.
        if !stored.is_empty() && stored != wanted {
            return Err(StartError::OtherMembers {
                dir: self.config.data_dir.clone(),
                stored,
                configured: wanted,
            });
        }
        identity.initial = configured;
        Ok(())
    }

    async fn bind_clients(&self) -> Result<Option<tokio::net::TcpListener>, StartError> {
        let Some(address) = self.config.client_listen_addr() else { return Ok(None) };
        let bound = tokio::net::TcpListener::bind(address).await;
        bound.map(Some).map_err(|source| StartError::Bind {
            whom: "clients",
            address: address.to_owned(),
            source,
        })
    }

    fn replica_config(&self) -> ReplicaConfig {
        let (config, limits) = (&self.config, &self.config.limits);
        let core = CoreConfig {
            heartbeat_interval: Duration::from_millis(config.heartbeat_interval_ms),
            election_timeout_min: Duration::from_millis(config.election_timeout_min_ms),
            election_timeout_max: Duration::from_millis(config.election_timeout_max_ms),
            append_bytes_max: limits.max_append_bytes as u64,
            inflight_bytes_max: limits.max_inflight_bytes as u64,
            uncommitted_bytes_max: limits.max_uncommitted_bytes as u64,
            waiting_reads_max: limits.max_pending_reads,
            clock_drift_percent_max: config.clock_drift_percent_max,
            max_clock_offset: Duration::from_millis(config.max_clock_offset_ms),
            ..CoreConfig::default()
        };
        ReplicaConfig {
            core,
            command_bytes_max: limits.max_command_bytes,
            proposals_max: limits.max_pending_proposals,
            reads_max: limits.max_pending_reads,
            cache_bytes_max: limits.log_cache_bytes,
            apply_entries_max: limits.max_apply_entries as u64,
            tail_entries: config.snapshots.tail_entries,
            tail_bytes: config.snapshots.tail_bytes,
            min_free_bytes: limits.min_free_bytes,
            purge_patience: Duration::from_millis(config.snapshots.purge_waits_ms),
            held_bytes: config.snapshots.max_log_bytes / 2,
            snapshot_reserve_bytes: config.snapshots.reserve_bytes,
            accept_clock: config.accept_clock,
            ..ReplicaConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn a_state_machine_whose_name_fits_into_no_snapshot_is_refused_before_it_starts() {
        assert!(check_name(&"n".repeat(255)).is_ok());
        let told = check_name(&"n".repeat(256)).unwrap_err().to_string();
        assert!(told.contains("256 bytes") && told.contains("255"), "{told}");
    }
}
