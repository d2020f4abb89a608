//! One database: the data of the log's statements and, in a separate table, the position, changed
//! in the same transaction.
//!
//! Every database has its own directory, and the file `CURRENT` names the directory in use; it is
//! replaced by a rename. So a database is replaced in one step, together with the files that SQLite
//! keeps beside it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use d_engine::{Entry, Error, LogId, Result, SnapshotMetadata, SnapshotRoom};
use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _};

use crate::sql::{self, Command, Reply, Watch};

/// The machine's own table.
pub(crate) const OWN_TABLE: &str = "_d_engine";
/// The database's file name, in its directory and in a snapshot.
pub(crate) const FILE: &str = "state.db";
const POINTER: &str = "CURRENT";
const BINDING: &str = "BINDING";

/// The position of a database.
#[derive(Clone, Default)]
pub(crate) struct Position {
    pub(crate) applied: LogId,
    pub(crate) snapshot: Option<SnapshotMetadata>,
}

/// An open database.
pub(crate) struct Store {
    pub(crate) path: PathBuf,
    connection: Connection,
    watch: Watch,
}

impl Store {
    /// Opens the database that `CURRENT` names, or creates one with this schema; removes the
    /// remains of others.
    pub(crate) fn open(dir: &Path, schema: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let current = match fs::read_to_string(dir.join(POINTER)) {
            Ok(name) => name.trim().to_owned(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Self::create(dir, "1", schema)?.take_place(dir)?;
                "1".to_owned()
            }
            Err(error) => return Err(error.into()),
        };
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() && entry.file_name() != *current {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Self::at(dir.join(current).join(FILE))
    }

    /// Creates a database with this schema in a new directory, not yet in use.
    pub(crate) fn create(dir: &Path, folder: &str, schema: &str) -> Result<Self> {
        let store = Self::at(new_folder(dir, folder)?.join(FILE))?;
        store.connection.execute_batch(&format!(
            "BEGIN; CREATE TABLE {OWN_TABLE} (one INTEGER PRIMARY KEY CHECK (one = 1), term \
             INTEGER, position INTEGER, snapshot_term INTEGER, snapshot_index INTEGER, \
             snapshot_format INTEGER, snapshot_checksum BLOB); {schema}; COMMIT"
        ))?;
        store.flush(&Position::default())?;
        Ok(store)
    }

    /// Copies the database of a snapshot into a new directory and checks its integrity.
    pub(crate) fn copy(
        dir: &Path,
        folder: &str,
        snapshot: &Path,
        position: &Position,
    ) -> Result<Self> {
        let path = new_folder(dir, folder)?.join(FILE);
        fs::copy(snapshot, &path)?;
        let store = Self::at(path)?;
        let verdict: String =
            store.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
        if verdict != "ok" {
            return Err(Error::msg(format_args!("the snapshot is damaged: {verdict}")));
        }
        let last_included = store.position()?.applied;
        if last_included != position.applied {
            return Err(Error::msg(format_args!(
                "the snapshot is at {last_included}, not at {}",
                position.applied
            )));
        }
        store.flush(position)?;
        File::open(&store.path)?.sync_all()?;
        Ok(store)
    }

    fn at(path: PathBuf) -> Result<Self> {
        let mut connection = Connection::open(&path)?;
        // A commit survives a process crash at once, and a power loss after `flush`.
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        connection.execute_batch("PRAGMA synchronous = NORMAL; PRAGMA trusted_schema = OFF")?;
        let watch = Watch::default();
        sql::guard(&mut connection, &watch)?;
        Ok(Self { path, connection, watch })
    }

    /// Puts this database into use.
    pub(crate) fn take_place(&self, dir: &Path) -> Result<()> {
        let folder = self
            .path
            .parent()
            .ok_or_else(|| Error::msg("the path of the database has no parent directory"))?;
        File::open(folder)?.sync_all()?;
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        replace(dir, POINTER, name.as_bytes())
    }

    /// The directory of the next database.
    pub(crate) fn next_folder(&self) -> String {
        let folder = self.path.parent().and_then(Path::file_name).unwrap_or_default();
        let number = folder.to_string_lossy().parse::<u64>().unwrap_or(0);
        number.wrapping_add(1).to_string()
    }

    pub(crate) fn position(&self) -> Result<Position> {
        let sql = format!(
            "SELECT term, position, snapshot_term, snapshot_index, snapshot_format, \
             snapshot_checksum FROM {OWN_TABLE}"
        );
        let found = self.connection.query_row(&sql, [], |row| {
            let number = |at| row.get::<_, i64>(at).map(i64::cast_unsigned);
            let applied = LogId::of(number(0)?, number(1)?);
            let snapshot = match row.get::<_, Option<[u8; 32]>>(5)? {
                Some(checksum) => {
                    let last_included = LogId::of(number(2)?, number(3)?);
                    Some(SnapshotMetadata::new(last_included, checksum).with_format(row.get(4)?))
                }
                None => None,
            };
            Ok(Position { applied, snapshot })
        });
        Ok(found.optional()?.unwrap_or_default())
    }

    fn store_position(&self, position: &Position) -> rusqlite::Result<()> {
        let snapshot = position.snapshot.as_ref();
        let last_included = snapshot.map(|meta| meta.last_included);
        let term = |id: LogId| id.term.get().cast_signed();
        let index = |id: LogId| id.index.get().cast_signed();
        let sql = format!("INSERT OR REPLACE INTO {OWN_TABLE} VALUES (1, ?1, ?2, ?3, ?4, ?5, ?6)");
        self.connection.prepare(&sql)?.execute(rusqlite::params![
            term(position.applied),
            index(position.applied),
            last_included.map(term),
            last_included.map(index),
            snapshot.map(|meta| meta.format),
            snapshot.map(|meta| meta.checksum.as_slice()),
        ])?;
        Ok(())
    }

    /// Makes everything so far, and the position, survive a power loss.
    pub(crate) fn flush(&self, position: &Position) -> Result<()> {
        // A commit with full synchronisation syncs everything written before it.
        self.connection.execute_batch("PRAGMA synchronous = FULL")?;
        let stored = self.store_position(position);
        self.connection.execute_batch("PRAGMA synchronous = NORMAL")?;
        Ok(stored?)
    }

    /// Executes a chunk in one transaction, with the position after it; returns a reply for each
    /// entry.
    pub(crate) fn apply(
        &self,
        chunk: &[(&Entry, Result<Command, String>)],
        position: &Position,
    ) -> Result<Vec<Reply>> {
        // `INSERT OR ROLLBACK` and `RAISE(ROLLBACK)` end the transaction, which also contains other
        // clients' statements. Such a statement is refused, and the chunk is executed again without
        // it.
        let mut refused = vec![false; chunk.len()];
        loop {
            self.connection.execute_batch("BEGIN IMMEDIATE")?;
            let applied = self.try_apply(chunk, &mut refused);
            let done = match applied {
                Ok(None) => continue,
                Ok(Some(replies)) => self
                    .store_position(position)
                    .and_then(|()| self.connection.execute_batch("COMMIT"))
                    .map(|()| replies),
                Err(error) => Err(error),
            };
            return done.map_err(|error| {
                if !self.connection.is_autocommit() {
                    // The first error matters more than an error of the rollback.
                    self.connection.execute_batch("ROLLBACK").ok();
                }
                error.into()
            });
        }
    }

    /// `None`: a statement ended the transaction; it is now marked.
    fn try_apply(
        &self,
        chunk: &[(&Entry, Result<Command, String>)],
        refused: &mut [bool],
    ) -> rusqlite::Result<Option<Vec<Reply>>> {
        let mut replies = Vec::with_capacity(chunk.len());
        for ((entry, command), refused) in chunk.iter().zip(refused) {
            let reply = match command {
                Err(reason) => Reply::Refused { reason: reason.clone() },
                Ok(_) if *refused => {
                    let reason = "it would have rolled back other clients' statements; use ABORT \
                                  instead of ROLLBACK";
                    Reply::Refused { reason: reason.to_owned() }
                }
                Ok(command) => match self.run_of_log(entry, command)? {
                    Some(reply) => reply,
                    None => {
                        *refused = true;
                        return Ok(None);
                    }
                },
            };
            replies.push(reply);
        }
        Ok(Some(replies))
    }

    /// Executes one statement of the log, all of it or nothing. `None`: it ended the transaction.
    fn run_of_log(&self, entry: &Entry, command: &Command) -> rusqlite::Result<Option<Reply>> {
        self.connection.execute_batch("SAVEPOINT entry")?;
        self.watch.time_ms.store(entry.time_ms().cast_signed(), Ordering::Release);
        self.watch.is_of_log.store(true, Ordering::Release);
        let done = sql::run(&self.connection, command);
        self.watch.is_of_log.store(false, Ordering::Release);
        if self.connection.is_autocommit() {
            return match done {
                Err(error) if sql::is_of_this_node(&error) => Err(error),
                _ => Ok(None),
            };
        }
        let reply = match done {
            Ok(reply) => reply,
            Err(error) if sql::is_of_this_node(&error) => return Err(error),
            Err(error) => {
                self.connection.execute_batch("ROLLBACK TO entry")?;
                Reply::Refused { reason: error.to_string() }
            }
        };
        self.connection.execute_batch("RELEASE entry")?;
        Ok(Some(reply))
    }

    /// The size of the database in bytes, and so of a snapshot of it.
    pub(crate) fn bytes(&self) -> Result<u64> {
        let sql = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()";
        Ok(self.connection.query_row(sql, [], |row| row.get::<_, i64>(0))?.cast_unsigned())
    }
}

/// The number of rows in all tables, as a connection sees them.
pub(crate) fn rows(connection: &Connection) -> Result<u64> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' \
               ESCAPE '\\' AND name <> ?1";
    let mut tables = connection.prepare(sql)?;
    let names = tables.query_map([OWN_TABLE], |row| row.get::<_, String>(0))?;
    let mut rows = 0;
    for name in names {
        let sql = format!("SELECT count(*) FROM \"{}\"", name?.replace('"', "\"\""));
        rows += connection.query_row(&sql, [], |row| row.get::<_, i64>(0))?.cast_unsigned();
    }
    Ok(rows)
}

/// What [`bind`] stored; `None`: nothing yet.
pub(crate) fn binding(dir: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(dir.join(BINDING)) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Stores which history the databases in this directory belong to.
pub(crate) fn bind(dir: &Path, binding: &[u8]) -> Result<()> {
    replace(dir, BINDING, binding)
}

/// Replaces the contents of a small file in one durable step.
fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let unfinished = dir.join(format!("{name}.new"));
    let mut file = File::create(&unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(unfinished, dir.join(name))?;
    Ok(File::open(dir)?.sync_all()?)
}

fn new_folder(dir: &Path, folder: &str) -> Result<PathBuf> {
    let folder = dir.join(folder);
    if folder.exists() {
        // Remove what a crash left.
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// A read-only connection.
pub(crate) fn reader(path: &Path) -> Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // Attach no other file.
    connection.authorizer(Some(|context: rusqlite::hooks::AuthContext<'_>| {
        match context.action {
            rusqlite::hooks::AuthAction::Attach { .. }
            | rusqlite::hooks::AuthAction::Pragma { .. } => rusqlite::hooks::Authorization::Deny,
            _ => rusqlite::hooks::Authorization::Allow,
        }
    }))?;
    Ok(connection)
}

/// How many pages are copied at a time.
const PAGES: i32 = 256;

/// Copies the state that a connection reads into a new file, as of this position.
pub(crate) fn back_up(
    from: &Connection,
    to: &Path,
    last_included: LogId,
    room: &SnapshotRoom<'_>,
) -> Result<()> {
    let mut copy = Connection::open(to)?;
    // Clients' statements run on `from`, which refuses pragmas; both files have the size that is
    // the default.
    let page_bytes: u64 =
        copy.query_row("PRAGMA page_size", [], |row| row.get::<_, u32>(0))?.into();
    let backup = Backup::new(from, &mut copy)?;
    loop {
        match backup.step(PAGES)? {
            StepResult::Done => break,
            StepResult::More => room.written(u64::from(PAGES.unsigned_abs()) * page_bytes)?,
            // Another connection holds a lock for a moment.
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    drop(backup);
    // Make it a single self-contained file.
    copy.query_row("PRAGMA journal_mode = DELETE", [], |_| Ok(()))?;
    let sql = format!("UPDATE {OWN_TABLE} SET term = ?1, position = ?2");
    let (term, index) = (last_included.term.get(), last_included.index.get());
    copy.execute(&sql, [term.cast_signed(), index.cast_signed()])?;
    drop(copy);
    Ok(File::open(to)?.sync_all()?)
}
