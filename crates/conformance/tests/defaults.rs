//! A state machine with the required methods alone keeps the whole contract of a machine in memory,
//! and the kit finds what a durable machine lacks that has no more than them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;

use async_trait::async_trait;
use d_engine_conformance::{StateMachineCase, check_state_machine, state_machine_suite};
use d_engine_state_machine::{
    Durability, Entry, Error, LogId, Result, SnapshotMetadata, StateMachine, Unsupported,
    snapshot_checksum,
};

/// Counts words.
#[derive(Default)]
struct Words {
    counts: Mutex<BTreeMap<String, u64>>,
    durability: Durability,
}

impl Words {
    fn contents(&self) -> String {
        let counts = self.counts.lock().unwrap();
        counts.iter().map(|(word, count)| format!("{word} {count}\n")).collect()
    }
}

#[async_trait]
impl StateMachine for Words {
    async fn apply_chunk(&self, chunk: Vec<Entry>) -> Result<()> {
        let mut counts = self.counts.lock().unwrap();
        for entry in &chunk {
            match std::str::from_utf8(&entry.data) {
                Ok(word) if !word.is_empty() && !word.contains(char::is_whitespace) => {
                    let count = counts.entry(word.to_owned()).or_default();
                    *count += 1;
                    entry.reply(count.to_string());
                }
                _ => entry.reply("not a word"),
            }
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.counts.lock().unwrap().len()
    }

    async fn apply_snapshot_from_file(&self, meta: &SnapshotMetadata, path: PathBuf) -> Result<()> {
        if snapshot_checksum(&path)? != meta.checksum {
            return Err(Error::msg("the snapshot has another checksum"));
        }
        let mut counts = BTreeMap::new();
        for line in std::fs::read_to_string(path.join("words"))?.lines() {
            let (word, count) = line.split_once(' ').ok_or_else(|| Error::msg("no line"))?;
            counts.insert(word.to_owned(), count.parse()?);
        }
        *self.counts.lock().unwrap() = counts;
        Ok(())
    }

    async fn generate_snapshot_data(&self, dir: PathBuf, _: LogId) -> Result<[u8; 32]> {
        std::fs::write(dir.join("words"), self.contents())?;
        Ok(snapshot_checksum(&dir)?)
    }

    async fn reset(&self) -> Result<()> {
        self.counts.lock().unwrap().clear();
        Ok(())
    }

    fn durability(&self) -> Durability {
        self.durability
    }
}

fn case(durability: Durability) -> StateMachineCase<Words> {
    StateMachineCase::new(move |_dir| Words { durability, ..Words::default() })
        .commands(|n| format!("word-{}", n % 7))
        .contents(Words::contents)
}

mod a_machine_in_memory {
    use super::{Durability, case, state_machine_suite};

    state_machine_suite!(case(Durability::Rebuilt));
}

#[test]
fn the_defaults_do_nothing_and_say_so() {
    let words = Words::default();
    words.start().unwrap();
    assert!(words.is_running() && words.is_empty());
    assert_eq!((words.entry_term(1), words.snapshot_metadata()), (None, None));
    assert_eq!(words.last_applied(), LogId::default());
    let meta = SnapshotMetadata::new(LogId::of(1, 7), [0; 32]);
    words.persist_last_applied(meta.last_included).unwrap();
    words.update_last_snapshot_metadata(&meta).unwrap();
    words.persist_last_snapshot_metadata(&meta).unwrap();
    words.save_hard_state().unwrap();
    words.flush().unwrap();
    words.stop().unwrap();
    let unsupported = |error: Error| *error.downcast_ref::<Unsupported>().unwrap();
    assert_eq!(unsupported(words.get(b"a").unwrap_err()).operation, "get");
    assert_eq!(unsupported(words.query(b"a").unwrap_err()).operation, "query");
}

/// Nothing that a durable machine forgets passes for done.
#[test]
fn a_durable_machine_with_the_defaults_is_found_out() {
    let words = Words { durability: Durability::Durable, ..Words::default() };
    let meta = SnapshotMetadata::new(LogId::of(1, 7), [0; 32]);
    let missing = "must implement flush()";
    assert!(words.flush().unwrap_err().to_string().contains(missing));
    let stored = words.persist_last_snapshot_metadata(&meta).unwrap_err();
    assert!(stored.to_string().contains(missing));

    let found = check_state_machine(&case(Durability::Durable));
    let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
    for expected in [
        "start_and_stop",
        "a_snapshot_is_exactly_the_state_at_its_last_included_entry",
        "what_is_applied_already_changes_nothing",
        "flushed_is_in_the_files",
        "drop_flushes",
        "the_position_never_goes_back",
        "snapshot_metadata_is_kept",
    ] {
        assert!(names.contains(&expected), "not found by {expected}: {found:#?}");
    }
}
