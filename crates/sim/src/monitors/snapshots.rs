//! The rules for snapshots, purged logs and state machines.
//!
//! - "equal state at equal index": all replicas that have applied up to the same index have the
//!   same state, whatever state machine they run.
//! - "a snapshot is the state at its last included entry": a new state machine that reads an
//!   archive gets the state after entry 1 up to that entry.
//! - "built means durable": a snapshot that is reported as built or received survives a power loss
//!   whole.
//! - "purged is covered": the log is purged only up to a whole and durable snapshot, and with a
//!   durable state machine only up to what the machine has flushed.
//! - "no purge while a snapshot is sent": a follower that is being sent a snapshot continues after
//!   its last included. The check is in `monitors/sends.rs`.
//! - "sent means applied": a sender learns of success only after the follower has applied the
//!   snapshot.
//! - "metadata name a file": after a crash, the snapshot that a state machine has stored as its
//!   newest one exists.
//!
//! A log begins only after a snapshot that survives a power loss: "built means durable" is checked
//! again just before an install.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::LogId;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{SnapshotMetadata, StateMachine};
use d_engine_storage::ClusterId;
use d_engine_storage::fs::sim::{SimFs, SimImage};
use d_engine_storage::snapshot::{FullSpeed, SnapshotOptions, SnapshotStore};

use crate::monitors::violation::{Rule, Violation};
use crate::names::{CLUSTER, GROUP, SNAPSHOT_DIR};
use crate::now_or_never::now_or_never;

#[derive(Debug, Default)]
pub(crate) struct SnapshotMonitors {
    /// Hash of the state at each index to which some machine has applied.
    states: BTreeMap<u64, [u8; 32]>,
    /// The highest index that each node has applied, over all its boots.
    reached: BTreeMap<u64, u64>,
}

impl SnapshotMonitors {
    /// Checks a state machine that has applied up to `applied` and whose state has this hash.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_state(
        &mut self,
        node: u64,
        applied: u64,
        state: [u8; 32],
    ) -> Result<(), Violation> {
        let reached = self.reached.entry(node).or_default();
        *reached = applied.max(*reached);
        if applied > 0 && *self.states.entry(applied).or_insert(state) != state {
            return Rule::EqualState.broken_by(
                node,
                format_args!(
                    "the state of node {node} at index {applied} differs from another replica's"
                ),
            );
        }
        Ok(())
    }

    /// Checks a snapshot that a node reports as built or received: it survives a power loss, and is
    /// the state after all entries up to its last included.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_snapshot(
        &self,
        node: u64,
        fs: &SimFs,
        last_included: LogId,
    ) -> Result<(), Violation> {
        let path = archive_path(last_included);
        let Some(bytes) = fs.surviving(&path).remove(&path) else {
            return Rule::BuiltIsDurable.broken_by(
                node,
                format_args!(
                    "node {node}'s snapshot at {last_included} does not survive a power loss"
                ),
            );
        };
        let state = match state_of(last_included, bytes) {
            Ok(state) => state,
            Err(error) => {
                return Rule::BuiltIsDurable.broken_by(
                    node,
                    format_args!(
                        "node {node}'s snapshot at {last_included} cannot be used: {error}"
                    ),
                );
            }
        };
        if self.states.get(&last_included.index.get()) != Some(&state) {
            return Rule::SnapshotState.broken_by(
                node,
                format_args!("node {node}'s snapshot at {last_included} holds another state"),
            );
        }
        Ok(())
    }

    /// Checks a log that is about to be purged. `flushed` is the entry up to which a durable state
    /// machine has flushed its state.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_purge(
        &self,
        node: u64,
        fs: &SimFs,
        through: LogId,
        flushed: Option<LogId>,
    ) -> Result<(), Violation> {
        if let Some(flushed) = flushed.filter(|flushed| flushed.index < through.index.get()) {
            return Rule::PurgedIsCovered.broken_by(
                node,
                format_args!(
                    "node {node} purges up to {through}, but its state machine has flushed only up \
                     to {flushed}"
                ),
            );
        }
        let log_ids = surviving_snapshots(fs);
        let mut reaching =
            log_ids.into_iter().filter(|last_included| last_included.index >= through.index);
        if reaching.any(|last_included| is_whole(fs, last_included)) {
            return Ok(());
        }
        Rule::PurgedIsCovered.broken_by(
            node,
            format_args!("node {node} purges up to {through}, but no usable snapshot covers it"),
        )
    }

    /// Checks the report to a sender that node `to` has applied the snapshot.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_sent(&self, to: u64, last_included: LogId) -> Result<(), Violation> {
        let reached = self.reached.get(&to).copied().unwrap_or(0);
        if reached < last_included.index.get() {
            return Rule::SentIsApplied.broken_by(to,
                format_args!(
                    "node {to} is reported to have applied the snapshot at {last_included}, but has \
                     applied only up to {reached}"
                ),
            );
        }
        Ok(())
    }

    /// Checks the newest snapshot according to the state machine of a node that has started.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_metadata(
        &self,
        node: u64,
        fs: &SimFs,
        meta: &SnapshotMetadata,
    ) -> Result<(), Violation> {
        let last_included = meta.last_included;
        if surviving_snapshots(fs).contains(&last_included) {
            return Ok(());
        }
        Rule::MetadataNamesFile.broken_by(
            node,
            format_args!(
                "node {node} starts with the snapshot at {last_included}, which does not exist"
            ),
        )
    }
}

/// Returns the last included of each snapshot that survives a power loss, oldest first.
pub(crate) fn surviving_snapshots(fs: &SimFs) -> Vec<LogId> {
    let archives = fs.surviving(Path::new(SNAPSHOT_DIR));
    let mut log_ids: Vec<LogId> =
        archives.keys().filter_map(|path| last_included_of(path)).collect();
    log_ids.sort_unstable();
    log_ids
}

/// Whether this snapshot survives a power loss and can be used.
pub(crate) fn is_whole(fs: &SimFs, last_included: LogId) -> bool {
    let path = archive_path(last_included);
    fs.surviving(&path).remove(&path).is_some_and(|bytes| state_of(last_included, bytes).is_ok())
}

pub(crate) fn archive_path(last_included: LogId) -> PathBuf {
    Path::new(SNAPSHOT_DIR)
        .join(format!("snap-{}-{}.snap", last_included.term, last_included.index))
}

fn last_included_of(path: &Path) -> Option<LogId> {
    let name = path.file_name()?.to_str()?;
    let (term, index) = name.strip_prefix("snap-")?.strip_suffix(".snap")?.split_once('-')?;
    Some(LogId::of(term.parse().ok()?, index.parse().ok()?))
}

/// Returns the hash of the state that a new state machine reads from an archive.
fn state_of(last_included: LogId, archive: Vec<u8>) -> Result<[u8; 32], String> {
    let dirs = Path::new(SNAPSHOT_DIR)
        .ancestors()
        .filter(|dir| *dir != Path::new("/"))
        .map(Path::to_owned);
    let image = SimImage {
        dirs: dirs.collect(),
        files: BTreeMap::from([(archive_path(last_included), archive)]),
    };
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
    let header =
        store.unpack(last_included, &into, &mut FullSpeed).map_err(|error| error.to_string())?;
    let machine = KvStateMachine::with_fs(fs);
    let meta = SnapshotMetadata::new(last_included, header.facts.checksum);
    let installed = async {
        let installed = machine.apply_snapshot_from_file(&meta, into).await;
        installed.map_err(d_engine_replica::StopReason::new)
    };
    now_or_never(installed).map_err(|reason| reason.to_string())?;
    Ok(machine.state_hash())
}
