//! The speed of the log, compared with that of the disk itself.
//!
//! ```text
//! cargo run --release -p d-engine-storage --example log_throughput [-- DIRECTORY]
//! ```
//!
//! Appends entries of 256 bytes, N at a time with one sync, and in alternating rounds overwrites a
//! pre-zeroed file with writes of the same size and one `fdatasync` each: the least that any log
//! must do. Prints medians over the rounds and their ratio, for both alignments. The speed of a
//! disk changes from hour to hour, so compare the ratios.
// A measurement needs a clock; the crate itself has none.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::print_stdout)]

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use d_engine_storage::{
    Alignment, ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, LogStore,
    Member, MemberRole, Membership, OpenRequest, RealFs, StorageEngine,
};

const ENTRY_BYTES: usize = 256;
const ROUNDS: usize = 9;
const RAW_BYTES: u64 = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = dir.join(format!("d-engine-log-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let result = measure(&dir);
    std::fs::remove_dir_all(&dir)?;
    result
}

fn measure(dir: &Path) -> Result<(), Box<dyn Error>> {
    println!("{ENTRY_BYTES}-byte entries; medians of {ROUNDS} rounds, raw and prepared in turns");
    println!(
        "prepared: in a zero-filled segment; grown: in one that grows (no idle moment since the open)"
    );
    let columns =
        ["alignment", "N", "raw syncs/s", "prepared", "entries/s", "ratio", "grown", "ratio"];
    let [a, b, c, d, e, f, g, h] = columns;
    println!("{a:>9} {b:>4} {c:>12} {d:>10} {e:>10} {f:>6} {g:>10} {h:>6}");
    for alignment in [Alignment::Sector, Alignment::Page] {
        for batch in [1, 16, 128] {
            compare(dir, alignment, batch)?;
        }
    }
    Ok(())
}

fn compare(dir: &Path, alignment: Alignment, batch: usize) -> Result<(), Box<dyn Error>> {
    let name = format!("{}-{batch}", alignment.bytes());
    let mut grown = Log::open(&dir.join(format!("grown-{name}")), alignment)?;
    let mut prepared = Log::open(&dir.join(format!("prepared-{name}")), alignment)?;
    for _ in 0..32 {
        prepared.store.idle()?;
    }
    let mut raw = Raw::create(&dir.join("raw"))?;
    // Few enough that all rounds fit into a segment.
    let syncs = (6_000 / (10 + batch)).max(150);
    let before = prepared.store.stats().bytes_written;
    prepared.run(batch, syncs)?;
    let size = (prepared.store.stats().bytes_written - before) as usize / syncs;
    raw.run(size, syncs)?;
    let (mut raw_rates, mut prepared_rates, mut grown_rates) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        raw_rates.push(raw.run(size, syncs)?);
        prepared_rates.push(prepared.run(batch, syncs)?);
    }
    // Measured alone: the system's work for a growing file slows down all writers.
    for _ in 0..ROUNDS {
        grown_rates.push(grown.run(batch, syncs)?);
    }
    let (raw, prepared, grown) = (median(raw_rates), median(prepared_rates), median(grown_rates));
    println!(
        "{:>9} {batch:>4} {raw:>12.0} {prepared:>10.0} {:>10.0} {:>6.2} {grown:>10.0} {:>6.2}",
        alignment.bytes(),
        prepared * batch as f64,
        prepared / raw,
        grown / raw
    );
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

struct Log {
    store: Box<dyn LogStore>,
    next: u64,
}

impl Log {
    fn open(dir: &Path, alignment: Alignment) -> Result<Self, Box<dyn Error>> {
        let options = FileStorageOptions { alignment, ..FileStorageOptions::default() };
        let node = NodeId::new(1).ok_or("no node")?;
        let member = Member {
            node: 1,
            peer_addr: "127.0.0.1:1".to_owned(),
            client_addr: String::new(),
            role: MemberRole::Voter,
            incarnation: None,
        };
        let request = OpenRequest {
            cluster: None,
            node,
            group: GroupId::FIRST,
            initial: Membership::new([member])?,
            fresh_cluster: ClusterId([1; 16]),
            fresh_incarnation: Incarnation([1; 16]),
        };
        let opened =
            FileStorageEngine::new(dir, options, Arc::new(RealFs::new())).open(&request)?;
        Ok(Self { store: opened.log, next: 1 })
    }

    /// Syncs per second.
    fn run(&mut self, batch: usize, syncs: usize) -> Result<f64, Box<dyn Error>> {
        let data = Bytes::from(vec![0xA5; ENTRY_BYTES]);
        let mut elapsed = Duration::ZERO;
        for _ in 0..syncs {
            let entries: Vec<LogEntry> = (0..batch as u64)
                .map(|distance| LogEntry {
                    id: LogId::new(Term::new(1), LogIndex::new(self.next + distance)),
                    kind: EntryKind::Command,
                    time_ms: 0,
                    session: None,
                    version: 0,
                    data: data.clone(),
                })
                .collect();
            self.next += batch as u64;
            let start = Instant::now();
            self.store.append(GroupId::FIRST, None::<HardState>, &entries)?;
            self.store.sync()?;
            elapsed += start.elapsed();
        }
        Ok(syncs as f64 / elapsed.as_secs_f64())
    }
}

struct Raw {
    file: File,
    offset: u64,
}

impl Raw {
    fn create(path: &Path) -> Result<Self, Box<dyn Error>> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeros = vec![0; 1 << 20];
        for offset in (0..RAW_BYTES).step_by(1 << 20) {
            file.write_all_at(&zeros, offset)?;
        }
        file.sync_all()?;
        Ok(Self { file, offset: 0 })
    }

    /// Syncs per second.
    fn run(&mut self, size: usize, syncs: usize) -> Result<f64, Box<dyn Error>> {
        let data = vec![0x5A; size];
        let start = Instant::now();
        for _ in 0..syncs {
            if self.offset + size as u64 > RAW_BYTES {
                self.offset = 0;
            }
            self.file.write_all_at(&data, self.offset)?;
            self.file.sync_data()?;
            self.offset += size as u64;
        }
        Ok(syncs as f64 / start.elapsed().as_secs_f64())
    }
}
