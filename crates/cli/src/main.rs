//! The `d-engine` command: runs a node, sends client requests, runs a local cluster, measures a
//! cluster, and demonstrates a failover.
//!
//! `args/` defines the command line, `exit.rs` the exit codes. `serve.rs` runs a node and
//! `log_lines.rs` writes its log. `key_value.rs`, `scan.rs` and `import/` read and write records;
//! `status.rs`, `member/`, `snapshot.rs`, `transfer.rs` and `skip_entry.rs` operate the cluster.
//! `backup/` copies snapshots out of the cluster; `inspect/` reads the files of a node that does
//! not run; `recover/`, `repair.rs` and `restore.rs` make new directories.
//! `cluster/` starts and stops the processes of a local cluster, which `dev.rs` and `demo/` use.
//! `bench/` measures one.

mod args;
mod backup;
mod bench;
mod blocking;
mod cluster;
mod demo;
mod descriptors;
mod dev;
mod exit;
mod import;
mod inspect;
mod json;
mod key_value;
mod log_lines;
mod member;
mod output;
mod place;
mod progress;
mod recover;
mod repair;
mod restore;
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

/// Threads of the async runtime. Its tasks mostly wait; a node's own work runs on threads of its
/// own.
const WORKER_THREADS: usize = 2;
/// How long the exit waits for background tasks of the runtime.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli.verb)).and_then(|()| exit::unprinted());
            runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
            result
        }
        Err(error) => Err(Failure::failed(format!("the async runtime cannot be started: {error}"))),
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
        Verb::Member(args) => member::member(args).await,
        Verb::Snapshot(args) => snapshot::snapshot(args).await,
        Verb::Log(args) => inspect::log(args).await,
        Verb::Backup(args) => backup::backup(args).await,
        Verb::Repair(args) => repair::repair(args).await,
        Verb::Recover(args) => recover::recover(args).await,
        Verb::Restore(args) => restore::restore(args).await,
        Verb::SkipEntry(args) => skip_entry::skip_entry(args).await,
        Verb::TransferLeader(args) => transfer::transfer_leader(args).await,
        Verb::Bench(args) => bench::bench(*args).await,
        Verb::Demo(args) => demo::demo(args).await,
    }
}
