//! From a database into a snapshot and back, as streams: what is in memory is one record, and the cache.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use d_engine_proto::key_value::rules::KvTable;
use d_engine_proto::key_value::snapshot_file::{
    SnapshotFileError, SnapshotFileReader, SnapshotFileWriter, SnapshotHead, SnapshotRecord,
};
use d_engine_replica::{LogId, Result, SnapshotRoom, SnapshotView, snapshot_checksum_in};
use d_engine_storage::Fs;
use redb::ReadTransaction;

use crate::database::Database;
use crate::error::{DiskKvError, Failure};
use crate::state::State;
use crate::tables::{FrozenRecords, Tables};

/// A frozen state on its way into a snapshot. As long as it lives, pages that it needs are not written anew, so the
/// file grows by what is changed meanwhile: the machine gives it up beyond a bound.
pub(crate) struct View {
    pub(crate) fs: Arc<dyn Fs>,
    pub(crate) label: LogId,
    pub(crate) time_ms: u64,
    pub(crate) frozen: Arc<Frozen>,
    /// The database that is read; another one may have taken its place.
    pub(crate) database: Arc<Database>,
}

/// What the machine and the writer of a view share.
pub(crate) struct Frozen {
    /// `None`: it is being written, or was given up.
    transaction: Mutex<Option<ReadTransaction>>,
    /// Bytes that the file had when the view was taken.
    pub(crate) began_at: u64,
    /// Bytes that it has when it was given up; 0: it was not.
    grown_to: AtomicU64,
}

impl Frozen {
    pub(crate) fn new(transaction: ReadTransaction, began_at: u64) -> Self {
        Self { transaction: Mutex::new(Some(transaction)), began_at, grown_to: AtomicU64::new(0) }
    }

    fn transaction(&self) -> MutexGuard<'_, Option<ReadTransaction>> {
        self.transaction.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file has grown so far: the pages are needed.
    pub(crate) fn give_up(&self, grown_to: u64) {
        self.grown_to.store(grown_to, Ordering::Release);
        let transaction = self.transaction().take();
        drop(transaction);
    }

    /// The bytes that the file had grown to when it was given up; `None`: it was not.
    pub(crate) fn given_up_at(&self) -> Option<u64> {
        Some(self.grown_to.load(Ordering::Acquire)).filter(|grown_to| *grown_to > 0)
    }

    /// What is read. Whoever takes it asks between two records whether it was given up.
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

/// What can happen while records are written.
enum WriteError {
    Database(Failure),
    File(SnapshotFileError),
    Room(d_engine_replica::Error),
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
        // Gone with this call, or with the view's being given up before it.
        let transaction = self.frozen.take();
        self.frozen.check()?;
        let Some(transaction) = transaction else { return Ok(()) };
        let records = FrozenRecords::open(&transaction, self.time_ms)?;
        let head = SnapshotHead { label: self.label, records: records.len()?, time_ms: self.time_ms };
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
    fn label(&self) -> LogId {
        self.label
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

/// Bytes of records that are put into a new database at a time.
const BYTES_AT_A_TIME: usize = 4 << 20;

/// Puts every record of a snapshot into a new database, and makes it durable once the file has been found whole.
pub(crate) fn fill(
    database: &Database,
    input: &mut SnapshotFileReader,
    state: &mut State,
) -> Result<Option<u64>> {
    state.position = input.head().label;
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
