//! The cost of the log without the disk: appends with their sync, and replay at open, on the
//! simulated disk, where a sync costs next to nothing. The cost of the disk is measured by
//! `benches/compare`.
//!
//! ```text
//! cargo bench -p d-engine-storage
//! ```
// A measurement needs a clock; the crate itself has none.
#![allow(clippy::unwrap_used, reason = "a benchmark may stop there")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use d_engine_core::{EntryKind, GroupId, HardState, LogId, LogIndex, NodeId, Term};
use d_engine_storage::fs::sim::{SimFs, SimImage};
use d_engine_storage::{
    ClusterId, FileStorageEngine, FileStorageOptions, Incarnation, LogEntry, LogStore, Membership,
    OpenRequest, OpenedStorage, StorageEngine,
};

const ENTRY_BYTES: usize = 256;
/// Entries of the log that is replayed.
const REPLAYED: u64 = 20_000;

fn open(fs: &SimFs) -> OpenedStorage {
    let options = FileStorageOptions { segment_bytes: 4 << 20, ..FileStorageOptions::default() };
    let request = OpenRequest {
        cluster: None,
        node: NodeId::new(1).unwrap(),
        group: GroupId::FIRST,
        initial: Membership::default(),
        fresh_cluster: ClusterId([1; 16]),
        fresh_incarnation: Incarnation([1; 16]),
    };
    FileStorageEngine::new("/data", options, Arc::new(fs.clone())).open(&request).unwrap()
}

fn entries(first: u64, count: u64) -> Vec<LogEntry> {
    let data = Bytes::from(vec![0xA5; ENTRY_BYTES]);
    let entry = |index| LogEntry {
        id: LogId::new(Term::new(1), LogIndex::new(index)),
        kind: EntryKind::Command,
        time_ms: index,
        session: None,
        version: 0,
        data: data.clone(),
    };
    (first..first + count).map(entry).collect()
}

fn append(log: &mut dyn LogStore, entries: &[LogEntry]) {
    let commit = entries[0].id.index;
    let state =
        HardState { term: Term::new(1), vote: NodeId::new(1), commit, ..HardState::default() };
    log.append(GroupId::FIRST, Some(state), entries).unwrap();
    log.sync().unwrap();
}

fn appends(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append and sync");
    for batch in [1, 16, 128] {
        let mut log = open(&SimFs::new()).log;
        let mut next = 1;
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("{batch} entries of {ENTRY_BYTES} bytes"), |bencher| {
            let prepare = || {
                next += batch;
                entries(next - batch, batch)
            };
            // Purged as it goes, so that memory stays bounded.
            bencher.iter_batched(
                prepare,
                |entries| {
                    append(&mut *log, &entries);
                    let last = entries[entries.len() - 1].id;
                    if last.index.get() % 8_192 < batch {
                        log.purge(GroupId::FIRST, last).unwrap();
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn replay(criterion: &mut Criterion) {
    let image: SimImage = {
        let fs = SimFs::new();
        let mut log = open(&fs).log;
        for first in (1..=REPLAYED).step_by(16) {
            append(&mut *log, &entries(first, 16));
        }
        drop(log);
        fs.image()
    };
    let mut group = criterion.benchmark_group("replay");
    group.sample_size(20);
    group.throughput(Throughput::Elements(REPLAYED));
    group.bench_function(
        format!("{REPLAYED} entries of {ENTRY_BYTES} bytes, 16 per group"),
        |bencher| {
            bencher.iter_batched(
                || SimFs::from_image(&image),
                |fs| {
                    let opened = open(&fs);
                    assert_eq!(opened.recovered.entries.len() as u64, REPLAYED);
                    opened
                },
                BatchSize::PerIteration,
            );
        },
    );
    group.finish();
}

criterion_group!(benches, appends, replay);
criterion_main!(benches);
