//! Compares log appends with a raw overwrite loop and with raft-engine, in one run.
//!
//! ```text
//! benches/compare/run [DIRECTORY]
//! ```
//!
//! One writer appends entries of 256 bytes, N at a time, and syncs each batch before the next. No
//! log is ever idle, and each stays open for all rounds and fills several segments. In each round
//! all logs run one after another, in an order that rotates. The program prints the median of the
//! rounds and the median of the ratios *within* the rounds: the speed of a disk changes from minute
//! to minute, a ratio hardly does.
//!
//! - `raw`: the lower bound for any log: overwrites files that hold zeros, in writes as large as
//!   those of d-engine's log, with one fdatasync each.
//! - `growing`: d-engine's log with nothing prepared and nothing purged, so that every segment is a
//!   new file.
//! - `recycling`: the same, purged while it is written, so that segments reuse the files of purged
//!   ones.
//! - `raft-engine`: raft-engine 0.4.2 with its defaults, but without compression (the payload does
//!   not compress).
//! - `re-recycled`: the same with raft-engine's own recycling: files of the same size as d-engine's
//!   segments, filled ahead at the start, and purged while it is written.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, LogId, LogIndex, NodeId, Term};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, LogStore, Membership,
    OpenRequest, RealFs, StorageEngine,
};
use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

type Failure = Box<dyn Error>;

const ENTRY_BYTES: usize = 256;
const SEGMENT_BYTES: u64 = 64 << 20;
const ROUNDS: usize = 5;
/// The number of entries that a purge keeps.
const KEPT: u64 = 1_000;
/// Bytes written between two purges of a log that purges.
const PURGE_AFTER: u64 = 32 << 20;

fn main() -> Result<(), Failure> {
    let parent = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent)?;
    println!(
        "{ENTRY_BYTES}-byte entries, one writer, never idle; medians of {ROUNDS} rounds, ratios \
         within the rounds"
    );
    println!(
        "{:>4} {:<12} {:>9} {:>10} {:>8} {:>7} {:>14} {:>14}",
        "N", "log", "syncs/s", "entries/s", "MB/s", "x raw", "x raft-engine", "x re-recycled"
    );
    for (batch, syncs) in [(1, 5_000), (16, 6_000), (128, 1_800)] {
        compare(dir.path(), batch, syncs)?;
    }
    Ok(())
}

/// A log under comparison. `run` appends `syncs` batches of `batch` entries each.
trait Contestant {
    fn run(&mut self, batch: usize, syncs: usize) -> Result<(), Failure>;
}

fn compare(dir: &Path, batch: usize, syncs: usize) -> Result<(), Failure> {
    let dir = tempfile::tempdir_in(dir)?;
    let at = |name: &str| dir.path().join(name);
    let mut growing = Ours::open(&at("growing"), false)?;
    growing.run(batch, 200)?;
    let size = growing.bytes_per_sync();
    let mut recycling = Ours::open(&at("recycling"), true)?;
    // Write until there are purged files to recycle.
    let warm_up = usize::try_from(7 * SEGMENT_BYTES / 2)? / size;
    recycling.run(batch, warm_up)?;
    let prefilled = Config {
        prefill_for_recycle: true,
        purge_threshold: ReadableSize(4 * SEGMENT_BYTES),
        target_file_size: ReadableSize(SEGMENT_BYTES),
        ..Config::default()
    };
    let mut contestants: [(&str, Box<dyn Contestant>); 5] = [
        ("raw", Box::new(Raw::create(dir.path(), size)?)),
        ("growing", Box::new(growing)),
        ("recycling", Box::new(recycling)),
        ("raft-engine", Box::new(RaftEngine::open(&at("raft-engine"), Config::default(), false)?)),
        ("re-recycled", Box::new(RaftEngine::open(&at("re-recycled"), prefilled, true)?)),
    ];
    let mut rates = [[0.0; ROUNDS]; 5];
    for round in 0..ROUNDS {
        for turn in 0..contestants.len() {
            let who = (round + turn) % contestants.len();
            let start = Instant::now();
            contestants[who].1.run(batch, syncs)?;
            rates[who][round] = syncs as f64 / start.elapsed().as_secs_f64();
        }
    }
    let ratio = |who: usize, to: usize| {
        median(std::array::from_fn(|round| rates[who][round] / rates[to][round]))
    };
    for (who, (name, _)) in contestants.iter().enumerate() {
        let rate = median(rates[who]);
        println!(
            "{batch:>4} {name:<12} {rate:>9.0} {:>10.0} {:>8.1} {:>7.2} {:>14.2} {:>14.2}",
            rate * batch as f64,
            rate * (batch * ENTRY_BYTES) as f64 / 1e6,
            ratio(who, 0),
            ratio(who, 3),
            ratio(who, 4)
        );
    }
    Ok(())
}

fn median(mut values: [f64; ROUNDS]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[ROUNDS / 2]
}

/// Returns bytes that do not compress, the same in every run.
fn payload() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as u8
    };
    (0..ENTRY_BYTES).map(|_| next()).collect()
}

struct Raw {
    files: [File; 2],
    content: Vec<u8>,
    segment: usize,
    offset: u64,
}

impl Raw {
    fn create(dir: &Path, size: usize) -> Result<Self, Failure> {
        let create = |name: &str| -> Result<File, Failure> {
            let file = OpenOptions::new().write(true).create_new(true).open(dir.join(name))?;
            let zeros = vec![0; 1 << 20];
            for offset in (0..SEGMENT_BYTES).step_by(1 << 20) {
                file.write_all_at(&zeros, offset)?;
            }
            file.sync_all()?;
            Ok(file)
        };
        let files = [create("raw-0")?, create("raw-1")?];
        File::open(dir)?.sync_all()?;
        let content = payload().into_iter().cycle().take(size).collect();
        Ok(Self { files, content, segment: 0, offset: 0 })
    }
}

impl Contestant for Raw {
    fn run(&mut self, _: usize, syncs: usize) -> Result<(), Failure> {
        for _ in 0..syncs {
            if self.offset + self.content.len() as u64 > SEGMENT_BYTES {
                self.offset = 0;
                self.segment ^= 1;
            }
            self.files[self.segment].write_all_at(&self.content, self.offset)?;
            self.files[self.segment].sync_data()?;
            self.offset += self.content.len() as u64;
        }
        Ok(())
    }
}

struct Ours {
    log: Box<dyn LogStore>,
    data: Bytes,
    next: u64,
    purges: bool,
    purged_at: u64,
}

impl Ours {
    fn open(dir: &Path, purges: bool) -> Result<Self, Failure> {
        let options =
            FileStorageOptions { segment_bytes: SEGMENT_BYTES, ..FileStorageOptions::default() };
        let request = OpenRequest {
            cluster: None,
            node: NodeId::new(1).ok_or("no node")?,
            group: GroupId::FIRST,
            initial: Membership::default(),
            fresh_cluster: ClusterId([1; 16]),
            fresh_incarnation: Incarnation([1; 16]),
        };
        let opened =
            FileStorageEngine::new(dir, options, Arc::new(RealFs::new())).open(&request)?;
        Ok(Self { log: opened.log, data: payload().into(), next: 1, purges, purged_at: 0 })
    }

    fn bytes_per_sync(&self) -> usize {
        let stats = self.log.stats();
        (stats.bytes_written / stats.groups) as usize
    }

    fn id(index: u64) -> LogId {
        LogId::new(Term::new(1), LogIndex::new(index))
    }
}

impl Contestant for Ours {
    fn run(&mut self, batch: usize, syncs: usize) -> Result<(), Failure> {
        for _ in 0..syncs {
            let entry = |index| LogEntry {
                id: Self::id(index),
                kind: EntryKind::Command,
                time_ms: 0,
                session: None,
                version: 0,
                data: self.data.clone(),
            };
            let entries: Vec<LogEntry> = (self.next..self.next + batch as u64).map(entry).collect();
            self.next += batch as u64;
            self.log.append(GroupId::FIRST, None, &entries)?;
            self.log.sync()?;
            let written = self.log.stats().bytes_written;
            if self.purges && written > self.purged_at + PURGE_AFTER && self.next > KEPT + 1 {
                self.log.purge(GroupId::FIRST, Self::id(self.next - 1 - KEPT))?;
                self.purged_at = written;
            }
        }
        Ok(())
    }
}

/// An entry of raft-engine: a protobuf message whose first eight bytes are the index.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        entry.value.first_chunk().map_or(0, |index| u64::from_le_bytes(*index))
    }
}

struct RaftEngine {
    engine: Engine,
    data: Vec<u8>,
    next: u64,
    purges: bool,
    written: u64,
}

impl RaftEngine {
    fn open(dir: &Path, config: Config, purges: bool) -> Result<Self, Failure> {
        let dir = dir.to_str().ok_or("the directory's name is not UTF-8")?.to_owned();
        let config = Config { dir, batch_compression_threshold: ReadableSize(0), ..config };
        Ok(Self { engine: Engine::open(config)?, data: payload(), next: 1, purges, written: 0 })
    }
}

impl Contestant for RaftEngine {
    fn run(&mut self, batch: usize, syncs: usize) -> Result<(), Failure> {
        let mut log_batch = LogBatch::with_capacity(batch);
        for _ in 0..syncs {
            let entry = |index: u64| {
                let mut value = self.data.clone();
                value[..8].copy_from_slice(&index.to_le_bytes());
                BytesValue { value, ..BytesValue::default() }
            };
            let entries: Vec<BytesValue> =
                (self.next..self.next + batch as u64).map(entry).collect();
            self.next += batch as u64;
            log_batch.add_entries::<Indexed>(1, &entries)?;
            self.written += self.engine.write(&mut log_batch, true)? as u64;
            if self.purges && self.written > PURGE_AFTER && self.next > KEPT {
                self.engine.compact_to(1, self.next - KEPT);
                self.engine.purge_expired_files()?;
                self.written = 0;
            }
        }
        Ok(())
    }
}
