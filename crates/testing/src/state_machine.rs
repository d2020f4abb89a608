//! State machines: what a case is, and what the checks do with it.

pub mod checks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_replica::{Durability, Entry, LogId, SnapshotMetadata, StateMachine};
use d_engine_storage::Fs;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Violation;

type Open<M> = Box<dyn Fn(&Path) -> M + Send + Sync>;
pub(crate) type OpenOnFs<M> = Box<dyn Fn(Arc<dyn Fs>, &Path) -> M + Send + Sync>;
type Command = Box<dyn Fn(u64) -> Bytes + Send + Sync>;
type Contents<M> = Box<dyn Fn(&M) -> Vec<u8> + Send + Sync>;

/// What the kit has to know of a state machine.
pub struct StateMachineCase<M> {
    open: Open<M>,
    on_fs: Option<OpenOnFs<M>>,
    command: Command,
    contents: Contents<M>,
    undecodable: Vec<Bytes>,
    equal_files: bool,
    expiring: Option<Expiring>,
    question: Option<Command>,
    answers_all: bool,
    stops_on_undecodable: bool,
    notices_flips: bool,
}

/// A command whose effect ends by itself, and after how many milliseconds of log time.
struct Expiring {
    command: Bytes,
    after_ms: u64,
}

impl<M: StateMachine> StateMachineCase<M> {
    /// A machine that keeps its files, if it has any, in the directory that it is given. It is opened again where an
    /// earlier one was, and in copies of its directory; a new directory is empty.
    pub fn new(open: impl Fn(&Path) -> M + Send + Sync + 'static) -> Self {
        Self {
            open: Box::new(open),
            on_fs: None,
            command: Box::new(|n| Bytes::from(n.to_string())),
            contents: Box::new(|machine| machine.len().to_string().into_bytes()),
            undecodable: vec![Bytes::from_static(&[0xFF; 24]), Bytes::new()],
            equal_files: true,
            expiring: None,
            question: None,
            answers_all: true,
            stops_on_undecodable: false,
            notices_flips: false,
        }
    }

    /// The command with this number. Each must change the state, and differ from the others; a few should change what
    /// others have written. Default: the number as text.
    #[must_use]
    pub fn commands<C: Into<Bytes>>(mut self, command: impl Fn(u64) -> C + Send + Sync + 'static) -> Self {
        self.command = Box::new(move |n| command(n).into());
        self
    }

    /// All that a machine holds, in an order of its own that does not depend on how it came about; read in one piece, as
    /// a client would. Default: `len()` alone, which finds little: give your own.
    #[must_use]
    pub fn contents<C: Into<Vec<u8>>>(mut self, contents: impl Fn(&M) -> C + Send + Sync + 'static) -> Self {
        self.contents = Box::new(move |machine| contents(machine).into());
        self
    }

    /// A command that the machine cannot apply: it counts as refused and changes nothing. Default: 24 bytes of 0xFF, and
    /// none at all.
    #[must_use]
    pub fn undecodable(mut self, command: impl Into<Bytes>) -> Self {
        self.undecodable.push(command.into());
        self
    }

    /// The machine's `apply_chunk` fails on bytes that it cannot decode, which stops the node, here and at every start: its
    /// `check` must then refuse them, and it must never be given commands of another version.
    #[must_use]
    pub fn stops_on_undecodable(mut self) -> Self {
        self.stops_on_undecodable = true;
        self
    }

    /// A command whose effect on `contents` ends by itself `after_ms` milliseconds of log time (at least 10,000) later, and
    /// nothing else with it. For machines that offer `next_expiry_ms` and `advance_time`.
    #[must_use]
    pub fn expiring(mut self, command: impl Into<Bytes>, after_ms: u64) -> Self {
        self.expiring = Some(Expiring { command: command.into(), after_ms });
        self
    }

    /// The question with this number, for `query`. Two machines with the same state must answer alike.
    #[must_use]
    pub fn questions<Q: Into<Bytes>>(mut self, question: impl Fn(u64) -> Q + Send + Sync + 'static) -> Self {
        self.question = Some(Box::new(move |n| question(n).into()));
        self
    }

    /// The machine replies to no command, or not to all: callers get an empty answer.
    #[must_use]
    pub fn leaves_commands_unanswered(mut self) -> Self {
        self.answers_all = false;
        self
    }

    /// A durable machine whose files carry checksums: the kit flips bits in them and expects that none is served.
    #[must_use]
    pub fn notices_flipped_bits(mut self) -> Self {
        self.notices_flips = true;
        self
    }

    /// Equal states need not write equal snapshot files (a database file with free pages in it). Costs: a transfer that
    /// was cut cannot go on from another node.
    #[must_use]
    pub fn snapshots_may_differ(mut self) -> Self {
        self.equal_files = false;
        self
    }

    /// The same machine with all of its files on `fs`: then the kit can cut the power.
    #[must_use]
    pub fn on_fs(mut self, open: impl Fn(Arc<dyn Fs>, &Path) -> M + Send + Sync + 'static) -> Self {
        self.on_fs = Some(Box::new(open));
        self
    }
}

/// Term of every entry of the kit.
const TERM: u64 = 3;

/// A machine in a directory.
struct Subject<'a, M> {
    case: &'a StateMachineCase<M>,
    dir: TempDir,
    machine: Option<Arc<M>>,
    runtime: Runtime,
}

fn id(index: u64) -> LogId {
    LogId { term: if index == 0 { 0 } else { TERM }, index }
}

/// Log time of an entry: seconds apart, and the same in every run.
fn time_ms(index: u64) -> u64 {
    1_700_000_000_000 + index * 1_000
}

fn io(error: std::io::Error) -> Violation {
    format!("the kit could not do its work: {error}")
}

fn runtime() -> Result<Runtime, Violation> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().map_err(io)
}

impl<'a, M: StateMachine> Subject<'a, M> {
    /// A machine in a directory of its own, started, at the beginning.
    fn new(case: &'a StateMachineCase<M>) -> Result<Self, Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        Self::at(case, dir)
    }

    fn at(case: &'a StateMachineCase<M>, dir: TempDir) -> Result<Self, Violation> {
        std::fs::create_dir_all(dir.path().join("machine")).map_err(io)?;
        let runtime = runtime()?;
        let mut subject = Self { case, dir, machine: None, runtime };
        subject.open()?;
        Ok(subject)
    }

    /// One that is opened by somebody else, and started.
    fn with(case: &'a StateMachineCase<M>, open: impl FnOnce() -> M) -> Result<Self, Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let runtime = runtime()?;
        let machine = {
            let _inside = runtime.enter();
            Arc::new(open())
        };
        machine.start().map_err(|error| format!("start() failed on its own files: {error}"))?;
        Ok(Self { case, dir, machine: Some(machine), runtime })
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("machine")
    }

    /// Opens it as the engine does at a start: a machine that is rebuilt begins anew.
    fn open(&mut self) -> Result<(), Violation> {
        let machine = {
            // Whatever it starts in the background, it may start here as in the engine.
            let _inside = self.runtime.enter();
            Arc::new((self.case.open)(&self.home()))
        };
        machine.start().map_err(|error| format!("start() failed on its own directory: {error}"))?;
        self.machine = Some(machine);
        if !self.is_durable() { self.reset() } else { Ok(()) }
    }

    fn machine(&self) -> &M {
        match &self.machine {
            Some(machine) => machine,
            None => unreachable!("it is only taken to be opened again"),
        }
    }

    fn is_durable(&self) -> bool {
        self.machine().durability() == Durability::Durable
    }

    fn reset(&self) -> Result<(), Violation> {
        self.runtime.block_on(self.machine().reset()).map_err(|error| format!("reset() failed: {error}"))
    }

    /// Drops the machine without a `stop`, as a host does that forgets it, and opens it again.
    fn reopen(&mut self) -> Result<(), Violation> {
        self.machine = None;
        self.open()
    }

    /// The machine as it is when its process is killed now: what it still held in its own memory is gone.
    fn killed(&self) -> Result<Self, Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        crate::copy::copy_dir(&self.home(), &dir.path().join("machine")).map_err(io)?;
        Self::at(self.case, dir)
    }

    /// Applies commands as one chunk, as the engine does; returns the replies.
    fn apply(&self, first: u64, last: u64) -> Result<Vec<Option<Bytes>>, Violation> {
        let commands = (first..=last).map(|index| (index, (self.case.command)(index)));
        self.apply_all(commands).map_err(|error| format!("apply_chunk({first}..={last}) failed: {error}"))
    }

    fn apply_all(
        &self,
        commands: impl Iterator<Item = (u64, Bytes)>,
    ) -> Result<Vec<Option<Bytes>>, Violation> {
        let (chunk, probes): (Vec<Entry>, Vec<_>) = commands
            .map(|(index, command)| {
                let (entry, probe) = Entry::with_reply_probe(index, TERM, command);
                (entry.at_time_ms(time_ms(index)), probe)
            })
            .unzip();
        let last = chunk.last().map_or(0, |entry| entry.index);
        self.runtime.block_on(self.machine().apply_chunk(chunk)).map_err(|error| error.to_string())?;
        self.machine().update_last_applied(id(last));
        Ok(probes.iter().map(d_engine_replica::ReplyProbe::take).collect())
    }

    fn contents(&self) -> Vec<u8> {
        (self.case.contents)(self.machine())
    }

    /// Where it says it stands. One that is rebuilt is not asked.
    fn stands_at(&self, expected: u64, when: &str) -> Result<(), Violation> {
        let position = self.machine().last_applied();
        if self.is_durable() && position != id(expected) {
            return Err(format!("{when}, last_applied() is {position}; it must be {}", id(expected)));
        }
        Ok(())
    }

    fn holds(&self, expected: &[u8], when: &str) -> Result<(), Violation> {
        let found = self.contents();
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
        let from = |contents: &[u8]| shown(contents.get(at.saturating_sub(20)..).unwrap_or_default());
        Err(format!(
            "{when}, the machine holds {}, but it must hold {} (the first difference is at byte {at})",
            from(&found),
            from(expected)
        ))
    }

    /// Takes a snapshot the way the engine does; the view's, if there is one.
    fn snapshot(&self, label: u64) -> Result<(TempDir, SnapshotMetadata), Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let meta = self.snapshot_into(label, dir.path())?;
        Ok((dir, meta))
    }

    /// The same in a directory that is there.
    fn snapshot_into(&self, label: u64, dir: &Path) -> Result<SnapshotMetadata, Violation> {
        let machine = self.machine();
        let view = machine.snapshot_view().map_err(|error| format!("snapshot_view() failed: {error}"))?;
        let checksum = match view {
            Some(view) => view.write(dir).map_err(|error| format!("SnapshotView::write: {error}"))?,
            None => {
                let generated = machine.generate_snapshot_data(dir.to_owned(), id(label));
                self.runtime
                    .block_on(generated)
                    .map_err(|error| format!("generate_snapshot_data: {error}"))?
            }
        };
        Ok(SnapshotMetadata::new(id(label), checksum))
    }

    /// Takes a snapshot the other way, also where there is a view.
    fn generate(&self, label: u64) -> Result<(TempDir, SnapshotMetadata), Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let generated = self.machine().generate_snapshot_data(dir.path().to_owned(), id(label));
        let checksum = self.runtime.block_on(generated);
        let checksum = checksum.map_err(|error| format!("generate_snapshot_data: {error}"))?;
        Ok((dir, SnapshotMetadata::new(id(label), checksum)))
    }

    /// Tells log time at an entry, as a tick does.
    fn tick(&self, index: u64, time_ms: u64) -> Result<(), Violation> {
        let told = self.machine().advance_time(id(index), time_ms);
        told.map_err(|error| format!("advance_time({index}) failed: {error}"))?;
        self.machine().update_last_applied(id(index));
        Ok(())
    }

    fn install(&self, meta: &SnapshotMetadata, dir: &Path) -> Result<(), Violation> {
        let installed = self.machine().apply_snapshot_from_file(meta, dir.to_owned());
        self.runtime.block_on(installed).map_err(|error| error.to_string())
    }
}

/// The contents after 0, 1, ... `last` commands, applied one by one.
fn states<M: StateMachine>(case: &StateMachineCase<M>, last: u64) -> Result<Vec<Vec<u8>>, Violation> {
    let reference = Subject::new(case)?;
    let mut states = vec![reference.contents()];
    for index in 1..=last {
        reference.apply(index, index)?;
        states.push(reference.contents());
    }
    if states.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("the case is too weak: each of its commands must change what `contents` tells".to_owned());
    }
    Ok(states)
}

/// Contents for a message: text if they are, and not all of them.
fn shown(contents: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(contents);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], contents.len()),
        None => format!("{text:?}"),
    }
}
