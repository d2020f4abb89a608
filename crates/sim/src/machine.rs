//! The state machines of a run: the key-value machine, rebuilt at every start; one of the simulator's own that keeps
//! its state; and the one that ships for that, on the simulated disk.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_kv_disk::DiskKvStateMachine;
use d_engine_replica::{LogId, StateMachine};
use d_engine_storage::Fs;
use sha2::{Digest as _, Sha256};

use crate::durable_machine::DurableMachine;
use crate::snapshot_profile::Kind;

/// Where a machine that keeps its own state keeps it.
const DIR: &str = "/machine";
/// The cache of a machine on disk.
const CACHE_BYTES: usize = 256 << 10;

/// A node's state machine.
#[derive(Clone)]
pub(crate) enum Machine {
    Rebuilt(Arc<KvStateMachine>),
    Durable(Arc<DurableMachine>),
    Disk(Arc<DiskKvStateMachine>),
}

impl Machine {
    pub(crate) fn new(fs: Arc<dyn Fs>, kind: Kind) -> Self {
        match kind {
            Kind::Rebuilt => Self::Rebuilt(Arc::new(KvStateMachine::with_fs(fs))),
            Kind::Durable => Self::Durable(Arc::new(DurableMachine::new(fs, Path::new(DIR)))),
            Kind::Disk => {
                let machine = DiskKvStateMachine::with_fs(fs, DIR);
                Self::Disk(Arc::new(machine.cache_bytes(CACHE_BYTES)))
            }
        }
    }

    pub(crate) fn shared(&self) -> Arc<dyn StateMachine> {
        match self {
            Self::Rebuilt(machine) => machine.clone(),
            Self::Durable(machine) => machine.clone(),
            Self::Disk(machine) => machine.clone(),
        }
    }

    /// Equal on all replicas that have applied the same entries, of whatever kind their machine is.
    pub(crate) fn state_hash(&self) -> [u8; 32] {
        match self {
            Self::Rebuilt(machine) => machine.state_hash(),
            Self::Durable(machine) => machine.state_hash(),
            Self::Disk(machine) => hash_of(machine),
        }
    }

    /// Up to here the state survives a power cut by itself; `None` if it never does, or does not tell.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        match self {
            Self::Rebuilt(_) | Self::Disk(_) => None,
            Self::Durable(machine) => Some(machine.flushed()),
        }
    }

    /// Whether it keeps its own state, in a file of its own.
    pub(crate) fn is_durable(&self) -> bool {
        !matches!(self, Self::Rebuilt(_))
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

/// The hash that the machine in memory has at the same state. Of a machine that cannot be read any more: zeros.
fn hash_of(machine: &DiskKvStateMachine) -> [u8; 32] {
    let mut records = Sha256::new();
    let mut parts: Vec<u8> = Vec::new();
    let told = machine.for_each_record(|key, value, expires_ms| {
        for part in [key, value] {
            parts.extend_from_slice(&(part.len() as u64).to_le_bytes());
            parts.extend_from_slice(part);
        }
        parts.extend_from_slice(&expires_ms.map_or(0, std::num::NonZeroU64::get).to_le_bytes());
    });
    let Ok(time_ms) = told else { return [0; 32] };
    records.update(time_ms.to_le_bytes());
    records.update(&parts);
    records.finalize().into()
}
