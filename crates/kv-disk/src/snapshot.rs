//! Writes a database into a snapshot and back as streams: memory holds one record, and the cache.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use d_engine_fs::Fs;
use d_engine_kv::snapshot_file::{
    SnapshotFileError, SnapshotFileReader, SnapshotFileWriter, SnapshotHead, SnapshotRecord,
};
use d_engine_kv_language::rules::KvTable;
use d_engine_locks::Unpoisoned;
use d_engine_state_machine::{LogId, Result, SnapshotRoom, SnapshotView, snapshot_checksum_in};
use redb::ReadTransaction;

use crate::database::Database;
use crate::error::{DiskKvError, Failure};
use crate::state::State;
use crate::tables::{FrozenRecords, Tables};

/// A frozen state that is being written into a snapshot. While it exists, pages that it needs
/// cannot be reused, so the file grows with every change; beyond a limit the machine cancels the
/// view.
pub(crate) struct View {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) last_included: LogId,
    pub(crate) time_ms: u64,
    pub(crate) frozen: Arc<Frozen>,
    /// The database being read; another one may have replaced it.
    pub(crate) database: Arc<Database>,
}

/// State shared by the machine and the writer of a view.
pub(crate) struct Frozen {
    /// `None`: the view is being written, or was cancelled.
    transaction: Mutex<Option<ReadTransaction>>,
    /// File length in bytes when the view was taken.
    pub(crate) began_at: u64,
    /// File length in bytes when the view was cancelled; 0: not cancelled.
    grown_to: AtomicU64,
}

impl Frozen {
    pub(crate) fn new(transaction: ReadTransaction, began_at: u64) -> Self {
        Self { transaction: Mutex::new(Some(transaction)), began_at, grown_to: AtomicU64::new(0) }
    }

    fn transaction(&self) -> MutexGuard<'_, Option<ReadTransaction>> {
        self.transaction.lock().unpoisoned()
    }

    /// Cancels the view because the file has grown too far: its pages are needed.
    pub(crate) fn give_up(&self, grown_to: u64) {
        self.grown_to.store(grown_to, Ordering::Release);
        let transaction = self.transaction().take();
        drop(transaction);
    }

    /// The file length at which the view was cancelled; `None`: not cancelled.
    pub(crate) fn given_up_at(&self) -> Option<u64> {
        Some(self.grown_to.load(Ordering::Acquire)).filter(|grown_to| *grown_to > 0)
    }

    /// Takes the read transaction. The reader checks between two records whether the view was
    /// cancelled.
    pub(crate) fn take(&self) -> Option<ReadTransaction> {
        self.transaction().take()
    }

    fn check(&self) -> Result<(), WriteError> {
        match self.given_up_at() {
            None => Ok(()),
            Some(grown_to) => Err(WriteError::GivenUp { began_at: self.began_at, grown_to }),
        }
    }
}

/// Errors while records are written.
enum WriteError {
    Database(Failure),
    File(SnapshotFileError),
    Room(d_engine_state_machine::Error),
    GivenUp { began_at: u64, grown_to: u64 },
}

impl From<Failure> for WriteError {
    fn from(failure: Failure) -> Self {
        Self::Database(failure)
    }
}

impl From<SnapshotFileError> for WriteError {
    fn from(error: SnapshotFileError) -> Self {
        Self::File(error)
    }
}

impl View {
    fn write_file(&self, dir: &Path, room: &SnapshotRoom<'_>) -> Result<(), WriteError> {
        // Released at the end of this call, or earlier when the view is cancelled.
        let transaction = self.frozen.take();
        self.frozen.check()?;
        let Some(transaction) = transaction else { return Ok(()) };
        let records = FrozenRecords::open(&transaction, self.time_ms)?;
        let head = SnapshotHead {
            last_included: self.last_included,
            records: records.len()?,
            time_ms: self.time_ms,
        };
        let mut out = SnapshotFileWriter::create(&*self.fs, dir, &head)?;
        records.try_for_each(|key, value, expires_ms| {
            self.frozen.check()?;
            room.written((key.len() + value.len()) as u64).map_err(WriteError::Room)?;
            out.write(&SnapshotRecord { key, value, expires_ms }).map_err(WriteError::File)
        })?;
        Ok(out.finish()?)
    }
}

impl SnapshotView for View {
    fn last_included(&self) -> LogId {
        self.last_included
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        self.write_within(dir, &SnapshotRoom::unlimited())
    }

    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        match self.write_file(dir, room) {
            Ok(()) => Ok(snapshot_checksum_in(&*self.fs, dir)?),
            Err(WriteError::File(error)) => Err(error.into()),
            Err(WriteError::Room(error)) => Err(error),
            Err(WriteError::Database(failure)) => Err(self.database.failed(failure).into()),
            Err(WriteError::GivenUp { began_at, grown_to }) => {
                let path = self.database.path().to_owned();
                Err(DiskKvError::ViewGivenUp { path, began_at, grown_to }.into())
            }
        }
    }
}

/// How many bytes of records are put into a new database at a time.
const BYTES_AT_A_TIME: usize = 4 << 20;

/// Puts every record of a snapshot into a new database, and makes it durable once the whole file
/// has been verified.
pub(crate) fn fill(
    database: &Database,
    input: &mut SnapshotFileReader,
    state: &mut State,
) -> Result<Option<u64>> {
    state.position = input.head().last_included;
    state.time_ms = input.head().time_ms;
    state.content_bytes = 0;
    let mut first_expiry: Option<u64> = None;
    let mut is_whole = false;
    while !is_whole {
        let transaction = database.begin_lazy()?;
        let failed = |failure| database.failed(failure);
        {
            let mut tables = Tables::open(&transaction, state).map_err(failed)?;
            let mut bytes = 0;
            while bytes < BYTES_AT_A_TIME {
                let Some(SnapshotRecord { key, value, expires_ms }) = input.next()? else {
                    is_whole = true;
                    break;
                };
                tables.insert(key, value, expires_ms).map_err(failed)?;
                if let Some(at) = expires_ms {
                    tables.note_expiry(at, key).map_err(failed)?;
                    first_expiry = Some(first_expiry.map_or(at.get(), |first| first.min(at.get())));
                }
                bytes += key.len() + value.len();
            }
            state.content_bytes = tables.content_bytes();
        }
        transaction.commit().map_err(|error| database.failed(error.into()))?;
    }
    database.commit_durably(state)?;
    Ok(first_expiry)
}
