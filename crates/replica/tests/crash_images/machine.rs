//! A small state machine on a simulated disk: rebuilt at every start, or durable.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use d_engine_replica::{Durability, Entry, Error, LogId, Result, SnapshotMetadata, StateMachine};
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::fs::tree::tree_checksum;
use d_engine_storage::fs::{OpenMode, ensure_dir, read_file, write_all_at};

const DIR: &str = "/machine";
const FILE: &str = "state";

/// The commands applied so far, in order.
pub(crate) struct Journal {
    fs: Arc<SimFs>,
    durability: Durability,
    state: Mutex<State>,
}

#[derive(Clone, Default)]
struct State {
    last: LogId,
    commands: Vec<u8>,
    newest: Option<SnapshotMetadata>,
}

impl Journal {
    pub(crate) fn new(fs: &SimFs, durability: Durability) -> Self {
        Self { fs: Arc::new(fs.clone()), durability, state: Mutex::default() }
    }

    pub(crate) fn commands(&self) -> Vec<u8> {
        self.state().commands.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn write(&self, path: &Path, state: &State) -> Result<()> {
        let mut bytes = state.last.term.get().to_le_bytes().to_vec();
        bytes.extend_from_slice(&state.last.index.get().to_le_bytes());
        bytes.extend_from_slice(&state.commands);
        let file = self.fs.open(path, OpenMode::CreateNew)?;
        write_all_at(&*file, 0, &bytes)?;
        Ok(file.sync_all()?)
    }

    fn read(&self, path: &Path) -> Result<State> {
        let bytes = read_file(&*self.fs, path)?;
        let number = |at: usize| {
            let bytes =
                bytes.get(at..at + 8).ok_or_else(|| Error::msg("the state is too short"))?;
            Ok::<_, Error>(u64::from_le_bytes(bytes.try_into().unwrap()))
        };
        let last = LogId::of(number(0)?, number(8)?);
        Ok(State { last, commands: bytes[16..].to_vec(), newest: None })
    }

    /// Persists `state` for the next start, in one step.
    fn keep(&self, state: &State) -> Result<()> {
        if self.durability == Durability::Rebuilt {
            return Ok(());
        }
        let (path, temporary) = (Path::new(DIR).join(FILE), Path::new(DIR).join("new"));
        if self.fs.kind(&temporary).is_ok() {
            self.fs.remove_file(&temporary)?;
        }
        self.write(&temporary, state)?;
        self.fs.rename(&temporary, &path)?;
        Ok(self.fs.sync_dir(Path::new(DIR))?)
    }
}

#[async_trait]
impl StateMachine for Journal {
    fn start(&self) -> Result<()> {
        if self.durability == Durability::Durable {
            ensure_dir(&*self.fs, Path::new(DIR))?;
            let path = Path::new(DIR).join(FILE);
            if self.fs.kind(&path).is_ok() {
                *self.state() = self.read(&path)?;
            }
        }
        Ok(())
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut state = self.state();
        for entry in chunk {
            if state.last.index < entry.index {
                state.last = entry.id();
                state.commands.extend_from_slice(&entry.data);
            }
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.state().commands.len()
    }

    fn update_last_applied(&self, last: LogId) {
        let mut state = self.state();
        state.last = state.last.max(last);
    }

    fn last_applied(&self) -> LogId {
        self.state().last
    }

    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.state().newest = Some(meta.clone());
        Ok(())
    }

    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.state().newest.clone()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        let state = self.read(&path.join(FILE))?;
        if state.last != meta.last_included {
            return Err(Error::msg("the snapshot is of another place"));
        }
        self.keep(&state)?;
        *self.state() = state;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        let state = State { last: last_included, ..self.state().clone() };
        self.write(&dir.join(FILE), &state)?;
        Ok(tree_checksum(&*self.fs, &dir)?)
    }

    fn flush(&self) -> Result<()> {
        let state = self.state().clone();
        self.keep(&state)
    }

    async fn reset(&self) -> Result<()> {
        *self.state() = State::default();
        self.keep(&State::default())
    }

    fn durability(&self) -> Durability {
        self.durability
    }
}
