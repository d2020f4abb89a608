//! The state machines of a run: the key-value machine, rebuilt at every start, and one that keeps its own state.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{LogId, StateMachine};
use d_engine_storage::Fs;

use crate::durable_machine::DurableMachine;

/// Where a machine that keeps its own state keeps it.
const DIR: &str = "/machine";

/// A node's state machine.
#[derive(Clone)]
pub(crate) enum Machine {
    Rebuilt(Arc<KvStateMachine>),
    Durable(Arc<DurableMachine>),
}

impl Machine {
    pub(crate) fn new(fs: Arc<dyn Fs>, is_durable: bool) -> Self {
        if is_durable {
            Self::Durable(Arc::new(DurableMachine::new(fs, Path::new(DIR))))
        } else {
            Self::Rebuilt(Arc::new(KvStateMachine::with_fs(fs)))
        }
    }

    pub(crate) fn shared(&self) -> Arc<dyn StateMachine> {
        match self {
            Self::Rebuilt(machine) => machine.clone(),
            Self::Durable(machine) => machine.clone(),
        }
    }

    /// Equal on all replicas that have applied the same entries, of whatever kind their machine is.
    pub(crate) fn state_hash(&self) -> [u8; 32] {
        match self {
            Self::Rebuilt(machine) => machine.state_hash(),
            Self::Durable(machine) => machine.state_hash(),
        }
    }

    /// Up to here the state survives a power cut by itself; `None` if it never does.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        match self {
            Self::Rebuilt(_) => None,
            Self::Durable(machine) => Some(machine.flushed()),
        }
    }

    /// Whether a machine that keeps its own state has got a snapshot since the process was started.
    pub(crate) fn has_installed(&self) -> bool {
        matches!(self, Self::Durable(machine) if machine.has_installed())
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.shared().get(key).ok().flatten()
    }

    pub(crate) fn next_expiry_ms(&self) -> Option<u64> {
        self.shared().next_expiry_ms()
    }
}
