//! Statements: their encoding, and the rules that make their effect the same on every node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ToSql};
use serde::{Deserialize, Serialize};

use crate::store::OWN_TABLE;

/// A value of a parameter or of a result.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Value {
    /// No value.
    Null,
    /// A whole number.
    Integer(i64),
    /// A number with a fraction.
    Real(f64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Integer(number)
    }
}

impl From<ValueRef<'_>> for Value {
    fn from(value: ValueRef<'_>) -> Self {
        match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(number) => Self::Integer(number),
            ValueRef::Real(number) => Self::Real(number),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into_owned()),
            ValueRef::Blob(bytes) => Self::Blob(bytes.to_vec()),
        }
    }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(number) => ValueRef::Integer(*number),
            Self::Real(number) => ValueRef::Real(*number),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
            Self::Blob(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

/// A statement with its parameters: one that changes something, for the log, or a query.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Command {
    /// One statement, with `?1`, `?2`... for the parameters.
    pub sql: String,
    /// The parameters.
    pub parameters: Vec<Value>,
}

impl Command {
    /// A statement with its parameters.
    pub fn new(sql: impl Into<String>, parameters: impl IntoIterator<Item = Value>) -> Self {
        Self { sql: sql.into(), parameters: parameters.into_iter().collect() }
    }

    /// The encoded form.
    ///
    /// # Errors
    /// Never for a `Command`; postcard's signature requires it.
    pub fn encode(&self) -> Result<Vec<u8>, postcard::Error> {
        postcard::to_allocvec(self)
    }
}

/// The result of a statement.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// The statement was executed.
    Done {
        /// Rows that it inserted, changed or deleted.
        changed: u64,
        /// The rows it returned: `RETURNING`, or those of a query.
        rows: Vec<Vec<Value>>,
    },
    /// The statement was refused; nothing was changed.
    Refused {
        /// Why.
        reason: String,
    },
}

impl Reply {
    /// Decodes the reply to a proposed statement, or the response to a query.
    ///
    /// # Errors
    /// The bytes are from another state machine.
    pub fn decode(bytes: &[u8]) -> Result<Self, postcard::Error> {
        postcard::from_bytes(bytes)
    }
}

/// Executes one statement.
pub(crate) fn run(connection: &Connection, command: &Command) -> rusqlite::Result<Reply> {
    let before = connection.total_changes();
    let mut statement = connection.prepare(&command.sql)?;
    let columns = statement.column_count();
    let mut found = statement.query(rusqlite::params_from_iter(&command.parameters))?;
    let mut rows = Vec::new();
    while let Some(row) = found.next()? {
        let row: rusqlite::Result<Vec<Value>> =
            (0..columns).map(|at| Ok(row.get_ref(at)?.into())).collect();
        rows.push(row?);
    }
    drop(found);
    Ok(Reply::Done { changed: connection.total_changes().saturating_sub(before), rows })
}

/// Whether the node failed, not the statement: then the node must stop, because the others have
/// executed the statement.
pub(crate) fn is_of_this_node(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(
            ErrorCode::InternalMalfunction
                | ErrorCode::PermissionDenied
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::OutOfMemory
                | ErrorCode::ReadOnly
                | ErrorCode::OperationInterrupted
                | ErrorCode::SystemIoFailure
                | ErrorCode::DatabaseCorrupt
                | ErrorCode::DiskFull
                | ErrorCode::CannotOpen
                | ErrorCode::FileLockingProtocolFailed
                | ErrorCode::NoLargeFileSupport
                | ErrorCode::NotADatabase
        )
    )
}

/// Context for a connection that executes the log's statements.
#[derive(Clone, Default)]
pub(crate) struct Watch {
    /// The log time of the statement, in UNIX milliseconds: the same on every node.
    pub(crate) time_ms: Arc<AtomicI64>,
    /// Whether the statement comes from the log or is the machine's own.
    pub(crate) is_of_log: Arc<AtomicBool>,
}

/// Functions whose results differ between nodes, or between two process starts of a node.
const NEVER: &[&str] = &[
    "random",
    "randomblob",
    "current_timestamp",
    "current_date",
    "current_time",
    "last_insert_rowid",
    "changes",
    "total_changes",
    "sqlite_version",
    "sqlite_source_id",
];

/// Date functions, with the number of arguments from which they read no clock.
const DATES: &[(&str, usize)] = &[
    ("date", 1),
    ("time", 1),
    ("datetime", 1),
    ("julianday", 1),
    ("unixepoch", 1),
    ("strftime", 2),
    ("timediff", 2),
];

/// Arguments that make a date function read the clock or the host's time zone.
const CLOCKS: &[&str] = &["now", "localtime", "utc", "subsec", "subsecond"];

fn refusal(text: String) -> rusqlite::Error {
    rusqlite::Error::UserFunctionError(text.into())
}

/// Replaces functions whose results would differ between nodes by the machine's own, and confines
/// statements to the replicated database. A function is replaced in the connection, not searched
/// for in the text, so defaults, triggers and views use the replacement too.
pub(crate) fn guard(connection: &mut Connection, watch: &Watch) -> rusqlite::Result<()> {
    for name in NEVER {
        connection.create_scalar_function(*name, -1, FunctionFlags::SQLITE_UTF8, move |_| {
            Err::<i64, _>(refusal(format!(
                "{name}() is not the same on every node; send the value as a parameter, or use \
                 log_time_ms()"
            )))
        })?;
    }
    for (name, needed) in DATES {
        // The built-in function, on a separate connection.
        let plain = Connection::open_in_memory()?;
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        connection.create_scalar_function(*name, -1, flags, move |context| {
            built_in(&plain, name, *needed, context)
        })?;
    }
    let time_ms = Arc::clone(&watch.time_ms);
    connection.create_scalar_function("log_time_ms", 0, FunctionFlags::SQLITE_UTF8, move |_| {
        Ok(time_ms.load(Ordering::Acquire))
    })?;
    let is_of_log = Arc::clone(&watch.is_of_log);
    connection.authorizer(Some(move |context: AuthContext<'_>| {
        if is_of_log.load(Ordering::Acquire) && leaves_the_database(&context.action) {
            Authorization::Deny
        } else {
            Authorization::Allow
        }
    }))
}

fn built_in(
    plain: &Connection,
    name: &str,
    needed: usize,
    context: &Context<'_>,
) -> rusqlite::Result<rusqlite::types::Value> {
    let arguments: Vec<Value> = (0..context.len()).map(|at| context.get_raw(at).into()).collect();
    let asks_a_clock = |value: &Value| match value {
        Value::Text(text) => CLOCKS.iter().any(|word| text.trim().eq_ignore_ascii_case(word)),
        _ => false,
    };
    if arguments.len() < needed || arguments.iter().any(asks_a_clock) {
        return Err(refusal(format!(
            "{name}() with the clock or the time zone is not the same on every node; use \
             {name}(log_time_ms() / 1000, 'unixepoch') or send the time as a parameter"
        )));
    }
    let marks = vec!["?"; arguments.len()].join(", ");
    let sql = format!("SELECT {name}({marks})");
    plain.query_row(&sql, rusqlite::params_from_iter(&arguments), |row| row.get(0))
}

/// Refuses other files, connection settings, transaction control, anything that is not part of a
/// snapshot, and the machine's own table.
fn leaves_the_database(action: &AuthAction<'_>) -> bool {
    match action {
        AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Pragma { .. }
        | AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::CreateTempIndex { .. }
        | AuthAction::CreateTempTable { .. }
        | AuthAction::CreateTempTrigger { .. }
        | AuthAction::CreateTempView { .. } => true,
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. } => table_name.eq_ignore_ascii_case(OWN_TABLE),
        _ => false,
    }
}
