//! `bench`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Freshness;
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

Without --endpoints or --embedded the nodes are processes of their own on this machine, with real files and sockets: \
what is measured is the whole way of a call, on the disk that --dir names. Every write is synced by a majority before \
it is acknowledged. A cluster named by --endpoints keeps the keys that are written, all of which begin with `bench/`.

Closed loop (the default): each caller sends its next operation when the last one is answered. With --rate \
operations begin at fixed times whatever the answers do, and a latency counts from the time at which its operation \
should have begun: a stall shows in all operations that it delayed (no coordinated omission).

Workloads: put; get; mixed (gets and puts); scan (one page from a random key); propose (the put of one key, encoded \
once beforehand: the engine without the key-value client). Costs are those of all nodes together, divided by the \
operations that succeeded. `hops` are the times that a thread of a node had slept and was woken (voluntary \
context switches): the hand-overs of work between threads, which many callers at once share. Costs come from the nodes \
and from Linux's /proc; elsewhere, and of processes that are not this command's, they are n/a.

Exit 0 also when operations failed: the table counts them. Exit 130: interrupted; what was measured is shown.";

/// What `bench` does all the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Workload {
    /// Give a random key a value
    Put,
    /// Read a random key, all of which were put before
    Get,
    /// Gets and puts of random keys
    Mixed,
    /// Read a page of records from a random key on
    Scan,
    /// Send one command, encoded beforehand, again and again
    Propose,
}

#[derive(Args, Debug)]
#[command(after_help = BENCH_HELP)]
pub(crate) struct BenchArgs {
    /// What to do.
    #[arg(value_enum, default_value_t = Workload::Put)]
    pub(crate) workload: Workload,
    /// Measure an existing cluster, these being the client addresses of its nodes.
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', conflicts_with_all = ["embedded", "dir", "nodes"])]
    pub(crate) endpoints: Vec<String>,
    /// Run the nodes inside this process and call them directly.
    #[arg(long)]
    pub(crate) embedded: bool,
    /// How many nodes are started.
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: u64,
    /// Where the nodes keep their files while they are measured; the disk matters. Removed at the end.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Operations at once; with a list each number is measured in turn.
    #[arg(long, value_name = "COUNT,...", value_delimiter = ',', default_value = "64", value_parser = clap::value_parser!(u16).range(1..=16_384))]
    pub(crate) callers: Vec<u16>,
    /// Connections to each node that the callers share (default: one for each 64 callers).
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..=1_024))]
    pub(crate) connections: Option<u16>,
    /// Length of a key.
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u16).range(7..=4_096))]
    pub(crate) key_bytes: u16,
    /// Length of a value.
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) value_bytes: u32,
    /// How many different keys.
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    pub(crate) keys: u32,
    /// How fresh what is read must be, for get, mixed and scan [default: linearizable].
    #[arg(long, value_enum)]
    pub(crate) consistency: Option<Freshness>,
    /// How many of a hundred operations are gets, for mixed [default: 50].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub(crate) reads: Option<u8>,
    /// Records of a page, for scan [default: 100].
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) page: Option<u32>,
    /// How long each number of callers is measured.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) duration: Duration,
    /// How long the same is done before, unmeasured.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration_or_zero)]
    pub(crate) warmup: Duration,
    /// Begin so many operations a second, whatever the answers do.
    #[arg(long, value_name = "PER SECOND", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) rate: Option<u32>,
    /// How long one operation may take, with what the client repeats by itself.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw latency by percentile and throughput over time.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
}
