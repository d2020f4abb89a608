//! The cost of the key-value machine: chunks of puts, a get, a page of a scan.
//!
//! ```text
//! cargo bench -p d-engine-kv
//! ```
#![allow(clippy::unwrap_used, reason = "a benchmark may stop there")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::future::Future;
use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use d_engine_kv::{KvCommand, KvQuery, KvStateMachine, Scan};
use d_engine_state_machine::{Entry, StateMachine};

const KEYS: u64 = 10_000;
const VALUE_BYTES: usize = 256;

/// Returns the result of a future that never waits, as this machine's do not.
fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

fn key(number: u64) -> Bytes {
    format!("key-{:08}", number % KEYS).into()
}

/// Puts with these log indexes. The keys of two neighbours are a prime apart, so that they are not
/// inserted in the order of the tree.
fn puts(first: u64, count: u64) -> Vec<Entry> {
    let value = Bytes::from(vec![7; VALUE_BYTES]);
    let put = |index: u64| {
        Entry::new(index, 1, KvCommand::put(key(index * 7_919), value.clone()).encode())
    };
    (first..first + count).map(put).collect()
}

fn filled() -> KvStateMachine {
    let machine = KvStateMachine::new();
    at_once(machine.apply_chunk(puts(1, KEYS))).unwrap();
    assert_eq!(machine.len() as u64, KEYS);
    machine
}

fn applies(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("apply_chunk");
    for count in [1, 128] {
        let machine = filled();
        let mut next = KEYS + 1;
        group.throughput(Throughput::Elements(count));
        group.bench_function(format!("{count} puts of {VALUE_BYTES} bytes"), |bencher| {
            let prepare = || {
                next += count;
                puts(next - count, count)
            };
            bencher.iter_batched(
                prepare,
                |chunk| at_once(machine.apply_chunk(chunk)),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

fn reads(criterion: &mut Criterion) {
    let machine = filled();
    let keys: Vec<Bytes> = (0..1_024).map(|number| key(number * 7_919)).collect();
    let mut at = 0;
    criterion.bench_function("get", |bencher| {
        bencher.iter(|| {
            at = (at + 1) % keys.len();
            machine.get(black_box(&keys[at])).unwrap()
        });
    });
    let question = KvQuery::Scan(Scan::range(key(5_000), None).limit(100)).encode();
    criterion.bench_function("scan, a page of 100", |bencher| {
        bencher.iter(|| machine.query(black_box(&question)).unwrap());
    });
}

fn short() -> Criterion {
    let (warm_up, measured) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measured)
}

criterion_group!(name = benches; config = short(); targets = applies, reads);
criterion_main!(benches);
