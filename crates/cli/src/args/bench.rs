//! `bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use d_engine_client::ReadConsistency;

use super::consistency::consistency;
use super::units::{duration, duration_or_zero};

const BENCH_HELP: &str = "\
Examples:
    d-engine bench                                      # durable puts by 64 callers
    d-engine bench put --callers 1,16,64,256 --duration 10s --dir /mnt/fast
    d-engine bench get --consistency lease
    d-engine bench mixed --reads 90 --rate 2000 --plot latency.svg
    d-engine bench scan --page 100 --json
    d-engine bench --embedded propose
    d-engine bench --endpoints 10.0.0.1:7001,10.0.0.2:7001,10.0.0.3:7001 get

Without --endpoints or --embedded, the nodes run as processes on this machine, with real files \
and sockets on the disk of --dir, and a measurement covers the whole call. A majority syncs every \
write before it is acknowledged. A cluster named by --endpoints keeps the keys that are written; \
all of them begin with `bench/`.

Closed loop (the default): each caller sends its next operation when the previous one is \
answered. With --rate, operations begin at fixed times, however slow the responses are, and \
latency counts from the time at which the operation should have begun: a stall shows in every \
operation that it delayed (no coordinated omission).

Workloads: put; get; mixed (gets and puts); scan (one page from a random key); propose (the put \
of one key, encoded once in advance, which measures the engine without the key-value client). \
Costs are the sums over all nodes, divided by the number of successful operations. HOPS counts \
how often a sleeping thread of a node was woken (voluntary context switches): hand-overs of work \
between threads, which many concurrent callers share. Costs come from the nodes' counters and \
from Linux's /proc; on other systems, and for processes that this command did not start, they are \
n/a.

Exit 0 even if operations failed: the table counts them. Exit 130: interrupted; the results so \
far are printed.";

/// The operations that `bench` measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// Set the value of a random key
    Put,
    /// Read a random key; every key was put before
    Get,
    /// Gets and puts of random keys
    Mixed,
    /// Read a page of records, starting at a random key
    Scan,
    /// Propose the same command, encoded in advance, repeatedly
    Propose,
}

#[derive(Args, Debug)]
#[command(after_help = BENCH_HELP)]
pub(crate) struct BenchArgs {
    /// The operation to measure.
    #[arg(value_enum, default_value_t = Workload::Put)]
    pub(crate) workload: Workload,
    /// Measure an existing cluster with these client addresses of its nodes.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', conflicts_with_all = ["embedded", "dir", "nodes"])]
    pub(crate) endpoints: Vec<String>,
    /// Run the nodes inside this process and call them directly.
    #[arg(long)]
    pub(crate) embedded: bool,
    /// How many nodes to start.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// Directory for the nodes' files, removed at the end. Its disk is what is measured.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Concurrent operations; with a list, each number is measured in turn.
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub(crate) callers: Vec<u16>,
    /// Connections to each node, shared by the callers (default: one per 64 callers).
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) connections: Option<u16>,
    /// Length of each key.
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u16).range(7..=4_096))]
    pub(crate) key_bytes: u16,
    /// Length of each value.
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) value_bytes: u32,
    /// Number of different keys.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) keys: u32,
    /// Consistency of reads, for get, mixed and scan [default: linearizable].
    #[arg(long, value_parser = consistency())]
    pub(crate) consistency: Option<ReadConsistency>,
    /// Percentage of gets, for mixed [default: 50].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) reads: Option<u8>,
    /// Records per page, for scan [default: 100].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) page: Option<u32>,
    /// How long to measure each number of callers.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long to run the workload before each measurement.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_or_zero)]
    pub(crate) warmup: Duration,
    /// Begin this many operations per second, however slow the responses are.
    #[arg(long, value_name = "PER SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,
    /// Deadline of one operation, the client's retries included.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw latency by percentile and throughput over time.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}
