//! Changes the state: one transaction for each chunk, or another database in place of the open one.

use std::sync::{Arc, Weak};

use d_engine_kv_language::KvReply;
use d_engine_kv_language::rules::{KvRead as _, KvTable as _};

use super::DiskKvStateMachine;
use super::recent::Change;
use crate::database::Database;
use crate::error::DiskKvError;
use crate::state::State;
use crate::tables::Tables;

impl DiskKvStateMachine {
    /// Runs one transaction: `changes`, which come after the present position, and the position
    /// after them. Returns their replies. A failure changes nothing; after a lack of space the same
    /// changes may be tried again.
    pub(super) fn transact(
        &self,
        changes: Vec<Change>,
    ) -> Result<Vec<Option<KvReply>>, DiskKvError> {
        self.mend()?;
        if self.read(|open| open.not_durable)?.is_some_and(|bytes| bytes >= self.sync_every_bytes) {
            self.make_durable()?;
        }
        let (database, mut state) =
            self.read(|open| (Arc::clone(&open.database), open.state.clone()))?;
        let transaction = database.begin_lazy()?;
        let done = (|| {
            let mut tables = Tables::open(&transaction, &state)?;
            let replies = changes.iter().map(|change| change.apply(&mut tables));
            let replies = replies.collect::<Result<Vec<_>, _>>()?;
            state.position = changes.last().map_or(state.position, |change| change.id);
            (state.time_ms, state.content_bytes) = (tables.time_ms(), tables.content_bytes());
            let next_expiry_ms = tables.first_expiry()?.map(|(at, _)| at.get());
            drop(tables);
            state.store(&transaction)?;
            transaction.commit()?;
            Ok((replies, next_expiry_ms))
        })();
        let (replies, next_expiry_ms) = done.map_err(|failure| database.failed(failure))?;
        let bytes = changes.iter().map(Change::bytes).fold(0, usize::saturating_add);
        let not_durable = self.change(|open| {
            open.state = state;
            open.next_expiry_ms = next_expiry_ms;
            open.recent.extend(changes);
            *open.not_durable.insert(open.not_durable.unwrap_or(0).saturating_add(bytes))
        })?;
        if not_durable >= self.sync_every_bytes {
            match self.make_durable() {
                // The changes are kept in memory, and the next ones wait for space.
                Err(DiskKvError::NoRoom { .. }) => {}
                done => done?,
            }
        }
        self.bound_views(&database)?;
        Ok(replies)
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
            open.recent.clear();
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
    /// install the next start installs the snapshot again. A database that is empty already stays:
    /// another empty one in its place would free nothing, and may be larger.
    pub(super) fn make_room(&self) -> Result<(), DiskKvError> {
        let before = self.database()?;
        if self.read(|open| open.state.position.index == 0 && open.state.content_bytes == 0)? {
            return Ok(());
        }
        let state = State { binding: self.read(|open| open.state.binding)?, ..State::default() };
        let empty = Database::create(&*self.fs, &self.dir, self.cache_bytes)?;
        if let Err(error) = empty.commit_durably(&state) {
            empty.give_up(&*self.fs, &self.dir);
            return Err(error);
        }
        self.change(|open| open.is_filling = true)?;
        self.replace(empty, state, None)?;
        // Even if a view still reads from it: the space is needed. The database is not used again,
        // so a failure to write to it loses nothing.
        before.close().ok();
        Ok(())
    }
}
