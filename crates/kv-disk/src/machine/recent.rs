//! The changes since the last durable transaction, and the database that is opened again with them
//! after a lack of space.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_kv_language::rules::{self, KvRead as _, KvTable as _};
use d_engine_kv_language::{KvCommand, KvReply};
use d_engine_state_machine::LogId;

use super::DiskKvStateMachine;
use super::open::Open;
use crate::database::Database;
use crate::error::{DiskKvError, Failure};
use crate::state::State;
use crate::tables::Tables;

/// Approximate bytes of memory that a change needs in addition to its command.
const CHANGE_BYTES: usize = 64;
/// The free space at which a read opens the database again. A change tries with any.
const READ_REOPENS_AT_BYTES: u64 = 1 << 20;

/// One change that was applied: a command, or only the log time.
pub(super) struct Change {
    pub(super) id: LogId,
    pub(super) time_ms: u64,
    pub(super) command: Option<Bytes>,
}

impl Change {
    /// Approximate bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.command.as_ref().map_or(0, Bytes::len).saturating_add(CHANGE_BYTES)
    }

    /// Carries the change out; returns the reply to a command.
    pub(super) fn apply(&self, tables: &mut Tables<'_>) -> Result<Option<KvReply>, Failure> {
        let Some(command) = &self.command else {
            rules::advance_to(tables, self.time_ms)?;
            return Ok(None);
        };
        match KvCommand::decode(command) {
            Ok(command) => rules::apply(tables, &command, self.time_ms).map(Some),
            Err(error) => {
                rules::pass_time(tables, self.time_ms)?;
                Ok(Some(KvReply::Rejected { reason: error.to_string() }))
            }
        }
    }
}

/// What opening the database again has to reach.
struct Reached {
    state: State,
    next_expiry_ms: Option<u64>,
}

impl DiskKvStateMachine {
    /// Makes every change durable. Call it with the lock on changes.
    pub(super) fn make_durable(&self) -> Result<(), DiskKvError> {
        let (database, state, waiting) =
            self.read(|open| (Arc::clone(&open.database), open.state.clone(), open.not_durable))?;
        if waiting.is_none() {
            return Ok(());
        }
        database.commit_durably(&state)?;
        self.change(|open| {
            open.recent.clear();
            // Metadata updated in the meantime is not in the new database.
            open.not_durable = (open.state != state).then_some(0);
        })
    }

    /// Opens the database again if it has lacked space, and repeats the changes that were not
    /// durable. Until that succeeds, every call fails and changes nothing. Call it with the lock
    /// on changes.
    pub(super) fn mend(&self) -> Result<(), DiskKvError> {
        let before = self.database()?;
        if before.lack_of_room().is_none() {
            return Ok(());
        }
        let reopened = before.reopened(&*self.fs, &self.dir, self.cache_bytes);
        let mended = reopened.and_then(|(again, found)| {
            self.read(|open| repeat(&again, found, open))??;
            Ok(again)
        });
        let again = mended.map_err(|error| before.note(error))?;
        tracing::info!(
            database = %again.path().display(),
            "the key-value database lacked space; it was opened again and continues"
        );
        self.change(|open| {
            open.database = Arc::new(again);
            // A durable transaction that failed may have left anything of itself.
            open.not_durable.get_or_insert(0);
        })
    }

    /// As [`Self::mend`], for a read: only if there is free space, and no change is going on.
    pub(super) fn mend_for_read(&self) -> Result<(), DiskKvError> {
        if self.database()?.lack_of_room().is_none() || !self.has_room(READ_REOPENS_AT_BYTES)? {
            return Ok(());
        }
        match self.writing.try_lock() {
            Ok(_writing) => self.mend(),
            Err(_) => Ok(()),
        }
    }
}

/// Repeats the changes of `open` in `again`, which holds the state `found`. The result must be the
/// state before the failure.
fn repeat(again: &Database, found: State, open: &Open) -> Result<(), DiskKvError> {
    let transaction = again.begin_lazy()?;
    let reached = (|| {
        let mut state = found;
        let mut tables = Tables::open(&transaction, &state)?;
        for change in open.recent.iter().filter(|change| change.id.index > state.position.index) {
            change.apply(&mut tables)?;
        }
        (state.time_ms, state.content_bytes) = (tables.time_ms(), tables.content_bytes());
        let next_expiry_ms = tables.first_expiry()?.map(|(at, _)| at.get());
        drop(tables);
        open.state.store(&transaction)?;
        transaction.commit()?;
        Ok(Reached { state, next_expiry_ms })
    })();
    let Reached { state, next_expiry_ms } = reached.map_err(|failure| again.failed(failure))?;
    let (now, then) = (
        (state.time_ms, state.content_bytes, next_expiry_ms),
        (open.state.time_ms, open.state.content_bytes, open.next_expiry_ms),
    );
    if now == then {
        return Ok(());
    }
    Err(again.failed(Failure::Damaged(format!(
        "log time, bytes of records and first expiry were {then:?}, but are {now:?} after the \
         changes since {} were repeated",
        state.position
    ))))
}
