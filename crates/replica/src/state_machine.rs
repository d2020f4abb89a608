//! The trait that an application implements.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Binding, Entry, Error, LogId, Result, SnapshotRoom};

/// How a state machine survives a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Durability {
    /// In memory. At start the engine calls [`StateMachine::reset`], restores the last snapshot and
    /// applies the log again. [`StateMachine::last_applied`] of an earlier life is not believed.
    #[default]
    Rebuilt,
    /// Data and last applied index are stored by the state machine itself in one atomic step. At
    /// start the engine goes on from [`StateMachine::last_applied`].
    Durable,
}

/// What a snapshot is of, and how to tell that it is whole.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct SnapshotMetadata {
    /// The last entry whose effect is in the snapshot.
    pub last_included: LogId,
    /// The checksum of the snapshot's files; see `snapshot_checksum`.
    pub checksum: [u8; 32],
    /// The [`StateMachine::snapshot_format`] of whoever wrote the files.
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

/// A frozen view of a state machine's state, written out while entries go on being applied.
pub trait SnapshotView: Send {
    /// The last entry whose effect is in the view.
    fn label(&self) -> LogId;

    /// Writes the view into the empty directory `dir`; returns the checksum of what was written.
    ///
    /// # Errors
    /// Anything that keeps the files from being written; the snapshot is then given up, no state is
    /// lost.
    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]>;

    /// The same, told how much room there is: this is what the engine calls. A view that may be large reports what it writes
    /// to `room` and ends with the error that this returns; by default nothing is reported, and a snapshot that does not
    /// fit may take all room there is for a while.
    ///
    /// # Errors
    /// As [`SnapshotView::write`], and those of [`SnapshotRoom::written`].
    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        let _ = room;
        self.write(dir)
    }
}

/// The application: it turns committed commands into state and answers questions about it.
///
/// Everything that changes state must come from the entries alone, so that every replica has the
/// same state: no clock (use [`Entry::time_ms`]), no random source, no unordered iteration.
///
/// # Threads
/// Methods are called from several threads, beside one another. What changes state is called by one worker at a time.
///
/// | method | thread | may it wait, for a disk or a lock? |
/// |---|---|---|
/// | `bind`, `start`, `reset` and an install at a start | one for blocking work | yes: the start waits |
/// | `apply_chunk`, `advance_time`, `update_*`, `persist_*`, `flush`, `stop`, `save_hard_state`, `next_expiry_ms`, `snapshot_view`, `apply_snapshot_from_file`, `entry_term`, `last_applied`, `snapshot_metadata` | the apply thread of the group | yes, but whatever waits for apply waits too; a node whose machine hangs for longer than an election timeout gives leadership up |
/// | `generate_snapshot_data` | the apply thread, up to `snapshots.pause_max_ms` | yes; apply waits |
/// | `SnapshotView::write_within`, `scrub` | the snapshot thread | yes |
/// | `get`, `query` | the caller's own, beside apply | no, unless [`StateMachine::reads_block`] says so: then a thread for blocking work |
/// | `check`, `command_version` | the caller's own | no |
/// | `is_running`, `len`, `is_empty` | one that asks for the status | yes; a status does not wait for long |
/// | `install_bytes`, `snapshot_bytes`, `snapshot_format`, `command_version_max`, `name`, `durability` | any | no |
#[async_trait]
pub trait StateMachine: Send + Sync + 'static {
    /// Called once, before anything else.
    ///
    /// # Errors
    /// An error refuses the node's start and is shown to the operator.
    fn start(&self) -> Result<()>;

    /// Called at shutdown after the last entry; may be called more than once.
    ///
    /// # Errors
    /// Logged; the shutdown goes on.
    fn stop(&self) -> Result<()>;

    /// Whether the machine can serve; part of the node's readiness.
    fn is_running(&self) -> bool;

    /// The current value under `key`. Called after the read barrier, beside `apply_chunk`; must
    /// never see half of an entry.
    ///
    /// # Errors
    /// Given to the caller of the read; the node goes on.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// The term of the entry with this index, if the machine knows it. `None` means unknown. A term
    /// that differs from the log's refuses the node's start.
    fn entry_term(&self, entry_id: u64) -> Option<u64>;

    /// Applies committed commands in order, all or nothing. Answers travel through
    /// [`Entry::reply`]; one that comes after the return is dropped and counted (`late_replies` in the node's status). A refused command (a failed compare, an unknown account) is a reply, not
    /// an error.
    ///
    /// A `Durable` machine must ignore entries up to its `last_applied()`, so that a chunk
    /// delivered again after a crash changes nothing.
    ///
    /// # Errors
    /// An error means that nothing of the chunk was applied and that this replica cannot go on: the state machine stands there.
    /// Its node goes on storing and voting, answers its callers [`Stopped`](crate::ProposeError::Stopped), and says in its status at
    /// which entry. A panic is taken for an error that may have left anything behind: the machine is not used again until the process
    /// is started anew. Whatever every node would refuse must be refused in [`StateMachine::check`], or answered by a reply.
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()>;

    /// How many records the machine holds. May be expensive; never called on a hot path.
    fn len(&self) -> usize;

    /// Whether the machine holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tells how far the log has been applied, also for entries that carry no command.
    fn update_last_applied(&self, last: LogId);

    /// The last applied entry. Believed at start only for [`Durability::Durable`].
    fn last_applied(&self) -> LogId;

    /// Asks a machine that keeps its position apart from its data to store it.
    ///
    /// # Errors
    /// Stops the node with the reason.
    fn persist_last_applied(&self, last: LogId) -> Result<()>;

    /// Tells which snapshot is the newest, after one was made or installed.
    ///
    /// # Errors
    /// Stops the node with the reason.
    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()>;

    /// The newest snapshot that the machine was told of. Its archive is kept for as long as that lasts, but may be gone or
    /// damaged after a start: then the machine is told of the newest one that is there.
    fn snapshot_metadata(&self) -> Option<SnapshotMetadata>;

    /// Asks the machine to store what `update_last_snapshot_metadata` told it.
    ///
    /// # Errors
    /// Stops the node with the reason.
    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()>;

    /// Replaces the whole state by a snapshot, atomically: a crash leaves the old state or the new
    /// one. `path` is a directory with the files that `generate_snapshot_data` wrote; it is removed as soon as the
    /// future has returned, so what is to stay of them must be copied or moved, not linked to.
    ///
    /// A `Durable` machine that has no room for two copies may give the old state up first, if it stands at position 0,
    /// durably, until the new one is whole: the next start then installs the snapshot again. Nobody may see a half.
    ///
    /// # Errors
    /// The old state must stay. The node stops with the reason: its log lies behind the snapshot already, and the next
    /// start offers the same one again.
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()>;

    /// Writes the state as of `last_included` into the empty directory `dir`; returns the checksum
    /// of the files ([`snapshot_checksum`](crate::snapshot_checksum)). Apply waits meanwhile, for `snapshots.pause_max_ms` at most: then the
    /// future is dropped. See [`StateMachine::snapshot_view`] for the other way.
    ///
    /// Regular files in directories of any depth up to 16, at most 65,536 of them; paths of UTF-8, up to 1,024 bytes,
    /// without backslashes and control characters.
    ///
    /// `dir` is of this attempt alone and never used again. A future that is dropped may leave blocking work behind
    /// (`spawn_blocking`, `tokio::fs`); that may go on writing into its own `dir`, and must touch nothing else: neither the
    /// machine's state nor anything that a later attempt uses. `dir` may be gone by then, so such work ends at its
    /// first error. Equal states should write equal files: then a transfer that was cut goes on from any
    /// node.
    ///
    /// # Errors
    /// The snapshot is given up; no state is lost, and it is tried again later. A panic stops the node.
    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]>;

    /// Told after the engine has stored a changed term or vote. Most machines have nothing to do.
    ///
    /// # Errors
    /// Logged.
    fn save_hard_state(&self) -> Result<()>;

    /// Makes everything applied so far survive a power cut (`Durable`); `Rebuilt` machines have
    /// nothing to do. Called before the log is purged, before shutdown, and from `Drop`.
    ///
    /// # Errors
    /// Stops the node with the reason.
    fn flush(&self) -> Result<()>;

    /// Back to the initial state, also after a crash in the middle; what [`StateMachine::bind`] stored stays. Called at
    /// every start of a `Rebuilt` machine, and of a `Durable` one before it is filled anew from a snapshot because it stands
    /// outside its log.
    ///
    /// # Errors
    /// Refuses the node's start.
    async fn reset(&self) -> Result<()>;

    /// Whether the state survives a restart by itself.
    fn durability(&self) -> Durability {
        Durability::Rebuilt
    }

    /// The version of the files that this machine writes into a snapshot, and the highest that it reads. A snapshot
    /// with a higher one is refused before anything of it is received, and is not taken for damage. Raise it
    /// only when every node runs a program that reads it.
    fn snapshot_format(&self) -> u32 {
        0
    }

    /// A frozen view of the state, or none: then apply pauses while a snapshot is generated.
    ///
    /// # Errors
    /// The snapshot is given up.
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        Ok(None)
    }

    /// What kind of state machine this is, as `organisation/name`: carried in snapshots and told to other nodes, which
    /// refuse a node that runs another kind. At most 255 bytes; must not change while the node runs. Empty (the
    /// default): not compared.
    fn name(&self) -> &str {
        ""
    }

    /// Whether these bytes are a command. Asked before a command is proposed; what is refused here never reaches the
    /// log. It judges the bytes alone, never the state, in bounded time: other nodes may be asked the same, and the
    /// state may have changed before the command is applied.
    ///
    /// A machine that takes everything must still answer every command in [`StateMachine::apply_chunk`]: a command in
    /// the log was accepted by the program that led then, which may have been a newer or an older one.
    ///
    /// # Errors
    /// `ProposeError::Refused` with this text for the caller, as for a panic; the node goes on.
    fn check(&self, command: &[u8]) -> Result<()> {
        let _ = command;
        Ok(())
    }

    /// The highest version of a command that this program decodes; it must decode all lower ones too. Raise it together
    /// with a new kind of command. Each node announces it, and a leader refuses a command of a higher version than
    /// every voter decodes (`ProposeError::NewerCommand`): so old and new programs may run beside one another while a
    /// cluster is upgraded node by node. Must not change while the node runs.
    ///
    /// An older program that meets an entry of a higher version, in its log or in a snapshot, stops with the reason before
    /// [`StateMachine::apply_chunk`] sees it; it goes on as soon as a newer program is started.
    fn command_version_max(&self) -> u32 {
        0
    }

    /// The version of this command, judged from the bytes alone: an older program must tell the version also of a
    /// command that it does not decode, so keep it where every program looks for it, in the first byte for example.
    /// Asked before a command is proposed, beside [`StateMachine::check`] and in bounded time; `check` is not asked
    /// about a version above [`StateMachine::command_version_max`], because this program cannot judge it.
    ///
    /// Bytes that hold no version are of version 0: `check` refuses them, or [`StateMachine::apply_chunk`] answers them.
    /// A panic is `ProposeError::Refused` for the caller; the node goes on.
    fn command_version(&self, command: &[u8]) -> u32 {
        let _ = command;
        0
    }

    /// Told once, before [`StateMachine::start`], which history the node's data directory holds. A `Durable` machine
    /// stores it with its data and refuses files that are bound to another one: [`Binding::compare`] decides. A binding
    /// outlives [`StateMachine::reset`] and an install.
    ///
    /// # Errors
    /// Refuses the node's start. `start` may refuse in its place, if the files are opened only there.
    fn bind(&self, binding: &Binding) -> Result<()> {
        let _ = binding;
        Ok(())
    }

    /// Whether [`StateMachine::get`] and [`StateMachine::query`] may wait for a disk: they then run on threads for blocking
    /// work, which costs each read some ten microseconds, and not on the caller's.
    fn reads_block(&self) -> bool {
        false
    }

    /// Reads everything that the machine has stored and compares its checksums, beside whatever goes on, so that damage is
    /// found before the last good copy is gone. Called once a day, on the snapshot thread; it ends early when the
    /// machine is stopped.
    ///
    /// # Errors
    /// Stops the node with the reason: what is damaged must not be served. The next start brings the state back from the
    /// snapshot and the log, if the machine gives up what is damaged. Not so an error that is, or whose sources include,
    /// a [`std::io::Error`] of another kind than `InvalidData` and `UnexpectedEof`: the disk could not be read, which is
    /// logged, and the scrub comes again after an hour.
    fn scrub(&self) -> Result<()> {
        Ok(())
    }

    /// About how many bytes the files of the next snapshot will have, if the machine can tell: room is asked for before
    /// anything is written.
    fn snapshot_bytes(&self) -> Option<u64> {
        None
    }

    /// How many bytes of the disk the machine itself needs while it installs a snapshot whose files have `file_bytes`,
    /// beside the archive and those files: for a second copy, which takes the place of the old state. A snapshot for
    /// which there is no room is not received.
    fn install_bytes(&self, meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        let _ = (meta, file_bytes);
        0
    }

    /// A question richer than one key, answered from one applied state.
    ///
    /// # Errors
    /// Given to the caller of the query. The default says that queries are not supported.
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let _ = request;
        Err(Error::unsupported("query"))
    }

    /// The log time at which the machine next wants to be told the time.
    fn next_expiry_ms(&self) -> Option<u64> {
        None
    }

    /// Tells log time, in log order.
    ///
    /// # Errors
    /// Stops the node with the reason.
    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        let _ = (at, time_ms);
        Ok(())
    }
}
