//! A correct durable state machine that can be given one fault at a time: accounts with balances,
//! in one file together with the position.
#![allow(dead_code, clippy::unwrap_used)]

mod fault;
mod format;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_state_machine::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotView, StateMachine,
    snapshot_checksum,
};
use d_engine_storage::{Fs, FsFile, OpenMode, write_all_at};

pub(crate) use self::fault::Fault;
use self::format::{command, decode, decode_into, encode};

#[derive(Clone, Default)]
struct State {
    balances: BTreeMap<String, u64>,
    /// Reserved amounts, by the log time of their expiry and the account.
    reserved: BTreeMap<(u64, String), u64>,
    time_ms: u64,
    last: LogId,
    snapshot: Option<SnapshotMetadata>,
}

pub(crate) struct Ledger {
    fault: Fault,
    fs: Arc<dyn Fs>,
    dir: PathBuf,
    state: Arc<Mutex<State>>,
    /// Where a faulty flush writes instead of the file.
    buffer: Mutex<Vec<u8>>,
    /// The directory of the newest snapshot, and the channel that releases blocking work of an
    /// earlier one.
    place: Arc<Mutex<PathBuf>>,
    signal: Mutex<Option<Sender<()>>>,
    asked: AtomicU64,
    /// Why its file cannot be read; `start` returns it.
    damage: Mutex<Option<String>>,
}

impl Ledger {
    pub(crate) fn open(fault: Fault, fs: Arc<dyn Fs>, dir: &Path) -> Self {
        let ledger = Self {
            fault,
            fs,
            dir: dir.to_owned(),
            state: Arc::default(),
            buffer: Mutex::default(),
            place: Arc::default(),
            signal: Mutex::default(),
            asked: AtomicU64::new(0),
            damage: Mutex::default(),
        };
        if let Ok(bytes) = d_engine_storage::read_file(&*ledger.fs, &ledger.file()) {
            match String::from_utf8(bytes)
                .map_err(Error::from)
                .and_then(|text| decode(fault, &text))
            {
                Ok(state) => *ledger.state() = state,
                Err(error) => *ledger.damage.lock().unwrap() = Some(error.to_string()),
            }
        }
        if fault == Fault::StoresThePositionApart
            && let Ok(bytes) =
                d_engine_storage::read_file(&*ledger.fs, &ledger.dir.join("position"))
        {
            let index: u64 = String::from_utf8(bytes).unwrap().parse().unwrap_or(0);
            ledger.state().last = LogId::of(3, index);
        }
        ledger
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn file(&self) -> PathBuf {
        self.dir.join("ledger")
    }

    fn stops_on_garbage(&self) -> bool {
        [Fault::StopsOnGarbage, Fault::LetsGarbageIntoTheLog, Fault::KeepsHalfAChunk]
            .contains(&self.fault)
    }

    /// Spawns blocking work that later writes into the directory of the newest snapshot.
    fn begin_late(&self, dir: &Path) {
        *self.place.lock().unwrap() = dir.to_owned();
        let (signal, told) = std::sync::mpsc::channel();
        let mut waiting = self.signal.lock().unwrap();
        if waiting.is_some() {
            return;
        }
        *waiting = Some(signal);
        let place = self.place.clone();
        tokio::task::spawn_blocking(move || {
            told.recv().ok();
            std::fs::write(place.lock().unwrap().join("late"), "x").ok();
        });
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// All balances, in order.
    pub(crate) fn contents(&self) -> String {
        let state = self.state();
        let reserved = state
            .reserved
            .iter()
            .map(|((until, name), amount)| format!("{name}-{amount}<{until} "));
        state
            .balances
            .iter()
            .map(|(name, balance)| format!("{name}={balance} "))
            .chain(reserved)
            .collect()
    }

    /// Removes reservations that have expired.
    fn advance(&self, state: &mut State, time_ms: u64) {
        state.time_ms = state.time_ms.max(time_ms);
        if !self.is(Fault::NeverExpires) {
            state.reserved = state.reserved.split_off(&(state.time_ms + 1, String::new()));
        }
    }

    /// Writes everything into a new file that replaces the old one.
    fn store(&self, state: &State) -> Result<()> {
        let bytes = encode(state, false).into_bytes();
        if self.is(Fault::WritesOverTheOldFile) {
            let mode = if self.fs.kind(&self.file()).is_ok() {
                OpenMode::Existing
            } else {
                OpenMode::CreateNew
            };
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

    /// Executes one command: `<account> <amount>`, or `<account> <amount> <milliseconds>` to
    /// reserve the amount for that time.
    fn execute(&self, state: &mut State, entry: &Entry) -> Result<()> {
        self.advance(state, entry.time_ms());
        let (name, mut amount, until_ms) = command(&entry.data)?;
        if let Some(after_ms) = until_ms {
            state.reserved.insert((entry.time_ms() + after_ms, name.to_owned()), amount);
            state.last = entry.id();
            entry.reply("reserved");
            return Ok(());
        }
        if self.is(Fault::LooksAtTheClock) {
            amount += SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs() % 1_000;
        }
        // Every command moves the account's total and the total of all.
        for account in [name, "total"] {
            *state.balances.entry(account.to_owned()).or_default() += amount;
            if self.is(Fault::ShowsHalfACommand) {
                // Let readers run now.
                *self.state() = state.clone();
                std::thread::yield_now();
            }
        }
        state.last = entry.id();
        let reply = if self.is(Fault::RepliesInNoOrder) {
            let unordered: HashMap<&String, &u64> = state.balances.iter().collect();
            format!("{unordered:?}")
        } else {
            state.balances[name].to_string()
        };
        if !self.is(Fault::AnswersNobody) {
            entry.reply(reply);
        }
        Ok(())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        // A file that could not be read is left unchanged.
        if !self.is(Fault::DoesNotFlushInDrop) && self.damage.lock().unwrap().is_none() {
            let state = self.state().clone();
            self.store(&state).ok();
        }
    }
}

struct View {
    fault: Fault,
    frozen: State,
    live: Arc<Mutex<State>>,
}

impl SnapshotView for View {
    fn last_included(&self) -> LogId {
        let LogId { term, index } = self.frozen.last;
        LogId::new(term, index.plus(u64::from(self.fault == Fault::MovesTheViewsLastIncluded)))
    }

    fn write(self: Box<Self>, dir: &Path) -> Result<[u8; 32]> {
        let mut state = self.frozen.clone();
        if self.fault == Fault::WritesTheViewLate {
            state.balances.clone_from(&self.live.lock().unwrap().balances);
        }
        state.snapshot = None;
        if self.fault == Fault::ForgetsExpiriesInSnapshots {
            state.reserved.clear();
        }
        std::fs::write(dir.join("ledger"), encode(&state, self.fault == Fault::WritesInNoOrder))?;
        let mut checksum = snapshot_checksum(dir)?;
        checksum[0] ^= u8::from(self.fault == Fault::ReturnsAnotherChecksum);
        Ok(checksum)
    }
}

#[async_trait]
impl StateMachine for Ledger {
    fn start(&self) -> Result<()> {
        self.damage.lock().unwrap().as_ref().map_or(Ok(()), |damage| Err(Error::msg(damage)))
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
            return Some(last.term.get());
        }
        (last.index == entry_id && entry_id > 0).then_some(last.term.get())
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut next = self.state().clone();
        let last = next.last.index;
        let new = chunk.iter().filter(|entry| self.is(Fault::AppliesAgain) || last < entry.index);
        for entry in new {
            let executed = match command(&entry.data) {
                // The command is in the log, so it gets a reply and the position advances.
                Err(error) if !self.stops_on_garbage() => {
                    self.advance(&mut next, entry.time_ms());
                    next.last = entry.id();
                    entry.reply(format!("refused: {error}"));
                    continue;
                }
                _ => self.execute(&mut next, entry),
            };
            if executed.is_err() && self.is(Fault::KeepsHalfAChunk) {
                *self.state() = next;
                return executed;
            }
            executed?;
        }
        if self.is(Fault::StoresThePositionApart) {
            self.store_position(next.last.index.get())?;
        }
        *self.state() = next;
        Ok(())
    }

    fn len(&self) -> usize {
        if self.is(Fault::HasNoLength) { 0 } else { self.state().balances.len() }
    }

    fn update_last_applied(&self, last: LogId) {
        let mut state = self.state();
        if last.index > state.last.index || self.is(Fault::GoesBack) {
            state.last = last;
        }
    }

    fn last_applied(&self) -> LogId {
        self.state().last
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.state().snapshot = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        if self.is(Fault::ForgetsTheMetadata) { None } else { self.state().snapshot.clone() }
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        if !self.is(Fault::IgnoresTheChecksum) && snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg("the snapshot's checksum differs"));
        }
        let text = std::fs::read_to_string(path.join("ledger"))?;
        if self.is(Fault::InstallsByHalves) {
            let mut state = self.state();
            state.balances.clear();
            decode_into(self.fault, &text, &mut state)?;
            return Ok(());
        }
        let mut next = decode(self.fault, &text)?;
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

    async fn generate_snapshot_data(
        &self,
        dir: PathBuf,
        _last_included: LogId,
    ) -> Result<[u8; 32]> {
        if self.is(Fault::GeneratesNothing) {
            return Ok(snapshot_checksum(&dir)?);
        }
        if self.is(Fault::WritesAfterItsEnd) {
            self.begin_late(&dir);
            tokio::task::yield_now().await;
            let view = self.snapshot_view()?.ok_or_else(|| Error::msg("no view"))?;
            let written = view.write(&dir);
            // The drop releases the waiting work, which writes now.
            *self.signal.lock().unwrap() = None;
            return written;
        }
        let view = self.snapshot_view()?.ok_or_else(|| Error::msg("no view"))?;
        view.write(&dir)
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
        if self.is(Fault::ResetsByHalves) {
            state.balances.clear();
            self.store(&state)?;
        }
        *state = State::default();
        if self.is(Fault::KeepsThePositionInReset) {
            state.last = last;
        }
        self.store(&state)
    }

    fn check(&self, data: &[u8]) -> Result<()> {
        if self.is(Fault::LetsGarbageIntoTheLog) {
            return Ok(());
        }
        if self.is(Fault::RefusesItsOwn) && self.state().balances.len() > 5 {
            return Err(Error::msg("the books are full"));
        }
        command(data).map(drop)
    }

    fn command_version_max(&self) -> u32 {
        u32::from(!self.is(Fault::IsAheadOfItself))
    }

    fn command_version(&self, data: &[u8]) -> u32 {
        if self.is(Fault::PanicsOverVersions) {
            return u32::from(!std::str::from_utf8(data).unwrap().is_empty());
        }
        u32::from(!data.is_empty())
    }

    fn query(&self, request: &[u8]) -> Result<Bytes> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        match self.get(request)? {
            Some(_) if self.is(Fault::AnswersAtRandom) => Ok(Bytes::from(asked.to_string())),
            balance => Ok(balance.unwrap_or_default()),
        }
    }

    fn next_expiry_ms(&self) -> Option<u64> {
        match self.fault {
            Fault::WantsTimeAlways => Some(1),
            Fault::WantsTimeNever => None,
            _ => self.state().reserved.keys().next().map(|(until, _)| *until),
        }
    }

    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        let mut state = self.state();
        let by_itself = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis();
        let own = self.is(Fault::ExpiresByItsOwnClock);
        if own {
            // The visible records depend on the clock of this process.
            state.balances.insert("seen".to_owned(), u64::try_from(by_itself)? / 1_000);
        }
        self.advance(&mut state, time_ms);
        state.last = at;
        Ok(())
    }

    fn durability(&self) -> Durability {
        Durability::Durable
    }

    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        let frozen = self.state().clone();
        Ok(Some(Box::new(View { fault: self.fault, frozen, live: self.state.clone() })))
    }
}
