//! What must hold of snapshots, purged logs and state machines.
//!
//! | rule | where it comes from |
//! |---|---|
//! | equal state at equal index | all replicas, of whatever kind their machine is |
//! | a snapshot is its label's state | an archive, read by a new machine, is the state after entries 1 to its label |
//! | built means durable | a snapshot that is said to be there survives a power cut, whole |
//! | purged is covered | the log is purged up to a whole and durable snapshot, and for machines that keep their own state up to what they have flushed |
//! | no purge under a transfer | a follower that is being sent a snapshot goes on from its label |
//! | installed after received | the log begins behind a snapshot that survives a power cut |
//! | sent means applied | a sender hears of success after the follower has applied |
//! | metadata name a file | what a machine has stored of its newest snapshot is there after a crash |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::LogId;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{SnapshotMetadata, StateMachine};
use d_engine_storage::ClusterId;
use d_engine_storage::fs_sim::{SimFs, SimImage};
use d_engine_storage::snapshot::{FullSpeed, SnapshotOptions, SnapshotStore};

use crate::monitors::{Broken, broken};
use crate::node::{CLUSTER, GROUP, SNAPSHOT_DIR, now_or_never};

#[derive(Debug, Default)]
pub(crate) struct SnapshotMonitors {
    /// The state at each index at which a machine has stood.
    states: BTreeMap<u64, [u8; 32]>,
    /// The furthest that each node has applied, in any of its lives.
    reached: BTreeMap<u64, u64>,
}

impl SnapshotMonitors {
    /// A node's state machine has come to `applied` and hashes to `state`.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_state(&mut self, node: u64, applied: u64, state: [u8; 32]) -> Result<(), Broken> {
        let reached = self.reached.entry(node).or_default();
        *reached = applied.max(*reached);
        if applied > 0 && *self.states.entry(applied).or_insert(state) != state {
            return broken(
                "equal state at equal index",
                format_args!("node {node} at index {applied} differs from another replica"),
            );
        }
        Ok(())
    }

    /// A node says that its snapshot with this label is built or received: it survives a power cut, and is the
    /// state after everything up to the label.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_snapshot(&self, node: u64, fs: &SimFs, label: LogId) -> Result<(), Broken> {
        let path = archive_path(label);
        let Some(bytes) = fs.surviving(&path).remove(&path) else {
            return broken("built means durable", format_args!("node {node}'s snapshot {label} is not"));
        };
        let state = match state_of(label, bytes) {
            Ok(state) => state,
            Err(error) => {
                return broken(
                    "built means durable",
                    format_args!("node {node}'s snapshot {label}: {error}"),
                );
            }
        };
        if self.states.get(&label.index.get()) != Some(&state) {
            return broken(
                "a snapshot is its label's state",
                format_args!("node {node}'s snapshot {label} holds another state"),
            );
        }
        Ok(())
    }

    /// A node's log is about to be purged. `flushed` is what its machine has stored, if it keeps its own state.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_purge(
        &self,
        node: u64,
        fs: &SimFs,
        through: LogId,
        flushed: Option<d_engine_replica::LogId>,
    ) -> Result<(), Broken> {
        if let Some(flushed) = flushed.filter(|flushed| flushed.index < through.index.get()) {
            return broken(
                "purged is covered",
                format_args!("node {node} purges up to {through}, its machine has stored up to {flushed}"),
            );
        }
        let labels = surviving_labels(fs);
        let mut reaching = labels.into_iter().filter(|label| label.index >= through.index);
        if reaching.any(|label| is_whole(fs, label)) {
            return Ok(());
        }
        broken("purged is covered", format_args!("node {node} purges up to {through} without a snapshot"))
    }

    /// A sender has heard that node `to` has applied the snapshot with this label.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_sent(&self, to: u64, label: LogId) -> Result<(), Broken> {
        let reached = self.reached.get(&to).copied().unwrap_or(0);
        if reached < label.index.get() {
            return broken(
                "sent means applied",
                format_args!("node {to} is said to have applied {label} and came to {reached}"),
            );
        }
        Ok(())
    }

    /// A node has started, and its machine says which snapshot is the newest.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_metadata(&self, node: u64, fs: &SimFs, meta: &SnapshotMetadata) -> Result<(), Broken> {
        let label = LogId::from(meta.last_included);
        if surviving_labels(fs).contains(&label) {
            return Ok(());
        }
        broken("metadata name a file", format_args!("node {node} starts with {label}, which is not there"))
    }
}

/// The labels of the archives that a power cut leaves, oldest first.
pub(crate) fn surviving_labels(fs: &SimFs) -> Vec<LogId> {
    let archives = fs.surviving(Path::new(SNAPSHOT_DIR));
    let mut labels: Vec<LogId> = archives.keys().filter_map(|path| label_of(path)).collect();
    labels.sort_unstable();
    labels
}

/// Whether this snapshot survives a power cut and can be used.
pub(crate) fn is_whole(fs: &SimFs, label: LogId) -> bool {
    let path = archive_path(label);
    fs.surviving(&path).remove(&path).is_some_and(|bytes| state_of(label, bytes).is_ok())
}

pub(crate) fn archive_path(label: LogId) -> PathBuf {
    Path::new(SNAPSHOT_DIR).join(format!("snap-{}-{}.snap", label.term, label.index))
}

fn label_of(path: &Path) -> Option<LogId> {
    let name = path.file_name()?.to_str()?;
    let (term, index) = name.strip_prefix("snap-")?.strip_suffix(".snap")?.split_once('-')?;
    Some(d_engine_replica::LogId { term: term.parse().ok()?, index: index.parse().ok()? }.into())
}

/// What a new machine makes of an archive.
fn state_of(label: LogId, archive: Vec<u8>) -> Result<[u8; 32], String> {
    let dirs = Path::new(SNAPSHOT_DIR).ancestors().filter(|dir| *dir != Path::new("/")).map(Path::to_owned);
    let image = SimImage { dirs: dirs.collect(), files: BTreeMap::from([(archive_path(label), archive)]) };
    let fs = Arc::new(SimFs::from_image(&image));
    let options = SnapshotOptions {
        reserve_bytes: 0,
        command_version_max: u32::MAX,
        ..SnapshotOptions::new(ClusterId(CLUSTER), GROUP)
    };
    let (store, report) = SnapshotStore::open(fs.clone(), Path::new(SNAPSHOT_DIR), options)
        .map_err(|error| error.to_string())?;
    if let Some(error) = report.unusable.first() {
        return Err(error.to_string());
    }
    let into = store.unpack_dir();
    let header = store.unpack(label, &into, &mut FullSpeed).map_err(|error| error.to_string())?;
    let machine = KvStateMachine::with_fs(fs);
    let meta = SnapshotMetadata::new(label.into(), header.facts.checksum);
    let installed = async {
        let installed = machine.apply_snapshot_from_file(&meta, into).await;
        installed.map_err(d_engine_replica::StopReason::new)
    };
    now_or_never(installed).map_err(|reason| reason.to_string())?;
    Ok(machine.state_hash())
}
