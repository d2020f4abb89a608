//! Opens what a node has on its disk: the log, the identity and the snapshots.

use std::path::PathBuf;

use d_engine_core::{GroupId, LogId};
use d_engine_storage::snapshot::{FullSpeed, SNAPSHOT_DIR, SnapshotOptions, SnapshotStore};
use d_engine_storage::{ClusterId, Identity, OpenRequest, OpenedStorage, RecoveryReport};

use super::Node;
use super::membership::Owner;
use crate::StartError;
use crate::node::entropy;

impl Node {
    /// Opens the data directory, on a thread for blocking work: recovery reads the whole log.
    pub(super) async fn open_storage(
        &self,
        group: GroupId,
        owner: Owner,
    ) -> Result<OpenedStorage, StartError> {
        let request = OpenRequest {
            cluster: owner.cluster,
            node: owner.node,
            group,
            initial: owner.initial,
            fresh_cluster: ClusterId(entropy::sixteen_bytes()?),
            fresh_incarnation: owner.incarnation,
        };
        let storage = self.storage.clone();
        let (fs, dir, options) = (
            self.fs.clone(),
            self.snapshot_dir(),
            self.snapshot_options(request.fresh_cluster, group),
        );
        // Called only if the log is damaged; on a thread for blocking work, because reading a
        // snapshot may take long.
        let mut covered = move |identity: &Identity| {
            let options = SnapshotOptions { cluster: identity.cluster, ..options.clone() };
            let (store, _) = SnapshotStore::open(fs.clone(), &dir, options).ok()?;
            let (whole, _) = store.find_whole(&mut FullSpeed).ok()?;
            whole.map(|info| info.last_included())
        };
        let opened =
            tokio::task::spawn_blocking(move || storage.open_behind(&request, &mut covered)).await;
        Ok(opened
            .map_err(|error| StartError::Stopped(d_engine_replica::StopReason::new(error)))??)
    }

    /// Logs what recovery has cut, skipped or written anew.
    pub(super) fn warn_of_repairs(
        &self,
        identity: &Identity,
        report: &RecoveryReport,
        base: LogId,
    ) {
        let node = identity.node.get();
        if report.torn_bytes > 0 {
            tracing::warn!(
                node, bytes = report.torn_bytes, at = ?report.torn_at,
                "the torn tail of the log was cut; a crash during a write leaves one, and then it \
                 contained nothing acknowledged. If there was no crash, or the files were copied, \
                 it may have contained acknowledged entries: compare with the other nodes before \
                 you rely on this one"
            );
        }
        if let Some(damage) = &report.skipped_corruption {
            tracing::error!(
                node, %base, %damage,
                "the log is damaged; an intact snapshot of this node contains the damaged part, so \
                 the log begins after that snapshot now; check this disk"
            );
        }
        for path in &report.mended {
            tracing::warn!(
                node, path = %path.display(),
                "this file, one of two copies, was damaged or missing; it was written anew from \
                 the other"
            );
        }
    }

    /// Opens the node's snapshots and removes incomplete files that a crash left.
    pub(super) fn open_snapshots(&self, identity: &Identity) -> Result<SnapshotStore, StartError> {
        let options = self.snapshot_options(identity.cluster, identity.group);
        let (store, report) = SnapshotStore::open(self.fs.clone(), &self.snapshot_dir(), options)?;
        for error in &report.unusable {
            tracing::warn!(node = %identity.node, %error, "a snapshot cannot be used");
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
}
