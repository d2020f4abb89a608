//! The cost of the key-value machine's map: memory per key, applying, reading, freezing a view,
//! and applying while a view is held and written. `cargo run --release -p d-engine-kv --example
//! kv_figures -- [KEYS]`, 1,000,000 without an argument.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_types,
    reason = "a program that measures has a clock"
)]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use d_engine_kv::{KvCommand, KvStateMachine};
use d_engine_state_machine::{Entry, LogId, SnapshotMetadata, StateMachine};

const CHUNK: u64 = 128;
const VALUE_BYTES: usize = 256;

fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the machine waits for something outside itself"),
    }
}

/// Keys of 8 bytes, spread over the whole range.
fn key(number: u64) -> [u8; 8] {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()
}

/// Resident memory of this process in bytes; 0 where there is no `/proc`.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok())
        .map_or(0, |kib: u64| kib * 1_024)
}

/// The cost of applying.
struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    longest: Duration,
}

impl Figures {
    fn of(mut chunks: Vec<Duration>) -> Self {
        let total: Duration = chunks.iter().sum();
        chunks.sort_unstable();
        let at = |percent: usize| chunks[(chunks.len() - 1) * percent / 100];
        let per_second = (chunks.len() as u64 * CHUNK) as f64 / total.as_secs_f64();
        Self { per_second, p50: at(50), p99: at(99), longest: at(100) }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { per_second, p50, p99, longest } = self;
        write!(
            f,
            "{per_second:>10.0} per second, a chunk p50 {p50:?}, p99 {p99:?}, longest {longest:?}"
        )
    }
}

struct Load {
    machine: KvStateMachine,
    next: u64,
    random: u64,
    keys: u64,
}

impl Load {
    fn any_key(&mut self) -> [u8; 8] {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        key(self.random % self.keys)
    }

    fn entries(&mut self, mut key_of: impl FnMut(&mut Self, u64) -> [u8; 8]) -> Vec<Entry> {
        let first = self.next;
        self.next += CHUNK;
        let put = |key: [u8; 8]| {
            KvCommand::put(Bytes::copy_from_slice(&key), vec![7; VALUE_BYTES]).encode()
        };
        (first..self.next).map(|index| Entry::new(index, 1, put(key_of(self, index - 1)))).collect()
    }

    /// Overwrites random keys in chunk after chunk.
    fn overwrite(&mut self, mut goes_on: impl FnMut(usize) -> bool) -> Figures {
        let mut took = Vec::new();
        while goes_on(took.len()) {
            let entries = self.entries(|load, _| load.any_key());
            let start = Instant::now();
            at_once(self.machine.apply_chunk(entries)).unwrap();
            took.push(start.elapsed());
        }
        Figures::of(took)
    }
}

fn main() {
    let keys: u64 = std::env::args().nth(1).map_or(1_000_000, |number| number.parse().unwrap());
    let mut load = Load { machine: KvStateMachine::new(), next: 1, random: 1, keys };
    let empty = resident();
    let mut inserting = Duration::ZERO;
    while load.next <= keys {
        let entries = load.entries(|_, number| key(number));
        let start = Instant::now();
        at_once(load.machine.apply_chunk(entries)).unwrap();
        inserting += start.elapsed();
    }
    let held = load.machine.len() as u64;
    println!("{held} keys of 8 bytes, values of {VALUE_BYTES}, chunks of {CHUNK} entries");
    println!("memory           {:>10} bytes per key", (resident() - empty) / held);
    println!("new keys         {:>10.0} per second", held as f64 / inserting.as_secs_f64());
    println!("overwrites       {}", load.overwrite(|chunk| chunk < 4_000));
    let start = Instant::now();
    for _ in 0..500_000 {
        let key = load.any_key();
        assert!(load.machine.get(&key).unwrap().is_some());
    }
    println!("gets             {:>10.0} per second", 500_000.0 / start.elapsed().as_secs_f64());

    let start = Instant::now();
    let view = load.machine.snapshot_view().unwrap().unwrap();
    println!("freezing a view  {:>10?}", start.elapsed());
    println!("with it held     {}", load.overwrite(|chunk| chunk < 4_000));
    println!("memory with it   {:>10} bytes per key", (resident() - empty) / held);
    drop(view);

    // The part of the next figures that is due to other load on the processor.
    let ends = Instant::now() + Duration::from_secs(3);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| while Instant::now() < ends {});
        println!("beside a loop    {}", load.overwrite(|_| !busy.is_finished()));
    });
    let view = load.machine.snapshot_view().unwrap().unwrap();
    let last_included = view.last_included();
    let dir = std::env::temp_dir().join(format!("kv-figures-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let checksum = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let start = Instant::now();
            let checksum = view.write(&dir).unwrap();
            (checksum, start.elapsed())
        });
        let figures = load.overwrite(|_| !writer.is_finished());
        let (checksum, took) = writer.join().unwrap();
        println!("while written    {figures}");
        println!("write and free   {took:>10?}");
        checksum
    });
    let other = KvStateMachine::new();
    let start = Instant::now();
    let meta = SnapshotMetadata::new(last_included, checksum);
    at_once(other.apply_snapshot_from_file(&meta, dir.clone())).unwrap();
    println!("install          {:>10?}", start.elapsed());
    assert_eq!((other.last_applied(), other.len() as u64), (last_included, held));
    assert!(load.machine.last_applied() > LogId::default());
    std::fs::remove_dir_all(&dir).unwrap();
}
