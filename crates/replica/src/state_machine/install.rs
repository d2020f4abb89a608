//! The install of a received snapshot by the apply worker: its files are unpacked, and the state
//! machine replaces its state by them. Both wait if the disk has no space.

use d_engine_storage::snapshot::FullSpeed;

use crate::event::{ApplyJob, ApplySource};
use crate::state_machine::apply_worker::ApplyWorker;
use crate::{LogId, StopReason};

impl ApplyWorker {
    /// Unpacks the snapshot that `job` installs, so that
    /// [`run_or_wait`](ApplyWorker::run_or_wait) only installs the files; does nothing for other
    /// jobs. Returns the reason if the install must wait for space or file handles: retry in about
    /// a second. The node continues to persist entries meanwhile. After the state machine itself
    /// had no space, the attempts are up to half a minute apart.
    ///
    /// # Errors
    /// The node must stop with the reason: the snapshot or the disk is damaged.
    pub fn unpack(&mut self, job: &ApplyJob) -> Result<Option<String>, StopReason> {
        let (ApplySource::Snapshot(last_included), Some(store)) = (&job.source, &self.snapshots)
        else {
            return Ok(None);
        };
        if let Some(reason) = self.install.waits() {
            return Ok(Some(reason.to_owned()));
        }
        let last_included = *last_included;
        let unpacked = store
            .clear_unpacked()
            .and_then(|()| store.unpack(last_included, &store.unpack_dir(), &mut FullSpeed));
        match unpacked {
            Ok(_) => {
                self.install.unpacked = Some(last_included);
                Ok(None)
            }
            Err(error) if error.is_out_of_space() => Ok(Some(error.to_string())),
            Err(error) => Err(StopReason::new(error)),
        }
    }

    /// Replaces the state by a received snapshot.
    pub(super) async fn install(&mut self, last_included: LogId) -> Result<(), StopReason> {
        let Some(store) = self.snapshots.clone() else {
            return Err(StopReason::new(format_args!(
                "this node has no snapshot store to install the snapshot {last_included} from"
            )));
        };
        let path = store.unpack_dir();
        if self.install.unpacked.take() != Some(last_included) {
            store.clear_unpacked().map_err(StopReason::new)?;
            store.unpack(last_included, &path, &mut FullSpeed).map_err(StopReason::new)?;
        }
        let info = store.list().into_iter().find(|info| info.last_included() == last_included);
        let info = info.ok_or_else(|| {
            StopReason::new(format_args!("the snapshot {last_included} is missing"))
        })?;
        let installed = self.handler.install_snapshot(&info, path).await;
        // The machine may have taken files away. Those that cannot be removed now are removed at
        // the next start.
        store.clear_unpacked().ok();
        match &installed {
            Err(reason) if reason.lacks_room() => self.install.lacked_room(reason),
            _ => self.install.pause = None,
        }
        self.hold_told();
        installed
    }
}
