//! The open database of a machine, and its opening.

use std::sync::{Arc, Mutex, Weak};

use d_engine_fs::{FsLock, LockAttempt, ensure_dir};
use d_engine_state_machine::{Bound, Result};

use super::DiskKvStateMachine;
use super::recent::Change;
use crate::database::Database;
use crate::error::DiskKvError;
use crate::snapshot::Frozen;
use crate::state::State;

const LOCK_NAME: &str = "lock";

/// Metadata of the open database. `state` and the other fields are as the last transaction left
/// them, or were updated since and go into the next one.
pub(super) struct Open {
    pub(super) database: Arc<Database>,
    pub(super) state: State,
    pub(super) next_expiry_ms: Option<u64>,
    /// Bytes of commands since the last durable transaction; `None`: no change since.
    pub(super) not_durable: Option<usize>,
    /// The changes since then: after a lack of space they are repeated.
    pub(super) recent: Vec<Change>,
    /// The views that are being read: by a snapshot or a scrub.
    pub(super) views: Vec<Weak<Frozen>>,
    /// The records were deleted to free space for those of a snapshot, which is not installed yet.
    pub(super) is_filling: bool,
    _lock: Mutex<Box<dyn FsLock>>,
}

impl DiskKvStateMachine {
    /// Locks the directory and opens its database, if that belongs to this node.
    pub(super) fn open(&self) -> Result<Open> {
        ensure_dir(&*self.fs, &self.dir).map_err(|source| self.io(source))?;
        let lock =
            match self.fs.try_lock(&self.dir.join(LOCK_NAME)).map_err(|source| self.io(source))? {
                LockAttempt::Held(lock) => Mutex::new(lock),
                LockAttempt::InUse { holder } => {
                    return Err(DiskKvError::InUse { dir: self.dir.clone(), holder }.into());
                }
            };
        let (database, mut state) = Database::open(&*self.fs, &self.dir, self.cache_bytes)?;
        if let Some(binding) = &*self.bound_to()
            && binding.compare(state.binding.as_ref().map(<[u8; _]>::as_slice))? == Bound::Store
        {
            state.binding = Some(binding.to_bytes());
            database.commit_durably(&state)?;
        }
        let next_expiry_ms = database.first_expiry_ms()?;
        let (database, is_filling) = (Arc::new(database), false);
        let (not_durable, recent, views) = (None, Vec::new(), Vec::new());
        Ok(Open {
            database,
            state,
            next_expiry_ms,
            not_durable,
            recent,
            views,
            is_filling,
            _lock: lock,
        })
    }
}
