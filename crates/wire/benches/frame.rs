//! Measures the cost of the wire format: an append is encoded for two followers and decoded on one.
//!
//! ```text
//! cargo bench -p d-engine-wire
//! ```
#![allow(clippy::unwrap_used, reason = "a benchmark may stop there")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use d_engine_core::{EntryKind, GroupId, LogId, LogIndex, Term};
use d_engine_replica::PeerMessage;
use d_engine_storage::LogEntry;
use d_engine_wire::{FrameEncoder, decode_frame};

const ENTRY_BYTES: usize = 256;

fn append(count: u64) -> PeerMessage {
    let data = Bytes::from(vec![0xA5; ENTRY_BYTES]);
    let entry = |index| LogEntry {
        id: LogId::new(Term::new(3), LogIndex::new(index)),
        kind: EntryKind::Command,
        time_ms: 1_700_000_000_000,
        session: None,
        version: 0,
        data: data.clone(),
    };
    PeerMessage::Append {
        term: Term::new(3),
        prev: LogId::new(Term::new(3), LogIndex::new(1_000_000)),
        commit: LogIndex::new(1_000_000),
        entries: (1_000_001..=1_000_000 + count).map(entry).collect(),
    }
}

fn frames(criterion: &mut Criterion) {
    for count in [1, 16, 128] {
        let message = append(count);
        let frame = FrameEncoder::new().encode(GroupId::FIRST, &message).to_bytes();
        let mut group =
            criterion.benchmark_group(format!("append of {count} entries of {ENTRY_BYTES} bytes"));
        group.throughput(Throughput::Elements(count));
        group.bench_function("encode for two followers", |bencher| {
            bencher.iter(|| {
                let mut encoder = FrameEncoder::new();
                for _follower in 0..2 {
                    black_box(encoder.encode(GroupId::FIRST, black_box(&message)));
                }
            });
        });
        group.bench_function("decode", |bencher| {
            bencher.iter(|| decode_frame(black_box(&frame)).unwrap());
        });
        group.finish();
    }
}

fn short() -> Criterion {
    let (warm_up, measured) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measured)
}

criterion_group!(name = benches; config = short(); targets = frames);
criterion_main!(benches);
