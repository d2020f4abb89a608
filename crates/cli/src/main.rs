//! The `d-engine` command: a node, its clients, a cluster to work against, and a demonstration of a failover.
//!
//! `args/` is what can be typed. `serve.rs` runs a node, whose log goes through
//! `log_lines.rs`. `key_value.rs`, `scan.rs` and `import/` work with
//! records, `status.rs`, `snapshot.rs`, `transfer.rs` and `skip_entry.rs` with the cluster. `dev.rs` and `demo/` run a cluster of processes, which
//! `cluster/` starts and stops. `bench/` measures one. `exit.rs` is what the exit codes mean.

mod args;
mod bench;
mod cluster;
mod demo;
mod descriptors;
mod dev;
mod exit;
mod import;
mod json;
mod key_value;
mod log_lines;
mod place;
mod progress;
mod scan;
mod serve;
mod signals;
mod skip_entry;
mod snapshot;
mod status;
mod transfer;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;

use crate::args::{Cli, Verb};
use crate::exit::Failure;

/// Threads for waiting calls; a node's own work has its own threads.
const WORKER_THREADS: usize = 2;
/// What is still running in the background when the command is done does not hold it up for longer.
const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(WORKER_THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli.verb)).and_then(|()| exit::unprinted());
            runtime.shutdown_timeout(SHUTDOWN_PATIENCE);
            result
        }
        Err(error) => Err(Failure::failed(format!("no runtime can be started: {error}"))),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

async fn run(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Dev(args) => dev::dev(args).await,
        Verb::Serve(args) => serve::serve(args).await,
        Verb::Put(args) => key_value::put(args).await,
        Verb::Get(args) => key_value::get(args).await,
        Verb::Delete(args) => key_value::delete(args).await,
        Verb::Cas(args) => key_value::cas(args).await,
        Verb::Scan(args) => scan::scan(args).await,
        Verb::Import(args) => import::import(args).await,
        Verb::Status(args) => status::status(args).await,
        Verb::Snapshot(args) => snapshot::snapshot(args).await,
        Verb::SkipEntry(args) => skip_entry::skip_entry(args).await,
        Verb::TransferLeader(args) => transfer::transfer_leader(args).await,
        Verb::Bench(args) => bench::bench(*args).await,
        Verb::Demo(args) => demo::demo(args).await,
    }
}
