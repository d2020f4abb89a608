//! The SQLite state machine.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine::{
    Binding, Bound, Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotRoom,
    SnapshotView, StateMachine, snapshot_checksum,
};
use rusqlite::{Connection, ErrorCode};

use crate::sql::{self, Command, Reply};
use crate::store::{self, FILE, Position, Store};

/// SQLite as a state machine. Statements in the log are [`Command`]s with [`Reply`]s as replies;
/// queries are [`Command`]s too, and may only read.
///
/// Every node must run the same version of SQLite, because SQLite decides what a statement does.
pub struct SqliteMachine {
    dir: PathBuf,
    schema: String,
    /// Held by the thread that changes the database.
    writer: Mutex<Writer>,
    /// Queries do not wait for statements, only for each other.
    reader: Mutex<Connection>,
}

struct Writer {
    store: Store,
    /// As of the last transaction, or updated since and stored with the next one.
    position: Position,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // If a panic interrupted a transaction, the next BEGIN fails, which rolls it back and stops the
    // node.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SqliteMachine {
    /// Opens the database in `dir`, or creates one with this schema. The schema must be the same on
    /// every node; later changes go through the log.
    ///
    /// # Errors
    /// The database cannot be opened, or the schema is wrong.
    pub fn open(dir: impl Into<PathBuf>, schema: impl Into<String>) -> Result<Self> {
        let (dir, schema) = (dir.into(), schema.into());
        let store = Store::open(&dir, &schema)?;
        let (position, reader) = (store.position()?, store::reader(&store.path)?);
        Ok(Self {
            dir,
            schema,
            writer: Mutex::new(Writer { store, position }),
            reader: Mutex::new(reader),
        })
    }

    /// Replaces the open database by a new one.
    fn replace(&self, writer: &mut Writer, new: Store, position: Position) -> Result<()> {
        let reader = store::reader(&new.path)?;
        new.take_place(&self.dir)?;
        let before = std::mem::replace(writer, Writer { store: new, position });
        *lock(&self.reader) = reader;
        // Views that still read keep the file; a directory that cannot be removed now is removed at
        // the next start.
        if let Some(folder) = before.store.path.parent() {
            std::fs::remove_dir_all(folder).ok();
        }
        Ok(())
    }

    fn freeze(&self) -> Result<View> {
        let writer = lock(&self.writer);
        let connection = store::reader(&writer.store.path)?;
        // The first read freezes the view.
        connection.execute_batch("BEGIN")?;
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
        Ok(View { connection, last_included: writer.position.applied })
    }
}

/// A read connection that stays at one state.
struct View {
    connection: Connection,
    last_included: LogId,
}

impl SnapshotView for View {
    fn last_included(&self) -> LogId {
        self.last_included
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        self.write_within(dir, &SnapshotRoom::unlimited())
    }

    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        store::back_up(&self.connection, &dir.join(FILE), self.last_included, room)?;
        Ok(snapshot_checksum(dir)?)
    }
}

impl Drop for SqliteMachine {
    fn drop(&mut self) {
        // If the flush fails, the log supplies the rest again.
        self.flush().ok();
    }
}

#[async_trait]
impl StateMachine for SqliteMachine {
    fn get(&self, _key: &[u8]) -> Result<Option<Bytes>> {
        Err(Error::msg("this machine has no keys; send a SELECT through query()"))
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        let applied = self.last_applied();
        (entry_id > 0 && applied.index == entry_id).then_some(applied.term.get())
    }

    /// Runs one transaction for the chunk. A failed statement is a reply; a failed disk is an
    /// error.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut writer = lock(&self.writer);
        let mut position = writer.position.clone();
        let not_a_command = |error| format!("not a statement: {error}");
        let new: Vec<_> = chunk
            .iter()
            .filter(|entry| position.applied.index < entry.index)
            .map(|entry| {
                (entry, postcard::from_bytes::<Command>(&entry.data).map_err(not_a_command))
            })
            .collect();
        let Some((last, _)) = new.last() else { return Ok(()) };
        position.applied = last.id();
        let replies = writer.store.apply(&new, &position)?;
        writer.position = position;
        drop(writer);
        for ((entry, _), reply) in new.iter().zip(replies) {
            entry.reply(postcard::to_allocvec(&reply)?);
        }
        Ok(())
    }

    /// The number of rows in all tables; reads them all, concurrently with statements of the log.
    fn len(&self) -> usize {
        let rows = store::rows(&lock(&self.reader)).unwrap_or(0);
        usize::try_from(rows).unwrap_or(usize::MAX)
    }

    fn update_last_applied(&self, last: LogId) {
        let applied = &mut lock(&self.writer).position.applied;
        if last.index > applied.index {
            *applied = last;
        }
    }

    fn last_applied(&self) -> LogId {
        lock(&self.writer).position.applied
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        lock(&self.writer).position.snapshot = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        lock(&self.writer).position.snapshot.clone()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        if snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg(format_args!(
                "the snapshot at {} has a wrong checksum",
                path.display()
            )));
        }
        let mut writer = lock(&self.writer);
        let position = Position { applied: meta.last_included, ..writer.position.clone() };
        let new = Store::copy(&self.dir, &writer.store.next_folder(), &path.join(FILE), &position)?;
        self.replace(&mut writer, new, position)
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let view = self.freeze()?;
        if view.last_included > last_included {
            return Err(Error::msg(format_args!(
                "the state is at {}, not at {last_included}",
                view.last_included
            )));
        }
        Box::new(View { last_included, ..view }).write(&dir)
    }

    fn flush(&self) -> Result<()> {
        let writer = lock(&self.writer);
        writer.store.flush(&writer.position)
    }

    async fn reset(&self) -> Result<()> {
        let mut writer = lock(&self.writer);
        let new = Store::create(&self.dir, &writer.store.next_folder(), &self.schema)?;
        self.replace(&mut writer, new, Position::default())
    }

    fn durability(&self) -> Durability {
        Durability::Durable
    }

    fn name(&self) -> &str {
        "d-engine-examples/sqlite"
    }

    /// Accepts a [`Command`] of any SQL: whether SQLite accepts it depends on the tables, and this
    /// method must not read those.
    fn check(&self, command: &[u8]) -> Result<()> {
        postcard::from_bytes::<Command>(command)?;
        Ok(())
    }

    /// The history that the databases in this directory belong to, in a file beside them: it is
    /// kept when one database replaces another.
    fn bind(&self, binding: &Binding) -> Result<()> {
        let bound = store::binding(&self.dir)?;
        match binding.compare(bound.as_deref())? {
            Bound::Here => Ok(()),
            Bound::Store => store::bind(&self.dir, &binding.to_bytes()),
        }
    }

    /// A query may wait for the disk.
    fn reads_block(&self) -> bool {
        true
    }

    fn snapshot_bytes(&self) -> Option<u64> {
        lock(&self.writer).store.bytes().ok()
    }

    /// The database of a snapshot is copied beside the open one.
    fn install_bytes(&self, _meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        file_bytes
    }

    /// SQLite keeps a reader's state while a writer continues.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(Some(Box::new(self.freeze()?)))
    }

    /// Runs a [`Command`] that only reads, on the state between two chunks.
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let question: Command = postcard::from_bytes(request)?;
        let reply = match sql::run(&lock(&self.reader), &question) {
            Ok(reply) => reply,
            // A query that would change something is not a failure of this node.
            Err(error)
                if sql::is_of_this_node(&error)
                    && error.sqlite_error_code() != Some(ErrorCode::ReadOnly) =>
            {
                return Err(error.into());
            }
            Err(error) => Reply::Refused { reason: error.to_string() },
        };
        Ok(postcard::to_allocvec(&reply)?.into())
    }
}
