//! The trait that an application implements.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Binding, Entry, Error, LogId, Result, SnapshotRoom};

/// How a state machine survives a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// In memory. At a start the engine calls [`StateMachine::reset`], restores the newest snapshot
    /// and applies the log after it. It ignores the [`StateMachine::last_applied`] of an earlier
    /// process.
    #[default]
    Rebuilt,
    /// The state machine stores its data and its last applied index in one atomic step. At a start
    /// the engine continues from [`StateMachine::last_applied`].
    Durable,
}

/// What a snapshot contains, and how to verify it.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SnapshotMetadata {
    /// The last entry whose effect is in the snapshot.
    pub last_included: LogId,
    /// The checksum of the snapshot's files; see `snapshot_checksum`.
    pub checksum: [u8; 32],
    /// The [`StateMachine::snapshot_format`] of the machine that wrote the files.
    pub format: u32,
}

impl SnapshotMetadata {
    /// Metadata of a snapshot of format 0 that holds everything up to `last_included`.
    #[must_use]
    pub fn new(last_included: LogId, checksum: [u8; 32]) -> Self {
        Self { last_included, checksum, format: 0 }
    }

    /// The same for files of another format.
    #[must_use]
    pub fn with_format(self, format: u32) -> Self {
        Self { format, ..self }
    }
}

/// A frozen view of a state machine's state, written out while further entries are applied. It is
/// written, and dropped, on the snapshot thread.
pub trait SnapshotView: Send {
    /// The last entry whose effect is in the view.
    fn last_included(&self) -> LogId;

    /// Writes the view into the empty directory `dir`; returns the checksum of what was written.
    ///
    /// # Errors
    /// Any error that prevents writing the files. The snapshot is abandoned and retried later; no
    /// state is lost. A panic stops the node with the reason.
    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]>;

    /// As [`SnapshotView::write`], with the free space; this is the method that the engine calls. A
    /// view that may be large reports what it writes to `room` and returns the error that `room`
    /// returns. By default nothing is reported, and a snapshot that does not fit may use up the
    /// free space for a while.
    ///
    /// # Errors
    /// As [`SnapshotView::write`], and those of [`SnapshotRoom::written`].
    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        let _ = room;
        self.write(dir)
    }
}

/// The application: it turns committed commands into state and answers queries.
///
/// State must depend on the entries alone, so that every replica has the same state: no clock (use
/// [`Entry::time_ms`]), no random source, no unordered iteration.
///
/// # What to write
/// [`apply_chunk`](Self::apply_chunk), [`len`](Self::len),
/// [`generate_snapshot_data`](Self::generate_snapshot_data),
/// [`apply_snapshot_from_file`](Self::apply_snapshot_from_file) and [`reset`](Self::reset) have no
/// default: only the machine knows its state. Every other method has a default that is right for a
/// machine in memory ([`Durability::Rebuilt`]) that needs nothing there.
///
/// A [`Durability::Durable`] machine also writes [`durability`](Self::durability),
/// [`last_applied`](Self::last_applied), [`update_last_applied`](Self::update_last_applied),
/// [`flush`](Self::flush), [`update_last_snapshot_metadata`](Self::update_last_snapshot_metadata)
/// and [`snapshot_metadata`](Self::snapshot_metadata). The engine refuses to go on with one that
/// does not report or flush its position, and the conformance kit finds each of them missing.
///
/// A machine that wraps another one forwards every method: a default would hide the inner one's.
///
/// # Threads
/// Methods are called from several threads concurrently. Methods that change state are called by
/// one thread at a time.
///
/// | method | thread | may it wait, for a disk or a lock? |
/// |---|---|---|
/// | every method that a start calls: `bind`, `start`, `reset`, an install, `flush`, the positions | one for blocking work | yes: the start waits |
/// | `apply_chunk`, `advance_time`, `update_*`, `persist_*`, `flush`, `stop`, `save_hard_state`, `next_expiry_ms`, `snapshot_view`, `apply_snapshot_from_file`, `entry_term`, `last_applied`, `snapshot_metadata` | the apply thread of the group | yes, but whatever waits for apply waits too; a leader whose machine hangs for longer than the longest election timeout transfers leadership to a voter that has applied more |
/// | `generate_snapshot_data` | the apply thread, up to `snapshots.pause_max_ms` | yes; apply waits |
/// | `SnapshotView::write_within`, `scrub` | the snapshot thread | yes |
/// | `get`, `query` | the caller's own, beside apply | no, unless [`StateMachine::reads_block`] says so: then a thread for blocking work |
/// | `check`, `command_version` | the caller's own | no |
/// | `is_running`, `len` | one for blocking work | yes; a status waits for each of them for at most a second |
/// | `snapshot_metadata`, `install_bytes` | also that of a snapshot that is sent or received, beside apply | yes; only that snapshot waits |
/// | `snapshot_bytes`, `snapshot_format`, `command_version_max`, `name`, `durability`, `reads_block` | any | no |
#[async_trait]
pub trait StateMachine: Send + Sync + 'static {
    /// Called once at a start, after [`StateMachine::bind`] and before everything else. Default:
    /// nothing.
    ///
    /// # Errors
    /// The node does not start; the operator sees the text.
    fn start(&self) -> Result<()> {
        Ok(())
    }

    /// Called at shutdown after the last entry, and if the start fails after
    /// [`StateMachine::start`]; may be called more than once. Default: nothing.
    ///
    /// # Errors
    /// Logged; the shutdown continues.
    fn stop(&self) -> Result<()> {
        Ok(())
    }

    /// Whether the machine can serve. While it returns `false`, panics or does not answer within a
    /// second, the node's status is not ready; reads and commands are still passed to it. Default:
    /// it can.
    fn is_running(&self) -> bool {
        true
    }

    /// The current value of `key`. Called after the read barrier, concurrently with `apply_chunk`;
    /// must never observe a part of an entry.
    ///
    /// # Errors
    /// `ReadError::StateMachine` with this text for the caller; a panic has the same result. The
    /// node continues. The default returns that `get` is not supported.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let _ = key;
        Err(Error::unsupported("get"))
    }

    /// The term of the entry with this index, if the machine knows it; `None`, the default, means
    /// unknown. The engine asks for the machine's own position: at the start of a `Durable`
    /// machine, and before each snapshot. If the term differs from the log's, the node does not
    /// start, or no snapshot is taken; the message names both terms.
    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        let _ = entry_id;
        None
    }

    /// Applies committed commands in order, all or nothing. Replies are given through
    /// [`Entry::reply`]; a reply after the return is dropped and counted (`late_replies` in the
    /// node's status). A refused command (a failed compare, an unknown account) is a reply, not an
    /// error.
    ///
    /// A `Durable` machine must ignore entries up to its `last_applied()`, so that a chunk that is
    /// delivered again after a crash changes nothing, and must report the last entry of the chunk
    /// there when this returns. A `Rebuilt` machine needs no position: the engine keeps it, and
    /// delivers every entry once after each start.
    ///
    /// # Errors
    /// An error means that nothing of the chunk was applied and that this replica cannot continue:
    /// the state machine is halted at the chunk. Its node continues to persist and to vote, and
    /// reports where it is halted in its status. Callers whose commands are in flight receive
    /// `ProposeError::OutcomeUnknown`, later ones `ProposeError::Stopped`. If the chunk has one
    /// entry, the status names it, and an operator may have it skipped; otherwise a restart applies
    /// the entries of the chunk one by one to find it. A panic is treated as an error after which
    /// the state is unknown: nothing is applied until the process is restarted. A command that
    /// every node would refuse must be refused in [`StateMachine::check`], or answered by a reply.
    ///
    /// An error of a `Durable` machine that is a lack of space ([`Error::is_out_of_space`]) does
    /// not halt it: the same chunk is delivered again in about a second.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()>;

    /// The number of records in the machine. Called for the status only; may be expensive.
    fn len(&self) -> usize;

    /// Whether the machine holds nothing. A `Durable` machine that holds nothing and has applied
    /// nothing receives the newest snapshot at a start.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reports how far the log has been applied, including entries that carry no command: after
    /// every chunk, every tick, and an install. Default: nothing, because the engine keeps the
    /// position of a `Rebuilt` machine. A `Durable` machine moves its position, never back; until
    /// it has, no snapshot of it is taken.
    fn update_last_applied(&self, last: LogId) {
        let _ = last;
    }

    /// The last applied entry. The default, index 0, is right for a `Rebuilt` machine alone. A
    /// `Durable` machine that does not report the chunk that it has just applied stops its node: at
    /// the next start it would be given the same commands again. At a start it must lie inside the
    /// log, and not before the snapshot that [`StateMachine::snapshot_metadata`] names; otherwise
    /// the node does not start, or restores the machine from a snapshot.
    fn last_applied(&self) -> LogId {
        LogId::default()
    }

    /// Asks a machine to store its position after entries without a command, which
    /// [`update_last_applied`](Self::update_last_applied) reported. Called after every 10,000
    /// entries, before the log is purged up to a snapshot, after an install at a start, and at
    /// shutdown. Default: nothing, because such entries change no data and may be reported again.
    ///
    /// # Errors
    /// Stops the node with the reason; at a start the node does not start.
    fn persist_last_applied(&self, last: LogId) -> Result<()> {
        let _ = last;
        Ok(())
    }

    /// Reports the newest snapshot, after one was taken or installed, and at a start the newest
    /// existing one if [`StateMachine::snapshot_metadata`] names another. Default: nothing.
    ///
    /// # Errors
    /// Stops the node with the reason; at a start the node does not start.
    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        let _ = meta;
        Ok(())
    }

    /// The newest snapshot that was reported to the machine. Its archive is retained meanwhile, but
    /// may be missing or damaged after a start: then the newest existing one is reported. A
    /// `Durable` machine stores it, so that a start detects that the machine has lost data that it
    /// had flushed. Default: `None`, the machine does not remember it; the engine keeps it in the
    /// archive.
    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        None
    }

    /// Asks the machine to store what `update_last_snapshot_metadata` reported. Default:
    /// [`StateMachine::flush`].
    ///
    /// # Errors
    /// Stops the node with the reason; at a start the node does not start. Exception: after an
    /// error for lack of space ([`Error::is_out_of_space`]) the node continues, does not purge its
    /// log up to that snapshot, and reports the next one.
    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        let _ = meta;
        self.flush()
    }

    /// Replaces the whole state by a snapshot, atomically: a crash leaves the old state or the new
    /// one. `path` is a directory with the files that `generate_snapshot_data` wrote. It is removed
    /// as soon as the future has returned, so copy or move what must stay; do not link to it.
    ///
    /// A `Durable` machine without space for two copies may remove the old state first, if until
    /// the new one is complete its durable position is 0: the next start then installs the snapshot
    /// again. No read may observe a partial state.
    ///
    /// # Errors
    /// The old state must stay. The node stops with the reason, or does not start: its log begins
    /// after the snapshot already, and the next start installs the same snapshot again. A panic has
    /// the same result. Exception: a running node with a `Durable` machine that returns an error
    /// for lack of space ([`Error::is_out_of_space`]) continues, and calls this again with the
    /// files unpacked anew, after pauses of 1 to 30 s, until there is space. Nothing else is
    /// applied meanwhile.
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()>;

    /// Writes the state as of `last_included` into the empty directory `dir`; returns the checksum
    /// of the files ([`snapshot_checksum`](crate::snapshot_checksum)). Apply waits meanwhile, for
    /// at most `snapshots.pause_max_ms`: then the future is dropped.
    /// [`StateMachine::snapshot_view`] is the alternative without a pause.
    ///
    /// Allowed are regular files in directories of depth up to 16, at most 65,536 of them; paths in
    /// UTF-8, up to 1,024 bytes, without backslashes and control characters.
    ///
    /// `dir` belongs to this attempt alone and is never reused. A dropped future may leave blocking
    /// work behind (`spawn_blocking`, `tokio::fs`); that work may continue to write into its own
    /// `dir`, and must touch nothing else: neither the machine's state nor anything that a later
    /// attempt uses. `dir` may be removed by then, so such work must end at its first error. Equal
    /// states should write equal files: then an interrupted download can resume from any node.
    ///
    /// # Errors
    /// The snapshot is abandoned; no state is lost, and it is retried later. A panic stops the
    /// node.
    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]>;

    /// Called some time after the engine has persisted a changed term or vote; one call may stand
    /// for several changes. Default: nothing, because both are the engine's.
    ///
    /// # Errors
    /// Logged; the node continues.
    fn save_hard_state(&self) -> Result<()> {
        Ok(())
    }

    /// Makes everything applied so far survive a power loss (`Durable`); `Rebuilt` machines do
    /// nothing. Called before a snapshot is reported to the machine, before the log is purged up to
    /// it, after an install, and at shutdown. A machine may call it in its own `Drop`; the engine
    /// does not rely on that.
    ///
    /// # Errors
    /// Stops the node with the reason; at a start the node does not start, and at shutdown the
    /// error is logged. The default returns an error for a `Durable` machine: if it did nothing,
    /// the log would be purged of entries that the machine may still lose.
    fn flush(&self) -> Result<()> {
        match self.durability() {
            Durability::Rebuilt => Ok(()),
            Durability::Durable => Err(Error::msg(
                "a state machine that declares Durability::Durable must implement flush()",
            )),
        }
    }

    /// Returns to the initial state, also after a crash halfway; what [`StateMachine::bind`] stored
    /// stays. Called at every start of a `Rebuilt` machine, and of a `Durable` one before it is
    /// rebuilt from a snapshot because its position lies outside its log.
    ///
    /// # Errors
    /// Refuses the node's start.
    async fn reset(&self) -> Result<()>;

    /// Whether the machine's state survives a restart. Default: it does not, and the engine builds
    /// it anew at each start. A machine that stores its state, keeps this default and reports its
    /// position after [`StateMachine::start`] is refused.
    fn durability(&self) -> Durability {
        Durability::Rebuilt
    }

    /// The version of the files that this machine writes into a snapshot, and the highest version
    /// that it reads. A snapshot with a higher version is refused before it is received, and is not
    /// treated as damage. Raise it only when every node runs a program that reads it.
    fn snapshot_format(&self) -> u32 {
        0
    }

    /// A frozen view of the state; `None`, the default, if the machine has no views: then apply
    /// pauses while [`StateMachine::generate_snapshot_data`] runs. The view's
    /// [`last_included`](SnapshotView::last_included) is the last applied entry; otherwise the
    /// snapshot is abandoned.
    ///
    /// # Errors
    /// The snapshot is abandoned and retried later; no state is lost. A panic stops the node.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(None)
    }

    /// The kind of state machine, as `organisation/name`. It is stored in snapshots and sent to
    /// other nodes, which refuse a node that runs another kind. At most 255 bytes; must not change
    /// while the node runs. Empty (the default): not compared.
    fn name(&self) -> &str {
        ""
    }

    /// Whether these bytes are a command. Called before a command is proposed; what is refused here
    /// never reaches the log. The decision must depend on the bytes alone, never on the state, and
    /// take bounded time: other nodes may be asked about the same bytes, and the state may change
    /// before the command is applied.
    ///
    /// Every command that reaches [`StateMachine::apply_chunk`] must be answered there
    /// nevertheless: it was accepted by the program of the leader at that time, which may have been
    /// newer or older.
    ///
    /// # Errors
    /// `ProposeError::Refused` with this text for the caller; a panic has the same result. The node
    /// continues.
    fn check(&self, command: &[u8]) -> Result<()> {
        let _ = command;
        Ok(())
    }

    /// The highest version of a command that this program decodes; it must decode all lower ones
    /// too. Raise it together with a new kind of command. Each node announces it, and a leader
    /// refuses a command of a higher version than every voter decodes
    /// (`ProposeError::NewerCommand`). So old and new programs may run side by side while a cluster
    /// is upgraded node by node. Must not change while the node runs.
    ///
    /// An older program that meets an entry of a higher version, in its log or in a snapshot, stops
    /// with the reason before [`StateMachine::apply_chunk`] sees it. The node continues once a
    /// newer program is started.
    fn command_version_max(&self) -> u32 {
        0
    }

    /// The version of this command, read from the bytes alone. An older program must recognize the
    /// version of a command that it does not decode, so keep it where every program looks for it,
    /// in the first byte for example. Called before a command is proposed, beside
    /// [`StateMachine::check`], and must take bounded time; `check` is not called for a version
    /// above [`StateMachine::command_version_max`], because this program cannot judge it.
    ///
    /// Bytes without a version are of version 0: `check` refuses them, or
    /// [`StateMachine::apply_chunk`] answers them. A panic is `ProposeError::Refused` for the
    /// caller; the node continues.
    fn command_version(&self, command: &[u8]) -> u32 {
        let _ = command;
        0
    }

    /// Called once at a start, first of all methods, with the identity of the history in the node's
    /// data directory. A `Durable` machine stores it with its data and refuses files that are bound
    /// to another history: [`Binding::compare`] decides. A binding survives [`StateMachine::reset`]
    /// and an install.
    ///
    /// # Errors
    /// The node does not start. If the files are opened only in `start`, it may refuse there
    /// instead.
    fn bind(&self, binding: &Binding) -> Result<()> {
        let _ = binding;
        Ok(())
    }

    /// Whether [`StateMachine::get`] and [`StateMachine::query`] may wait for a disk. They then run
    /// on threads for blocking work instead of the caller's, which costs each read about ten
    /// microseconds.
    fn reads_block(&self) -> bool {
        false
    }

    /// Reads everything that the machine has stored and verifies its checksums, concurrently with
    /// all other calls, so that damage is found before the last good copy is gone. Called once a
    /// day, on the snapshot thread; must return early when the machine is stopped.
    ///
    /// # Errors
    /// Stops the node with the reason, because damaged data must not be served. The next start
    /// restores the state from the snapshot and the log, if the machine discards what is damaged.
    /// Exception: an error that is, or whose sources include, a [`std::io::Error`] of another kind
    /// than `InvalidData` and `UnexpectedEof` means that the disk could not be read. It is logged,
    /// and the scrub is retried after an hour.
    fn scrub(&self) -> Result<()> {
        Ok(())
    }

    /// The approximate size in bytes of the next snapshot's files, if the machine knows it. The
    /// engine checks the free space before anything is written.
    fn snapshot_bytes(&self) -> Option<u64> {
        None
    }

    /// The disk space in bytes that the machine needs to install a snapshot whose files have
    /// `file_bytes`, beside the archive and those files: for a second copy that replaces the old
    /// state, for example. A snapshot without enough space is not received.
    fn install_bytes(&self, meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        let _ = (meta, file_bytes);
        0
    }

    /// A query beyond a single key, answered from one applied state. Called after the read barrier,
    /// concurrently with `apply_chunk`; must never observe a part of an entry.
    ///
    /// # Errors
    /// `ReadError::StateMachine` with this text for the caller; a panic has the same result. The
    /// node continues. The default returns [`Error::unsupported`], which the caller receives as
    /// `ReadError::Unsupported`.
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let _ = request;
        Err(Error::unsupported("query"))
    }

    /// The log time, in milliseconds since 1970, at which the machine next needs
    /// [`StateMachine::advance_time`]; `None`, the default, if nothing expires. Read after every
    /// job of the apply thread. Once a leader's log time has reached it, the leader appends a tick,
    /// within a heartbeat interval.
    fn next_expiry_ms(&self) -> Option<u64> {
        None
    }

    /// Reports the log time of a tick, in milliseconds since 1970, between the commands before and
    /// after it. `at` is the tick's own entry. Commands carry their log time themselves
    /// ([`Entry::time_ms`]); what expires must do so in both cases. A `Durable` machine stores `at`
    /// as its position in the same step, and ignores a tick up to its
    /// [`last_applied`](Self::last_applied). Default: nothing.
    ///
    /// # Errors
    /// As [`StateMachine::apply_chunk`]: an error means that nothing was changed and that this
    /// replica cannot continue. The state machine is halted at the tick `at`, which an operator may
    /// have skipped; the node continues to persist and to vote. After a panic nothing is applied
    /// until the process is restarted.
    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        let _ = (at, time_ms);
        Ok(())
    }
}
