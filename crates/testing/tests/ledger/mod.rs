//! A durable state machine that is right, and can be made wrong in one way at a time: accounts with balances, in one
//! file with the position.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_replica::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine, snapshot_checksum,
};
use d_engine_storage::{Fs, FsFile, OpenMode, write_all_at};

/// What is wrong with a machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    KeepsHalfAChunk,
    AppliesAgain,
    LabelsTheViewWrongly,
    WritesTheViewLate,
    ReturnsAnotherChecksum,
    IgnoresTheChecksum,
    InstallsByHalves,
    MixesInTheInstalled,
    FlushesIntoItsOwnMemory,
    DoesNotFlushInDrop,
    StoresThePositionApart,
    DoesNotSync,
    WritesOverTheOldFile,
    RemovesTheOldFileFirst,
    RepliesInNoOrder,
    WritesInNoOrder,
    LooksAtTheClock,
    ShowsHalfACommand,
    KeepsThePositionInReset,
    ForgetsTheMetadata,
    InventsTerms,
    NeverRuns,
}

impl Fault {
    pub(crate) const ALL: [Self; 22] = [
        Self::KeepsHalfAChunk,
        Self::AppliesAgain,
        Self::LabelsTheViewWrongly,
        Self::WritesTheViewLate,
        Self::ReturnsAnotherChecksum,
        Self::IgnoresTheChecksum,
        Self::InstallsByHalves,
        Self::MixesInTheInstalled,
        Self::FlushesIntoItsOwnMemory,
        Self::DoesNotFlushInDrop,
        Self::StoresThePositionApart,
        Self::DoesNotSync,
        Self::WritesOverTheOldFile,
        Self::RemovesTheOldFileFirst,
        Self::RepliesInNoOrder,
        Self::WritesInNoOrder,
        Self::LooksAtTheClock,
        Self::ShowsHalfACommand,
        Self::KeepsThePositionInReset,
        Self::ForgetsTheMetadata,
        Self::InventsTerms,
        Self::NeverRuns,
    ];
}

#[derive(Clone, Default)]
struct State {
    balances: BTreeMap<String, u64>,
    last: LogId,
    snapshot: Option<SnapshotMetadata>,
}

pub(crate) struct Ledger {
    fault: Fault,
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    state: Arc<Mutex<State>>,
    /// What a broken flush believes to have written.
    buffer: Mutex<Vec<u8>>,
}

impl Ledger {
    pub(crate) fn open(fault: Fault, fs: Arc<dyn Fs>, dir: &Path) -> Self {
        let ledger = Self { fault, fs, dir: dir.to_owned(), state: Arc::default(), buffer: Mutex::default() };
        if let Ok(bytes) = d_engine_storage::read_file(&*ledger.fs, &ledger.file()) {
            *ledger.state() = decode(&String::from_utf8(bytes).unwrap()).unwrap();
        }
        if fault == Fault::StoresThePositionApart
            && let Ok(bytes) = d_engine_storage::read_file(&*ledger.fs, &ledger.dir.join("position"))
        {
            let index: u64 = String::from_utf8(bytes).unwrap().parse().unwrap_or(0);
            ledger.state().last = LogId { term: 3, index };
        }
        ledger
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn file(&self) -> PathBuf {
        self.dir.join("ledger")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// All balances, in order.
    pub(crate) fn contents(&self) -> String {
        let state = self.state();
        state.balances.iter().map(|(name, balance)| format!("{name}={balance} ")).collect()
    }

    /// Writes everything into a new file that takes the place of the old one.
    fn store(&self, state: &State) -> Result<()> {
        let bytes = encode(state, false).into_bytes();
        if self.is(Fault::WritesOverTheOldFile) {
            let mode =
                if self.fs.kind(&self.file()).is_ok() { OpenMode::Existing } else { OpenMode::CreateNew };
            let file = self.fs.open(&self.file(), mode)?;
            file.set_len(0)?;
            return self.write(&*file, &bytes);
        }
        let temporary = self.dir.join("ledger.tmp");
        self.fs.remove_file(&temporary).ok();
        let file = self.fs.open(&temporary, OpenMode::CreateNew)?;
        self.write(&*file, &bytes)?;
        self.fs.rename(&temporary, &self.file())?;
        if !self.is(Fault::DoesNotSync) {
            self.fs.sync_dir(&self.dir)?;
        }
        Ok(())
    }

    fn write(&self, file: &dyn FsFile, bytes: &[u8]) -> Result<()> {
        write_all_at(file, 0, bytes)?;
        if !self.is(Fault::DoesNotSync) {
            file.sync_all()?;
        }
        Ok(())
    }

    fn store_position(&self, index: u64) -> Result<()> {
        let path = self.dir.join("position");
        self.fs.remove_file(&path).ok();
        let file = self.fs.open(&path, OpenMode::CreateNew)?;
        self.write(&*file, index.to_string().as_bytes())
    }

    /// Carries out one command: `<account> <amount>`.
    fn execute(&self, state: &mut State, entry: &Entry) -> Result<()> {
        let text = std::str::from_utf8(&entry.data)?;
        let (name, amount) = text.split_once(' ').ok_or_else(|| Error::msg("no command"))?;
        let mut amount: u64 = amount.parse()?;
        if self.is(Fault::LooksAtTheClock) {
            amount += SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() % 1_000;
        }
        // Every command moves the account's total and the total of all.
        for account in [name, "total"] {
            *state.balances.entry(account.to_owned()).or_default() += amount;
            if self.is(Fault::ShowsHalfACommand) {
                // The others may look now.
                *self.state() = state.clone();
                std::thread::yield_now();
            }
        }
        state.last = entry.log_id();
        let reply = if self.is(Fault::RepliesInNoOrder) {
            let unordered: HashMap<&String, &u64> = state.balances.iter().collect();
            format!("{unordered:?}")
        } else {
            state.balances[name].to_string()
        };
        entry.reply(reply);
        Ok(())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if !self.is(Fault::DoesNotFlushInDrop) {
            let state = self.state().clone();
            self.store(&state).ok();
        }
    }
}

fn encode(state: &State, unordered: bool) -> String {
    let mut lines = vec![format!("at {} {}", state.last.term, state.last.index)];
    if let Some(meta) = &state.snapshot {
        lines.push(format!(
            "snapshot {} {} {}",
            meta.last_included.term, meta.last_included.index, meta.checksum[0]
        ));
    }
    let line = |(name, balance): (&String, &u64)| format!("{name} {balance}");
    if unordered {
        lines.extend(state.balances.iter().collect::<HashMap<_, _>>().into_iter().map(line));
    } else {
        lines.extend(state.balances.iter().map(line));
    }
    lines.push("end".to_owned());
    lines.join("\n")
}

fn decode(text: &str) -> Result<State> {
    let mut state = State::default();
    decode_into(text, &mut state)?;
    Ok(state)
}

fn decode_into(text: &str, state: &mut State) -> Result<()> {
    let mut ended = false;
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        match fields[..] {
            ["at", term, index] => state.last = LogId { term: term.parse()?, index: index.parse()? },
            ["snapshot", term, index, first] => {
                let label = LogId { term: term.parse()?, index: index.parse()? };
                state.snapshot = Some(SnapshotMetadata::new(label, [first.parse()?; 32]));
            }
            ["end"] => ended = true,
            [name, balance] => {
                state.balances.insert(name.to_owned(), balance.parse()?);
            }
            _ => return Err(Error::msg("no line of a ledger")),
        }
    }
    if ended { Ok(()) } else { Err(Error::msg("the ledger has no end")) }
}

struct View {
    fault: Fault,
    frozen: State,
    live: Arc<Mutex<State>>,
}

impl SnapshotView for View {
    fn label(&self) -> LogId {
        let LogId { term, index } = self.frozen.last;
        LogId { term, index: index + u64::from(self.fault == Fault::LabelsTheViewWrongly) }
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        let mut state = self.frozen.clone();
        if self.fault == Fault::WritesTheViewLate {
            state.balances.clone_from(&self.live.lock().unwrap().balances);
        }
        state.snapshot = None;
        std::fs::write(dir.join("ledger"), encode(&state, self.fault == Fault::WritesInNoOrder))?;
        let mut checksum = snapshot_checksum(dir)?;
        checksum[0] ^= u8::from(self.fault == Fault::ReturnsAnotherChecksum);
        Ok(checksum)
    }
}

#[async_trait]
impl StateMachine for Ledger {
    fn start(&self) -> Result<()> {
        Ok(())
    }

    fn stop(&self) -> Result<()> {
        Ok(())
    }

    fn is_running(&self) -> bool {
        !self.is(Fault::NeverRuns)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        let balance = self.state().balances.get(std::str::from_utf8(key)?).copied();
        Ok(balance.map(|balance| Bytes::from(balance.to_string())))
    }

    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        let last = self.state().last;
        if self.is(Fault::InventsTerms) {
            return Some(last.term);
        }
        (entry_id == last.index && entry_id > 0).then_some(last.term)
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut next = self.state().clone();
        let last = next.last.index;
        let new = chunk.iter().filter(|entry| self.is(Fault::AppliesAgain) || entry.index > last);
        for entry in new {
            let executed = self.execute(&mut next, entry);
            if executed.is_err() && self.is(Fault::KeepsHalfAChunk) {
                *self.state() = next;
                return executed;
            }
            executed?;
        }
        if self.is(Fault::StoresThePositionApart) {
            self.store_position(next.last.index)?;
        }
        *self.state() = next;
        Ok(())
    }

    fn len(&self) -> usize {
        self.state().balances.len()
    }

    fn update_last_applied(&self, last: LogId) {
        self.state().last = last;
    }

    fn last_applied(&self) -> LogId {
        self.state().last
    }

    fn persist_last_applied(&self, _last: LogId) -> Result<()> {
        Ok(())
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.state().snapshot = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        if self.is(Fault::ForgetsTheMetadata) { None } else { self.state().snapshot.clone() }
    }

    fn persist_last_snapshot_metadata(&self, _meta: &SnapshotMetadata) -> Result<()> {
        self.flush()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        if !self.is(Fault::IgnoresTheChecksum) && snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg("the snapshot's checksum is another one"));
        }
        let text = std::fs::read_to_string(path.join("ledger"))?;
        if self.is(Fault::InstallsByHalves) {
            let mut state = self.state();
            state.balances.clear();
            decode_into(&text, &mut state)?;
            return Ok(());
        }
        let mut next = decode(&text)?;
        if self.is(Fault::MixesInTheInstalled) {
            let old = self.state().balances.clone();
            next.balances = old.into_iter().chain(next.balances).collect();
        }
        if self.is(Fault::RemovesTheOldFileFirst) {
            self.fs.remove_file(&self.file())?;
            self.fs.sync_dir(&self.dir)?;
        }
        self.store(&next)?;
        *self.state() = next;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, _last_included: LogId) -> Result<[u8; 32]> {
        let view = self.snapshot_view()?.ok_or_else(|| Error::msg("no view"))?;
        view.write(&dir)
    }

    fn save_hard_state(&self) -> Result<()> {
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        let state = self.state().clone();
        if self.is(Fault::FlushesIntoItsOwnMemory) {
            *self.buffer.lock().unwrap() = encode(&state, false).into_bytes();
            return Ok(());
        }
        self.store(&state)
    }

    async fn reset(&self) -> Result<()> {
        let mut state = self.state();
        let last = state.last;
        *state = State::default();
        if self.is(Fault::KeepsThePositionInReset) {
            state.last = last;
        }
        self.store(&state)
    }

    fn durability(&self) -> Durability {
        Durability::Durable
    }

    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        let frozen = self.state().clone();
        Ok(Some(Box::new(View { fault: self.fault, frozen, live: self.state.clone() })))
    }
}
