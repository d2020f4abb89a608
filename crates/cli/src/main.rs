//! The `d-engine` command: a node, its clients, and a demonstration of a failover.
//!
//! `args.rs` is what can be typed; `serve.rs` runs a node; `key_value.rs` has put and get; `status.rs` the
//! table of a cluster; `demo/` the demonstration; `exit.rs` what the exit codes mean.

mod args;
mod demo;
mod exit;
mod key_value;
mod serve;
mod signals;
mod status;

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
            let result = runtime.block_on(run(cli.verb));
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
        Verb::Serve(args) => serve::serve(args).await,
        Verb::Put(args) => key_value::put(args).await,
        Verb::Get(args) => key_value::get(args).await,
        Verb::Status(args) => status::status(args).await,
        Verb::Demo(args) => demo::demo(args).await,
    }
}
