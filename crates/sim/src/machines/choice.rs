//! The state machines of a run: the key-value machine, which is rebuilt at every start; the
//! simulator's own durable machine; and the durable machine that is shipped, on the simulated disk.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_kv_disk::DiskKvStateMachine;
use d_engine_replica::{LogId, StateMachine};
use d_engine_storage::Fs;
use sha2::{Digest as _, Sha256};

use crate::machines::durable::DurableMachine;
use crate::profile::snapshots::Kind;

/// Directory of a durable machine's own files.
const DIR: &str = "/machine";
/// Cache of the shipped durable machine.
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

    /// Returns a hash that is equal on all replicas that have applied the same entries, whatever
    /// machine they run.
    pub(crate) fn state_hash(&self) -> [u8; 32] {
        match self {
            Self::Rebuilt(machine) => machine.state_hash(),
            Self::Durable(machine) => machine.state_hash(),
            Self::Disk(machine) => hash_of(machine),
        }
    }

    /// Returns the entry up to which the machine itself has flushed its state, so that it survives
    /// a power loss. `None` if the machine is rebuilt at every start, or does not report it.
    pub(crate) fn flushed(&self) -> Option<LogId> {
        match self {
            Self::Rebuilt(_) | Self::Disk(_) => None,
            Self::Durable(machine) => Some(machine.flushed()),
        }
    }

    /// Whether the machine keeps its state in files of its own.
    pub(crate) fn is_durable(&self) -> bool {
        !matches!(self, Self::Rebuilt(_))
    }

    /// Whether the simulator's durable machine has installed a snapshot since the process started.
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

/// Returns the hash that the in-memory machine has in the same state; zeros if the machine cannot
/// be read any more.
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
