//! A single node with a state machine that records its calls, for tests that check the calls.
#![allow(dead_code, reason = "each test file uses its part")]

use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_server::{Config, EmbeddedEngine};

use crate::recording::{Calls, Recording};
use crate::support::{TIMEOUT, cluster};

/// A single node, with a data directory that outlives it.
pub(crate) struct Alone {
    _dir: Option<tempfile::TempDir>,
    pub(crate) config: Config,
    pub(crate) machine: Arc<Recording>,
    pub(crate) engine: EmbeddedEngine,
    pub(crate) calls: Calls,
}

impl Alone {
    pub(crate) async fn start(machine: Recording) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        (config.snapshots.tail_entries, config.snapshots.reserve_bytes) = (0, 0);
        config.snapshots.retained = 1;
        let mut alone = Self::with(machine, config).await;
        alone._dir = Some(dir);
        alone
    }

    pub(crate) async fn with(machine: Recording, config: Config) -> Self {
        let (calls, machine) = (machine.calls.clone(), Arc::new(machine));
        let engine = EmbeddedEngine::start_custom(machine.clone(), config.clone()).await.unwrap();
        engine.wait_ready(TIMEOUT).await.unwrap();
        Self { _dir: None, config, machine, engine, calls }
    }

    pub(crate) async fn propose(&self, number: u8) -> Bytes {
        self.engine.propose(vec![number]).await.unwrap()
    }

    pub(crate) async fn applied(&self) -> u64 {
        self.engine.replica_status().await.unwrap().applied
    }

    /// Waits until the node appends no further entries of its own: a new node binds itself in an
    /// entry.
    pub(crate) async fn settle(&self) {
        until(async || {
            let replica = self.engine.replica_status().await.unwrap();
            let bound =
                replica.membership.members().iter().all(|member| member.incarnation.is_some());
            bound && replica.applied == replica.core.log.last.index.get()
        })
        .await;
    }

    pub(crate) async fn stop(self) -> (Config, Arc<Recording>, Option<tempfile::TempDir>) {
        self.engine.stop().await;
        (self.config, self.machine, self._dir)
    }
}

/// Starts three nodes whose logs keep no entries before a snapshot, and returns their state
/// machines.
pub(crate) async fn three_without_a_tail(
    dir: &Path,
) -> (Vec<Config>, Vec<Arc<Recording>>, Vec<EmbeddedEngine>) {
    let mut configs = cluster(dir, 3);
    for config in &mut configs {
        (config.snapshots.tail_entries, config.snapshots.tail_bytes) = (0, 0);
        config.snapshots.retained = 1;
    }
    let machines: Vec<Arc<Recording>> = (0..3).map(|_| Arc::new(Recording::default())).collect();
    let mut engines = Vec::new();
    for (config, machine) in configs.iter().zip(&machines) {
        engines.push(EmbeddedEngine::start_custom(machine.clone(), config.clone()).await.unwrap());
    }
    (configs, machines, engines)
}

pub(crate) async fn until(mut condition: impl AsyncFnMut() -> bool) {
    let look = async {
        while !condition().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(TIMEOUT, look).await.unwrap();
}

/// Blocks the writing of views until the sender is dropped.
pub(crate) fn hold(
    pen: Arc<Mutex<()>>,
) -> (std::sync::mpsc::Sender<()>, std::thread::JoinHandle<()>) {
    let (holds, held) = std::sync::mpsc::channel();
    let (let_go, told) = std::sync::mpsc::channel::<()>();
    let holder = std::thread::spawn(move || {
        let _pen = pen.lock().unwrap();
        holds.send(()).unwrap();
        // Waits until the sender is dropped.
        told.recv().ok();
    });
    held.recv().unwrap();
    (let_go, holder)
}
