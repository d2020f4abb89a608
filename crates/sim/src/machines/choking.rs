//! A wrapper around another state machine that cannot apply some commands.
//!
//! Around a rebuilt machine it behaves as carelessly as real ones may: it applies the entries of a
//! chunk before such a command, and then fails. Around a durable machine it applies a whole chunk
//! or nothing, as the contract requires.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use d_engine_replica::{
    ApplyStop, Binding, Durability, Entry, Error, LogId, Result, SnapshotMetadata, SnapshotView,
    StateMachine,
};

/// Prefix of the commands that need a certain program.
const MARK: &[u8] = b"NEEDS";
/// The program number of a command that no program applies.
pub(crate) const BY_NOBODY: u8 = u8::MAX;

/// Returns a command that only programs from version `needs` on can apply.
pub(crate) fn bad_command(needs: u8, command: &[u8]) -> Bytes {
    [MARK, &[needs], command].concat().into()
}

/// Returns the program that a command needs, and the command without its prefix.
fn parts(data: &Bytes) -> Option<(u8, Bytes)> {
    let rest = data.strip_prefix(MARK)?;
    let needs = *rest.first()?;
    Some((needs, data.slice(MARK.len() + 1..)))
}

/// Returns the program that is needed according to an error of this machine.
pub(crate) fn needed(reason: &str) -> Option<u8> {
    let (_, rest) = reason.split_once("needs program ")?;
    rest.split(|character: char| !character.is_ascii_digit()).next()?.parse().ok()
}

/// Whether a state machine halted because of such a command, or needs a restart after it was
/// skipped.
pub(crate) fn is_of_bad_command(stop: &ApplyStop) -> bool {
    let reason = stop.reason.to_string();
    needed(&reason).is_some() || reason.contains("is skipped; start this node again")
}

/// The state machine as one version of a program runs it.
pub(crate) struct ChokingMachine {
    inner: Arc<dyn StateMachine>,
    program: u8,
    command_version_max: u32,
}

impl ChokingMachine {
    pub(crate) fn new(inner: Arc<dyn StateMachine>, program: u8, command_version_max: u32) -> Self {
        Self { inner, program, command_version_max }
    }
}

#[async_trait]
impl StateMachine for ChokingMachine {
    fn command_version_max(&self) -> u32 {
        self.command_version_max
    }

    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut taken = Vec::with_capacity(chunk.len());
        for mut entry in chunk {
            match parts(&entry.data) {
                Some((needs, _)) if needs > self.program => {
                    if self.durability() == Durability::Rebuilt && !taken.is_empty() {
                        self.inner.apply_chunk(taken).await?;
                    }
                    return Err(Error::msg(format_args!(
                        "entry {} needs program {needs}, this is program {}",
                        entry.index, self.program
                    )));
                }
                Some((_, command)) => entry.data = command,
                None => {}
            }
            taken.push(entry);
        }
        self.inner.apply_chunk(taken).await
    }

    fn start(&self) -> Result<()> {
        self.inner.start()
    }
    fn stop(&self) -> Result<()> {
        self.inner.stop()
    }
    fn is_running(&self) -> bool {
        self.inner.is_running()
    }
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        self.inner.get(key)
    }
    fn entry_term(&self, entry_id: u64) -> Option<u64> {
        self.inner.entry_term(entry_id)
    }
    fn len(&self) -> usize {
        self.inner.len()
    }
    fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }
    fn update_last_applied(&self, last: LogId) {
        self.inner.update_last_applied(last);
    }
    fn last_applied(&self) -> LogId {
        self.inner.last_applied()
    }
    fn persist_last_applied(&self, last: LogId) -> Result<()> {
        self.inner.persist_last_applied(last)
    }
    fn update_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.inner.update_last_snapshot_metadata(meta)
    }
    fn snapshot_metadata(&self) -> Option<SnapshotMetadata> {
        self.inner.snapshot_metadata()
    }
    fn persist_last_snapshot_metadata(&self, meta: &SnapshotMetadata) -> Result<()> {
        self.inner.persist_last_snapshot_metadata(meta)
    }
    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        self.inner.apply_snapshot_from_file(meta, path).await
    }
    async fn generate_snapshot_data(&self, dir: PathBuf, last_included: LogId) -> Result<[u8; 32]> {
        self.inner.generate_snapshot_data(dir, last_included).await
    }
    fn save_hard_state(&self) -> Result<()> {
        self.inner.save_hard_state()
    }
    fn flush(&self) -> Result<()> {
        self.inner.flush()
    }
    async fn reset(&self) -> Result<()> {
        self.inner.reset().await
    }
    fn durability(&self) -> Durability {
        self.inner.durability()
    }
    fn snapshot_format(&self) -> u32 {
        self.inner.snapshot_format()
    }
    fn snapshot_view(&self) -> Result<Option<Box<dyn SnapshotView>>> {
        self.inner.snapshot_view()
    }
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn check(&self, command: &[u8]) -> Result<()> {
        self.inner.check(command)
    }
    fn bind(&self, binding: &Binding) -> Result<()> {
        self.inner.bind(binding)
    }
    fn reads_block(&self) -> bool {
        self.inner.reads_block()
    }
    fn scrub(&self) -> Result<()> {
        self.inner.scrub()
    }
    fn snapshot_bytes(&self) -> Option<u64> {
        self.inner.snapshot_bytes()
    }
    fn install_bytes(&self, meta: &SnapshotMetadata, file_bytes: u64) -> u64 {
        self.inner.install_bytes(meta, file_bytes)
    }
    fn query(&self, request: &[u8]) -> Result<Bytes> {
        self.inner.query(request)
    }
    fn next_expiry_ms(&self) -> Option<u64> {
        self.inner.next_expiry_ms()
    }
    fn advance_time(&self, at: LogId, time_ms: u64) -> Result<()> {
        self.inner.advance_time(at, time_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_command_names_its_program() {
        let bad = bad_command(7, b"put");
        assert_eq!(parts(&bad), Some((7, Bytes::from_static(b"put"))));
        assert_eq!(needed("so: entry 3 needs program 7, this is program 0; mend it"), Some(7));
        assert_eq!((parts(&Bytes::from_static(b"put")), needed("the disk is gone")), (None, None));
    }
}
