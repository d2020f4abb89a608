//! The description of a state machine under test, and the driver that the checks use.

pub mod checks;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use d_engine_state_machine::{Durability, Entry, LogId, SnapshotMetadata, StateMachine};
use d_engine_storage::Fs;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::Violation;

type Open<M> = Box<dyn Fn(&Path) -> M + Send + Sync>;
pub(crate) type OpenOnFs<M> = Box<dyn Fn(Arc<dyn Fs>, &Path) -> M + Send + Sync>;
type Command = Box<dyn Fn(u64) -> Bytes + Send + Sync>;
type Contents<M> = Box<dyn Fn(&M) -> Vec<u8> + Send + Sync>;

/// What the kit needs to know about a state machine.
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

/// A command whose effect expires, and after how many milliseconds of log time.
struct Expiring {
    command: Bytes,
    after_ms: u64,
}

impl<M: StateMachine> StateMachineCase<M> {
    /// A state machine that keeps its files, if it has any, in the given directory. The kit also
    /// opens it in a directory that an earlier instance used, and in copies of that directory. A
    /// new directory is empty.
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

    /// The command with this number. Each command must change the state and differ from the others;
    /// a few should change what others have written. Default: the number as text.
    #[must_use]
    pub fn commands<C: Into<Bytes>>(
        mut self,
        command: impl Fn(u64) -> C + Send + Sync + 'static,
    ) -> Self {
        self.command = Box::new(move |n| command(n).into());
        self
    }

    /// Everything the machine holds, read in one piece as a client would read it, in a canonical
    /// order that does not depend on the order of writes. The default is `len()` alone, which
    /// detects little: supply your own.
    #[must_use]
    pub fn contents<C: Into<Vec<u8>>>(
        mut self,
        contents: impl Fn(&M) -> C + Send + Sync + 'static,
    ) -> Self {
        self.contents = Box::new(move |machine| contents(machine).into());
        self
    }

    /// A command that the machine cannot apply: it must be refused and change nothing. Default: 24
    /// bytes of 0xFF, and an empty command.
    #[must_use]
    pub fn undecodable(mut self, command: impl Into<Bytes>) -> Self {
        self.undecodable.push(command.into());
        self
    }

    /// Declares that `apply_chunk` fails on bytes that it cannot decode, which halts the machine of
    /// every node at that entry, now and after every start. `check` must then refuse such bytes,
    /// and the machine must never be given commands of another version.
    #[must_use]
    pub fn stops_on_undecodable(mut self) -> Self {
        self.stops_on_undecodable = true;
        self
    }

    /// A command whose effect on `contents` expires `after_ms` milliseconds of log time later (at
    /// least 10,000) and has no other effect. For machines that implement `next_expiry_ms` and
    /// `advance_time`.
    #[must_use]
    pub fn expiring(mut self, command: impl Into<Bytes>, after_ms: u64) -> Self {
        self.expiring = Some(Expiring { command: command.into(), after_ms });
        self
    }

    /// The query with this number, for `query`. Two machines with the same state must return the
    /// same response.
    #[must_use]
    pub fn questions<Q: Into<Bytes>>(
        mut self,
        question: impl Fn(u64) -> Q + Send + Sync + 'static,
    ) -> Self {
        self.question = Some(Box::new(move |n| question(n).into()));
        self
    }

    /// Declares that the machine does not reply to every command: callers then get an empty reply.
    #[must_use]
    pub fn leaves_commands_unanswered(mut self) -> Self {
        self.answers_all = false;
        self
    }

    /// Declares a durable machine whose files carry checksums. The kit flips bits in the files and
    /// expects that no corrupt data is served.
    #[must_use]
    pub fn notices_flipped_bits(mut self) -> Self {
        self.notices_flips = true;
        self
    }

    /// Declares that equal states may write different snapshot files (for example a database file
    /// with free pages). The cost: an interrupted snapshot receive cannot resume from another node.
    #[must_use]
    pub fn snapshots_may_differ(mut self) -> Self {
        self.equal_files = false;
        self
    }

    /// Opens the same machine with all of its files on `fs`, so that the kit can cut the power.
    #[must_use]
    pub fn on_fs(mut self, open: impl Fn(Arc<dyn Fs>, &Path) -> M + Send + Sync + 'static) -> Self {
        self.on_fs = Some(Box::new(open));
        self
    }
}

/// The term of every entry the kit applies.
const TERM: u64 = 3;

/// A machine under test and its directory.
struct Subject<'a, M> {
    case: &'a StateMachineCase<M>,
    dir: TempDir,
    machine: Option<Arc<M>>,
    runtime: Runtime,
}

fn id(index: u64) -> LogId {
    LogId::of(if index == 0 { 0 } else { TERM }, index)
}

/// The log time of an entry: one second apart, and the same in every run.
fn time_ms(index: u64) -> u64 {
    1_700_000_000_000 + index * 1_000
}

fn io(error: std::io::Error) -> Violation {
    format!(
        "the conformance kit itself failed: {error}; check the temporary directory and free space"
    )
}

fn runtime() -> Result<Runtime, Violation> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().map_err(io)
}

impl<'a, M: StateMachine> Subject<'a, M> {
    /// A started machine in a new directory, in its initial state.
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

    /// A machine that `open` creates; started here.
    fn with(case: &'a StateMachineCase<M>, open: impl FnOnce() -> M) -> Result<Self, Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let runtime = runtime()?;
        let machine = {
            let _inside = runtime.enter();
            Arc::new(open())
        };
        machine.start().map_err(|error| {
            format!("start() failed on files the machine wrote itself: {error}")
        })?;
        Ok(Self { case, dir, machine: Some(machine), runtime })
    }

    fn home(&self) -> PathBuf {
        self.dir.path().join("machine")
    }

    /// Opens the machine as the engine does at a start: a `Rebuilt` machine is reset.
    fn open(&mut self) -> Result<(), Violation> {
        let machine = {
            // The machine may start background tasks here, as in the engine.
            let _inside = self.runtime.enter();
            Arc::new((self.case.open)(&self.home()))
        };
        machine
            .start()
            .map_err(|error| format!("start() failed in the machine's own directory: {error}"))?;
        self.machine = Some(machine);
        if !self.is_durable() { self.reset() } else { Ok(()) }
    }

    fn machine(&self) -> &M {
        match &self.machine {
            Some(machine) => machine,
            None => unreachable!("the machine is only absent while it is reopened"),
        }
    }

    fn is_durable(&self) -> bool {
        self.machine().durability() == Durability::Durable
    }

    fn reset(&self) -> Result<(), Violation> {
        self.runtime
            .block_on(self.machine().reset())
            .map_err(|error| format!("reset() failed: {error}"))
    }

    /// Drops the machine without `stop` and opens it again.
    fn reopen(&mut self) -> Result<(), Violation> {
        self.machine = None;
        self.open()
    }

    /// The machine after its process is killed now: everything still in process memory is lost.
    fn killed(&self) -> Result<Self, Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        crate::copy::copy_dir(&self.home(), &dir.path().join("machine")).map_err(io)?;
        Self::at(self.case, dir)
    }

    /// Applies commands as one chunk, as the engine does. Returns the replies.
    fn apply(&self, first: u64, last: u64) -> Result<Vec<Option<Bytes>>, Violation> {
        let commands = (first..=last).map(|index| (index, (self.case.command)(index)));
        self.apply_all(commands)
            .map_err(|error| format!("apply_chunk({first}..={last}) failed: {error}"))
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
        self.runtime
            .block_on(self.machine().apply_chunk(chunk))
            .map_err(|error| error.to_string())?;
        self.machine().update_last_applied(id(last));
        Ok(probes.iter().map(d_engine_state_machine::ReplyProbe::take).collect())
    }

    fn contents(&self) -> Vec<u8> {
        (self.case.contents)(self.machine())
    }

    /// Checks `last_applied()`. Skipped for a `Rebuilt` machine.
    fn halted_at(&self, expected: u64, when: &str) -> Result<(), Violation> {
        let position = self.machine().last_applied();
        if self.is_durable() && position != id(expected) {
            return Err(format!(
                "{when}, last_applied() is {position}; expected {}. A Durable machine must store \
                 its position with its data",
                id(expected)
            ));
        }
        Ok(())
    }

    fn holds(&self, expected: &[u8], when: &str) -> Result<(), Violation> {
        let found = self.contents();
        if found == expected {
            return Ok(());
        }
        let at = found.iter().zip(expected).take_while(|(one, other)| one == other).count();
        let from =
            |contents: &[u8]| shown(contents.get(at.saturating_sub(20)..).unwrap_or_default());
        Err(format!(
            "{when}, the machine holds {}; expected {} (`contents` differs first at byte {at})",
            from(&found),
            from(expected)
        ))
    }

    /// Takes a snapshot as the engine does: through the view if there is one.
    fn snapshot(&self, last_included: u64) -> Result<(TempDir, SnapshotMetadata), Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let meta = self.snapshot_into(last_included, dir.path())?;
        Ok((dir, meta))
    }

    /// The same, into an existing directory.
    fn snapshot_into(&self, last_included: u64, dir: &Path) -> Result<SnapshotMetadata, Violation> {
        let machine = self.machine();
        let view =
            machine.snapshot_view().map_err(|error| format!("snapshot_view() failed: {error}"))?;
        let checksum = match view {
            Some(view) => {
                view.write(dir).map_err(|error| format!("SnapshotView::write() failed: {error}"))?
            }
            None => {
                let generated = machine.generate_snapshot_data(dir.to_owned(), id(last_included));
                self.runtime
                    .block_on(generated)
                    .map_err(|error| format!("generate_snapshot_data() failed: {error}"))?
            }
        };
        Ok(SnapshotMetadata::new(id(last_included), checksum))
    }

    /// Takes a snapshot with `generate_snapshot_data`, even if the machine offers a view.
    fn generate(&self, last_included: u64) -> Result<(TempDir, SnapshotMetadata), Violation> {
        let dir = tempfile::tempdir().map_err(io)?;
        let generated =
            self.machine().generate_snapshot_data(dir.path().to_owned(), id(last_included));
        let checksum = self.runtime.block_on(generated);
        let checksum =
            checksum.map_err(|error| format!("generate_snapshot_data() failed: {error}"))?;
        Ok((dir, SnapshotMetadata::new(id(last_included), checksum)))
    }

    /// Advances log time at an entry, as a tick does.
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

/// The contents after 0, 1, ... `last` commands, applied one at a time.
fn states<M: StateMachine>(
    case: &StateMachineCase<M>,
    last: u64,
) -> Result<Vec<Vec<u8>>, Violation> {
    let reference = Subject::new(case)?;
    let mut states = vec![reference.contents()];
    for index in 1..=last {
        reference.apply(index, index)?;
        states.push(reference.contents());
    }
    if states.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err("the case is too weak: each command must change what `contents` returns; \
                    correct `commands` or `contents` of the StateMachineCase"
            .to_owned());
    }
    Ok(states)
}

/// Contents for a message: as text, truncated.
fn shown(contents: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text = String::from_utf8_lossy(contents);
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{:?}... ({} bytes)", &text[..end], contents.len()),
        None => format!("{text:?}"),
    }
}
