//! A small, real state machine that records every call. Its state is numbers by the index of their
//! entry; its reply is their sum. On request its state survives a restart, like that of a machine
//! with its own files.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_replica::{
    Binding, Bound, Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotRoom,
    SnapshotView, StateMachine, snapshot_checksum,
};

/// The calls, in order; shared by all machines of one test.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<String>>>);

impl Calls {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// The indexes of the delivered commands, in order.
    pub(crate) fn applied(&self) -> Vec<u64> {
        let chunks = self.with("apply_chunk");
        let indexes = chunks.iter().flat_map(|chunk| chunk.trim_matches(['[', ']']).split(", "));
        indexes.map(|index| index.parse().unwrap()).collect()
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    pub(crate) fn note(&self, call: impl Into<String>) {
        self.0.lock().unwrap().push(call.into());
    }

    /// The position of the first call with this beginning.
    pub(crate) fn first(&self, call: &str) -> Option<usize> {
        self.all().iter().position(|made| is_call(made, call))
    }

    pub(crate) fn last(&self, call: &str) -> Option<usize> {
        self.all().iter().rposition(|made| is_call(made, call))
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.all().iter().filter(|made| is_call(made, call)).count()
    }

    /// The arguments of these calls.
    pub(crate) fn with(&self, call: &str) -> Vec<String> {
        let made = self.all();
        made.iter()
            .filter(|made| is_call(made, call))
            .map(|made| made[call.len()..].trim().to_owned())
            .collect()
    }
}

fn is_call(made: &str, call: &str) -> bool {
    made.strip_prefix(call).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
}

/// The state of a machine.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// The number in an entry, and the entry's term.
    pub(crate) numbers: BTreeMap<u64, (u64, u8)>,
    pub(crate) last: LogId,
    pub(crate) snapshot: Option<SnapshotMetadata>,
    /// The binding of its files.
    pub(crate) binding: Option<[u8; Binding::BYTES]>,
}

/// The behaviour of a machine.
#[derive(Clone, Copy, Default)]
pub(crate) struct Manner {
    pub(crate) is_durable: bool,
    /// The result of the machine's `is_running`.
    pub(crate) is_down: bool,
    /// Added to every term that the machine reports.
    pub(crate) wrong_by: u64,
    /// A number that the machine cannot apply.
    pub(crate) chokes_on: Option<u8>,
    pub(crate) fails_start: bool,
    /// It has views; a view's last included index is too high by this number.
    pub(crate) view_ahead_by: Option<u64>,
    /// Its first `generate_snapshot_data` never returns.
    pub(crate) writes_first_for_ever: bool,
    /// Its `generate_snapshot_data` never returns.
    pub(crate) writes_for_ever: bool,
    pub(crate) replies_twice: bool,
    /// A scrub finds this damaged, or cannot read the disk ("EIO").
    pub(crate) scrub_finds: Option<&'static str>,
    /// Its reads wait for `pen`, as they would for a disk.
    pub(crate) reads_wait: bool,
    /// It panics in every read.
    pub(crate) panics_in_reads: bool,
    /// The format of its snapshots.
    pub(crate) format: u32,
    /// The highest command version that it decodes. Above 0, the second byte of a command is its
    /// version.
    pub(crate) decodes: u32,
    pub(crate) name: &'static str,
    /// Numbers that its `check` refuses, or panics about.
    pub(crate) refuses: Option<u8>,
    pub(crate) panics_on: Option<u8>,
    /// The size that it predicts for its next snapshot; it needs as much for an install, files
    /// included.
    pub(crate) snapshot_bytes: Option<u64>,
}

#[derive(Clone, Default)]
pub(crate) struct Recording {
    pub(crate) calls: Calls,
    pub(crate) held: Arc<Mutex<Held>>,
    pub(crate) manner: Manner,
    /// While a test holds it, views are not written, and commands that cannot be applied do not
    /// fail yet.
    pub(crate) pen: Arc<Mutex<()>>,
    /// Commands, flushes, resets and installs fail for lack of space.
    pub(crate) is_full: Arc<AtomicBool>,
    /// The directories into which its snapshots were written, in order.
    pub(crate) places: Arc<Mutex<Vec<PathBuf>>>,
}

impl Recording {
    fn check_room(&self) -> Result<()> {
        match self.is_full.load(Ordering::Relaxed) {
            true => Err(std::io::Error::from(std::io::ErrorKind::StorageFull).into()),
            false => Ok(()),
        }
    }

    pub(crate) fn with(manner: Manner) -> Self {
        let mut machine = Self::default();
        machine.manner = manner;
        machine
    }

    /// A durable machine.
    pub(crate) fn durable() -> Self {
        Self::with(Manner { is_durable: true, ..Manner::default() })
    }

    /// A durable machine that has applied up to `last` and is otherwise empty.
    pub(crate) fn durable_at(last: LogId) -> Self {
        let machine = Self::durable();
        machine.held().last = last;
        machine
    }

    /// The numbers, in the order of their entries.
    pub(crate) fn numbers(&self) -> Vec<u8> {
        self.held().numbers.values().map(|(_, number)| *number).collect()
    }

    /// The same machine after a restart of its process; a rebuilt machine is empty then.
    pub(crate) fn again(&self) -> Self {
        let mut again = self.clone();
        if !self.manner.is_durable {
            again.held = Arc::default();
        }
        again
    }

    /// The same with another behaviour.
    pub(crate) fn again_as(&self, manner: Manner) -> Self {
        let mut again = self.clone();
        again.manner = manner;
        again
    }

    pub(crate) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.calls.note("drop");
        self.flush().ok();
    }
}

#[async_trait]
impl StateMachine for Recording {
    fn start(&self) -> Result<()> {
        self.calls.note("start");
        if self.manner.fails_start {
            Err(Error::msg("the backend is locked by another process"))
        } else {
            Ok(())
        }
    }

    fn stop(&self) -> Result<()> {
        self.calls.note("stop");
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.calls.note("is_running");
        !self.manner.is_down
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.calls.note(format!("get {}", String::from_utf8_lossy(key)));
        assert!(!self.manner.panics_in_reads, "as asked");
        let _pen = self.manner.reads_wait.then(|| self.pen.lock().unwrap());
        let sum: u64 = self.held().numbers.values().map(|(_, number)| u64::from(*number)).sum();
        Ok(Some(Bytes::from(sum.to_string())))
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.calls.note(format!("entry_term {entry_id}"));
        let held = self.held();
        let known = held.numbers.get(&entry_id).map(|(term, _)| *term);
        let last = (held.last.index == entry_id && entry_id > 0).then_some(held.last.term.get());
        known.or(last).map(|term| term + self.manner.wrong_by)
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let indexes: Vec<u64> = chunk.iter().map(|entry| entry.index).collect();
        self.calls.note(format!("apply_chunk {indexes:?}"));
        self.check_room()?;
        // Done before the state is locked, so that the state can be inspected meanwhile.
        let is_bad = |number| chunk.iter().any(|entry| entry.data.first() == Some(&number));
        let chokes = self.manner.chokes_on.is_some_and(is_bad);
        let _pen = chokes.then(|| self.pen.lock().unwrap());
        let mut held = self.held();
        let mut next = held.clone();
        for entry in &chunk {
            let number =
                *entry.data.first().ok_or_else(|| Error::msg("a command without a number"))?;
            if held.last.index >= entry.index {
                continue;
            }
            next.numbers.insert(entry.index, (entry.term, number));
            next.last = entry.id();
            let sum: u64 = next.numbers.values().map(|(_, number)| u64::from(*number)).sum();
            entry.reply(sum.to_string());
            if self.manner.replies_twice {
                entry.reply("again");
            }
            if Some(number) == self.manner.chokes_on {
                return Err(Error::msg("the backend is gone"));
            }
        }
        *held = next;
        Ok(())
    }

    fn len(&self) -> usize {
        self.calls.note("len");
        self.held().numbers.len()
    }

    fn is_empty(&self) -> bool {
        self.calls.note("is_empty");
        self.held().numbers.is_empty()
    }

    fn update_last_applied(&self, last: LogId) {
        self.calls.note(format!("update_last_applied {}", last.index));
        self.held().last = last;
    }

    fn last_applied(&self) -> LogId {
        self.calls.note("last_applied");
        self.held().last
    }

    fn persist_last_applied(&self, last: LogId) -> Result<()> {
        self.calls.note(format!("persist_last_applied {}", last.index));
        Ok(())
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.calls.note(format!("update_last_snapshot_metadata {}", meta.last_included.index));
        self.held().snapshot = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.calls.note("snapshot_metadata");
        self.held().snapshot.clone()
    }

    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.calls.note(format!("persist_last_snapshot_metadata {}", meta.last_included.index));
        Ok(())
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.calls.note(format!("apply_snapshot_from_file {}", meta.last_included.index));
        self.check_room()?;
        if snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg("wrong checksum"));
        }
        let binding = self.held().binding;
        let mut next = Held { last: meta.last_included, binding, ..Held::default() };
        for line in std::fs::read_to_string(path.join("numbers"))?.lines() {
            let fields: Vec<u64> =
                line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
            let [index, term, number] = fields[..] else {
                return Err(Error::msg("no line of numbers"));
            };
            next.numbers.insert(index, (term, u8::try_from(number)?));
        }
        *self.held() = next;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let is_empty = std::fs::read_dir(&dir)?.next().is_none();
        let empty = if is_empty { "empty" } else { "not empty" };
        self.calls.note(format!("generate_snapshot_data {} {empty}", last_included.index));
        let is_first = {
            let mut places = self.places.lock().unwrap();
            places.push(dir.clone());
            places.len() == 1
        };
        if self.manner.writes_for_ever || (self.manner.writes_first_for_ever && is_first) {
            std::future::pending::<()>().await;
        }
        write(&self.held(), &dir)
    }

    fn save_hard_state(&self) -> Result<()> {
        self.calls.note("save_hard_state");
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        self.calls.note("flush");
        self.check_room()
    }

    fn bind(&self, binding: &Binding) -> Result<()> {
        self.calls.note("bind");
        let mut held = self.held();
        let bound = held.binding.as_ref().map(<[u8; _]>::as_slice);
        if binding.compare(bound)? == Bound::Store {
            held.binding = Some(binding.to_bytes());
        }
        Ok(())
    }

    fn scrub(&self) -> Result<()> {
        self.calls.note("scrub");
        match self.manner.scrub_finds {
            None => Ok(()),
            Some("EIO") => Err(std::io::Error::from_raw_os_error(5).into()),
            Some(what) => Err(Error::msg(format_args!("{what} has another checksum"))),
        }
    }

    fn reads_block(&self) -> bool {
        self.manner.reads_wait
    }

    fn name(&self) -> &str {
        self.manner.name
    }

    fn check(&self, command: &[u8]) -> Result<()> {
        match command.first() {
            Some(number) if Some(*number) == self.manner.refuses => {
                Err(Error::msg("an unlucky number"))
            }
            Some(number) => {
                assert!(Some(*number) != self.manner.panics_on, "as asked");
                Ok(())
            }
            None => Err(Error::msg("a command without a number")),
        }
    }

    fn snapshot_bytes(&self) -> Option<u64> {
        self.manner.snapshot_bytes
    }

    fn install_bytes(&self, _meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        self.manner.snapshot_bytes.map_or(0, |bytes| bytes.saturating_sub(file_bytes))
    }

    async fn reset(&self) -> Result<()> {
        self.calls.note("reset");
        self.check_room()?;
        *self.held() = Held::default();
        Ok(())
    }

    fn durability(&self) -> Durability {
        if self.manner.is_durable { Durability::Durable } else { Durability::Rebuilt }
    }
    fn snapshot_format(&self) -> u32 {
        self.manner.format
    }

    fn command_version_max(&self) -> u32 {
        self.manner.decodes
    }

    fn command_version(&self, command: &[u8]) -> u32 {
        let version = command.get(1).filter(|_| self.manner.decodes > 0);
        version.copied().map_or(0, u32::from)
    }

    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        let Some(ahead) = self.manner.view_ahead_by else { return Ok(None) };
        self.calls.note("snapshot_view");
        let mut held = self.held().clone();
        held.last.index = held.last.index.plus(ahead);
        Ok(Some(Box::new(View { held, calls: self.calls.clone(), pen: self.pen.clone() })))
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        self.calls.note(format!("advance_time {} {time_ms}", at.index));
        Ok(())
    }
}

struct View {
    held: Held,
    calls: Calls,
    pen: Arc<Mutex<()>>,
}

impl SnapshotView for View {
    fn last_included(&self) -> LogId {
        self.held.last
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        let _pen = self.pen.lock().unwrap();
        self.calls.note(format!("write {}", self.held.last.index));
        write(&self.held, dir)
    }

    /// Reports far more bytes than it writes.
    fn write_within(self: Box<Self>, dir: &Path, room: &SnapshotRoom<'_>) -> Result<[u8; 32]> {
        room.written(64 << 20)?;
        self.write(dir)
    }
}

fn write(held: &Held, dir: &Path) -> Result<[u8; 32]> {
    let line = |(index, (term, number)): (&u64, &(u64, u8))| format!("{index} {term} {number}\n");
    let lines: Vec<String> = held.numbers.iter().map(line).collect();
    std::fs::write(dir.join("numbers"), lines.concat())?;
    Ok(snapshot_checksum(dir)?)
}
