//! Changes the state: one transaction for each chunk, or another database in place of the open one.

use std::sync::{Arc, Weak};

use d_engine_kv_language::rules::{KvRead as _, KvTable as _};
use d_engine_state_machine::LogId;

use super::DiskKvStateMachine;
use crate::database::Database;
use crate::error::{DiskKvError, Failure};
use crate::state::State;
use crate::tables::Tables;

impl DiskKvStateMachine {
    /// Runs one transaction: the changes that `work` makes to the tables, and the position after
    /// them. `bytes` is the size of the commands.
    pub(super) fn transact<T>(
        &self,
        bytes: usize,
        work: impl FnOnce(&mut Tables<'_>, &mut LogId) -> Result<T, Failure>,
    ) -> Result<T, DiskKvError> {
        let (database, mut state, waiting) =
            self.read(|open| (Arc::clone(&open.database), open.state.clone(), open.not_durable))?;
        let not_durable = waiting.unwrap_or(0).saturating_add(bytes);
        let is_durable = not_durable >= self.sync_every_bytes;
        let transaction =
            if is_durable { database.begin_durable()? } else { database.begin_lazy()? };
        let done = (|| {
            let mut tables = Tables::open(&transaction, &state)?;
            let done = work(&mut tables, &mut state.position)?;
            (state.time_ms, state.content_bytes) = (tables.time_ms(), tables.content_bytes());
            let next_expiry_ms = tables.first_expiry()?.map(|(at, _)| at.get());
            drop(tables);
            state.store(&transaction)?;
            transaction.commit()?;
            Ok((done, next_expiry_ms))
        })();
        let (done, next_expiry_ms) = done.map_err(|failure| database.failed(failure))?;
        self.change(|open| {
            open.state = state;
            open.next_expiry_ms = next_expiry_ms;
            open.not_durable = (!is_durable).then_some(not_durable);
        })?;
        self.bound_views(&database)?;
        Ok(done)
    }

    /// Cancels the views for which the file has grown too far, so that their pages can be reused.
    pub(super) fn bound_views(&self, database: &Database) -> Result<(), DiskKvError> {
        let views: Vec<_> =
            self.read(|open| open.views.iter().filter_map(Weak::upgrade).collect())?;
        let mut bytes = None;
        for view in views.iter().filter(|view| view.given_up_at().is_none()) {
            let bytes = *bytes.get_or_insert_with(|| database.bytes());
            if bytes.saturating_sub(view.began_at) > self.view_growth_bytes.max(view.began_at) {
                tracing::warn!(
                    began_at = view.began_at,
                    bytes,
                    "a snapshot or a scrub is cancelled, because the database has grown beyond \
                     view_growth_bytes"
                );
                view.give_up(bytes);
            }
        }
        Ok(())
    }

    /// Replaces the open database by a new one.
    pub(super) fn replace(
        &self,
        new: Database,
        state: State,
        next_expiry_ms: Option<u64>,
    ) -> Result<(), DiskKvError> {
        new.take_place(&*self.fs, &self.dir)?;
        let before = self.change(|open| {
            open.state = state;
            open.next_expiry_ms = next_expiry_ms;
            open.not_durable = None;
            std::mem::replace(&mut open.database, Arc::new(new))
        })?;
        // The file is freed when the last reader has finished.
        drop(before);
        self.fs.sync_dir(&self.dir).map_err(|source| self.io(source))
    }

    /// Whether there is enough free space for a second database beside the open one. If the file
    /// system does not report free space, the answer is yes.
    pub(super) fn has_room(&self, bytes: u64) -> Result<bool, DiskKvError> {
        let free = self.fs.free_bytes(&self.dir).map_err(|source| self.io(source))?;
        Ok(free.is_none_or(|free| free >= bytes))
    }

    /// Deletes the records durably and sets the position to 0, so that after a crash before the
    /// install the next start installs the snapshot again.
    pub(super) fn make_room(&self) -> Result<(), DiskKvError> {
        let before = self.database()?;
        let state = State { binding: self.read(|open| open.state.binding)?, ..State::default() };
        let empty = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        if let Err(error) = empty.commit_durably(&state) {
            empty.give_up(&*self.fs, &self.dir);
            return Err(error);
        }
        self.change(|open| open.is_filling = true)?;
        self.replace(empty, state, None)?;
        // Even if a view still reads from it: the space is needed.
        before.close()
    }
}
