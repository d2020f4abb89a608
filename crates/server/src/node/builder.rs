//! Builds a node from a configuration and starts it.

mod disk;
mod membership;
mod settings;

use std::sync::Arc;

use d_engine_core::GroupId;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{
    Replica, SnapshotPolicy, Start, StartPosition, StateMachine, StateMachineHandler, StopReason,
};
use d_engine_storage::snapshot::SnapshotStore;
use d_engine_storage::{
    FileStorageEngine, FileStorageOptions, Fs, Identity, LogStore, MetaStore, OpenedStorage,
    RealFs, RecoveredLog, StorageEngine,
};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::clients::service;
use crate::config::absolute;
use crate::node::clock::Clock;
use crate::node::embedded::{EmbeddedEngine, NodeComponents};
use crate::node::{descriptors, entropy};
use crate::threads::inbox::InboxLimits;
use crate::threads::raft::TransportStart;
use crate::threads::shared::Timeouts;
use crate::threads::start::{NodeThreads, ThreadComponents};
use crate::transport::{TransportIdentity, TransportSettings};
use crate::{Config, ConfigError, StartError};

/// A state machine in an `Arc`, of a concrete type or as `Arc<dyn StateMachine>`.
pub trait IntoStateMachine {
    /// Converts the machine into the type that the engine stores.
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

/// Builds a [`Node`]. The defaults are the file-based log in `config.data_dir` and the key-value
/// state machine; [`NodeBuilder::storage_engine`] and [`NodeBuilder::state_machine`] replace them.
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
    /// Creates the builder of a node with this configuration. The node shuts down when
    /// `shutdown_rx` sees a change or its sender is dropped.
    pub fn new(config: Config, shutdown_rx: watch::Receiver<()>) -> Self {
        let fs = Arc::new(RealFs::new());
        Self { config, shutdown: shutdown_rx, machine: None, storage: None, policy: None, fs }
    }

    /// Sets the state machine to replicate.
    pub fn state_machine(mut self, machine: impl IntoStateMachine) -> Self {
        self.machine = Some(machine.into_state_machine());
        self
    }

    /// Sets the storage engine for the log.
    pub fn storage_engine(mut self, storage: Arc<impl StorageEngine>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets when snapshots are due, instead of the policy in `config.snapshots`.
    pub fn snapshot_policy(mut self, policy: Arc<impl SnapshotPolicy>) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets the file system for the snapshots, and for the log unless a storage engine is set.
    /// Default: the file system of the operating system.
    pub fn file_system(mut self, fs: Arc<dyn Fs>) -> Self {
        self.fs = fs;
        self
    }

    /// Checks the configuration and the state machine's name. Touches no file, thread or socket.
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
        Ok(Node {
            config: self.config,
            shutdown: self.shutdown,
            machine,
            storage,
            policy,
            fs: self.fs,
        })
    }
}

/// The header of a snapshot has no space for a longer name.
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

/// What a node needs of the caller's runtime.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RuntimeNeeds {
    Timers,
    /// It serves clients.
    TimersAndSockets,
}

/// Checks that the runtime has what the node needs. Tokio reports a lack of it only by a panic.
fn check_runtime(needs: RuntimeNeeds) -> Result<(), StartError> {
    let has_all = std::panic::catch_unwind(|| {
        drop(tokio::time::sleep(std::time::Duration::ZERO));
        if needs == RuntimeNeeds::TimersAndSockets {
            drop(tokio::net::TcpSocket::new_v4().and_then(|socket| socket.listen(1)));
        }
    });
    has_all.map_err(|_| StartError::NoRuntime)
}

/// The recovered state that a node starts from.
struct Recovered {
    identity: Identity,
    meta: Box<dyn MetaStore>,
    log: Box<dyn LogStore>,
    recovered: RecoveredLog,
    handler: StateMachineHandler,
    start_position: StartPosition,
    snapshots: SnapshotStore,
}

/// A node that is built and not started.
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
    /// Locks the data directory, recovers the log and the state, starts the threads, and listens.
    /// Call inside a tokio runtime: it polls the state machine's futures and runs the client
    /// service.
    ///
    /// # Errors
    /// See [`StartError`]. No thread is left running.
    pub async fn start(self) -> Result<EmbeddedEngine, StartError> {
        let runtime = Handle::try_current().map_err(|_| StartError::NoRuntime)?;
        check_runtime(match self.config.client_listen_addr() {
            Some(_) => RuntimeNeeds::TimersAndSockets,
            None => RuntimeNeeds::Timers,
        })?;
        descriptors::warn_if_scarce(self.config.own_id(), descriptors::limit());
        let group = GroupId::FIRST;
        let (owner, listener) = self.find_owner(group).await?;
        let opened = self.open_storage(group, owner).await?;
        let OpenedStorage { identity, meta, mut log, mut recovered, report } = opened;
        self.warn_of_repairs(&identity, &report, recovered.base);
        let snapshots = self.open_snapshots(&identity)?;
        let (machine, policy) = (self.machine.clone(), self.policy.clone());
        let (place, inside) = (snapshots.clone(), runtime.clone());
        // Not on the runtime's threads: reading a snapshot may take long.
        let opened = tokio::task::spawn_blocking(move || {
            let start = Start {
                identity: &identity,
                log: log.as_mut(),
                recovered: &mut recovered,
                snapshots: &place,
            };
            let opened = inside.block_on(StateMachineHandler::open(machine, policy, start));
            opened.map(|(handler, start_position)| Recovered {
                identity,
                meta,
                log,
                recovered,
                handler,
                start_position,
                snapshots: place,
            })
        });
        let opened = opened.await.map_err(|error| StartError::Stopped(StopReason::new(error)))?;
        let recovered = opened.map_err(StartError::StateMachine)?;
        let started = self.start_threads(recovered, runtime, listener).await;
        let engine = match started {
            Ok(engine) => engine,
            Err(error) => {
                // The machine was started, so it must be stopped whatever failed after that.
                if let Err(error) = self.machine.stop() {
                    tracing::warn!(%error, "the state machine's stop failed");
                }
                return Err(error);
            }
        };
        engine.stop_when(self.shutdown);
        Ok(engine)
    }

    /// Starts the node and returns after its shutdown.
    ///
    /// # Errors
    /// See [`StartError`]; [`StartError::Stopped`] if the node failed while it ran.
    pub async fn run(self) -> Result<(), StartError> {
        let engine = self.start().await?;
        engine.stopped().await
    }

    /// Starts the threads on the recovered state, and returns once the node listens.
    async fn start_threads(
        &self,
        recovered: Recovered,
        runtime: Handle,
        peer_listener: Option<tokio::net::TcpListener>,
    ) -> Result<EmbeddedEngine, StartError> {
        let Recovered { identity, meta, log, recovered, handler, start_position, snapshots } =
            recovered;
        let clock = Clock::start();
        let (config, seed, now) = (self.replica_config(), entropy::seed()?, clock.now());
        let replica = Replica::new(config, &identity, &recovered, &start_position, seed, now)?
            .with_machine_steps(handler.steps());
        self.check_members(&identity, &replica)?;
        let replica = self.with_listed_addresses(replica)?;
        let peer_listener = match peer_listener {
            Some(bound) => Some(bound),
            None => self.bind_peers().await?,
        };
        let (peer_addr, client_addr) = self.advertised(peer_listener.as_ref());
        let replica = replica.reached_at(&peer_addr, &client_addr);
        let threads = NodeThreads::new(ThreadComponents {
            group: identity.group,
            identity: identity.clone(),
            clock,
            replica,
            applied: start_position.applied.get(),
            meta,
            log,
            handler,
            machine: self.machine.clone(),
            snapshots,
            settings: self.config.snapshots.clone(),
            exchange: self.exchange_settings(),
            intake: self.inbox_limits(),
            timeout: Timeouts::of(&self.config),
            runtime,
        });
        let client_listener = self.bind_clients().await?;
        let client_addr = client_listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let shared = threads.shared.clone();
        let (ending, has_started) =
            threads.start(self.transport_start(&identity, peer_listener)?)?;
        let machine = self.machine.clone();
        let node = identity.node.get();
        let engine =
            EmbeddedEngine::new(NodeComponents { identity, machine, shared, ending, client_addr });
        let started =
            has_started.await.unwrap_or_else(|_| Err(StartError::Stopped(engine.reason_of_stop())));
        if let Err(error) = started {
            engine.stop().await;
            return Err(error);
        }
        if let Some(listener) = client_listener {
            engine.attach_client_service(service::serve(
                node,
                listener,
                engine.weak(),
                &self.config.limits,
                engine.stop_signal(),
            ));
        }
        Ok(engine)
    }

    fn inbox_limits(&self) -> InboxLimits {
        let limits = &self.config.limits;
        InboxLimits {
            proposals: limits.max_pending_proposals,
            bytes: limits.max_pending_bytes,
            reads: limits.max_pending_reads,
        }
    }

    fn transport_start(
        &self,
        identity: &Identity,
        listener: Option<tokio::net::TcpListener>,
    ) -> Result<TransportStart, StartError> {
        let (peer_addr, client_addr) = self.advertised(listener.as_ref());
        // The transport runs on a runtime of its own.
        let listener = listener.map(tokio::net::TcpListener::into_std).transpose();
        Ok(TransportStart {
            identity: TransportIdentity {
                cluster: identity.cluster,
                group: identity.group,
                node: identity.node,
                incarnation: identity.incarnation,
                start: entropy::seed()?.max(1),
                state_machine: self.machine.name().to_owned(),
                continues: identity.continues.clone(),
                peer_addr,
                client_addr,
            },
            settings: TransportSettings {
                queue_frames: self.config.limits.peer_queue_frames,
                queue_bytes: self.config.limits.peer_queue_bytes,
                entropy: entropy::seed()?,
                heeds_superseded: !self.config.ignore_superseded,
                ..TransportSettings::default()
            },
            seeds: self.config.join.clone(),
            listener: listener.map_err(StartError::Thread)?,
        })
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
