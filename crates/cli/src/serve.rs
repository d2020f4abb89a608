//! `d-engine serve`: one node.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use d_engine_kv_disk::DiskKvStateMachine;
use d_engine_server::{Config, EmbeddedEngine, NodeBuilder, StartError};
use tokio::sync::{oneshot, watch};

use crate::args::{ServeArgs, StateMachineKind};
use crate::descriptors;
use crate::exit::{Exit, Failure, try_say};
use crate::log_lines::LogLines;
use crate::signals::StopSignals;

/// Below the data directory, where the records lie on disk.
const DISK_DIR: &str = "kv-disk";

pub(crate) async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let config = Config::from_file(&args.config).map_err(|error| Failure::new(Exit::Refused, error))?;
    let lines = LogLines::to_stderr()?;
    let ended = node(args, config).await;
    // From here on stderr may be something that nobody reads: the last words go where the log lines go.
    let ended = ended.map_err(|failure| failure.said_by(|words| lines.say(words)));
    lines.finish();
    ended
}

/// One node, until it is asked to stop or fails.
async fn node(args: ServeArgs, config: Config) -> Result<(), Failure> {
    // Before anything else is started, so that an early signal is not the end without a farewell.
    let mut signals = StopSignals::listen()?;
    let stdin = args.stop_on_stdin_close.then(stdin_closed).transpose()?;
    let id = config.node_id;
    descriptors::raise_limit();
    // The signals are handled here; the engine is stopped by its handle.
    let (_shutdown, never) = watch::channel(());
    let node = with_machine(config, args.state_machine, never)?.build().map_err(start_failure)?;
    let engine = node.start().await.map_err(start_failure)?;
    let asked = async {
        tokio::select! {
            signal = signals.next() => signal,
            () = closed(stdin) => "the end of stdin",
        }
    };
    tokio::select! {
        why = asked => {
            tracing::info!(node = id, "stopping: {why}");
            engine.stop().await;
            tracing::info!(node = id, "stopped");
            Ok(())
        }
        failure = runs(&engine, id) => failure,
    }
}

/// The machine on disk lies in a directory of its own, which also tells that it was chosen.
fn with_machine(
    config: Config,
    kind: StateMachineKind,
    shutdown: watch::Receiver<()>,
) -> Result<NodeBuilder, Failure> {
    // An empty one is refused by the engine, with the reason.
    let has_data_dir = !config.data_dir.as_os_str().is_empty();
    let dir = config.data_dir.join(DISK_DIR);
    let builder = NodeBuilder::new(config, shutdown);
    match kind {
        StateMachineKind::Disk => Ok(builder.state_machine(Arc::new(DiskKvStateMachine::new(dir)))),
        StateMachineKind::Memory if has_data_dir && dir.exists() => Err(Failure::refused(format_args!(
            "{} was made by a node with --state-machine disk, and this one was started with --state-machine memory; \
             start it with --state-machine disk, or remove that directory to have the records rebuilt in memory from \
             snapshot and log",
            dir.display()
        ))),
        StateMachineKind::Memory => Ok(builder),
    }
}

/// Says when the node is ready; returns when it has failed.
async fn runs(engine: &EmbeddedEngine, id: u64) -> Result<(), Failure> {
    if engine.wait_ready(Duration::MAX).await.is_ok() {
        let clients = engine.client_addr().map(|addr| format!(", clients at {addr}")).unwrap_or_default();
        // Once, on a thread of its own: stdout may be a pipe that nobody reads.
        let line = format!("node {id} is ready{clients}");
        let told = std::thread::Builder::new().name("ready".to_owned()).spawn(move || try_say(line).ok());
        if let Err(error) = told {
            tracing::warn!(node = id, %error, "stdout was not told that the node is ready");
        }
    }
    engine.stopped().await.map_err(|error| Failure::failed(format!("node {id} has stopped: {error}")))
}

fn start_failure(error: StartError) -> Failure {
    let exit = if matches!(error, StartError::Config(_)) { Exit::Refused } else { Exit::Failed };
    Failure::new(exit, error)
}

/// Resolves when stdin ends. A thread of its own: a blocked read must not hold up the runtime's end.
fn stdin_closed() -> Result<oneshot::Receiver<()>, Failure> {
    let (ended, end) = oneshot::channel();
    let read = move || {
        let mut ignored = [0; 256];
        // Whatever it is that ends the reading: there is nobody behind stdin any more.
        while std::io::stdin().read(&mut ignored).is_ok_and(|bytes| bytes > 0) {}
        ended.send(()).ok();
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)
        .map_err(|error| Failure::failed(format!("no thread can be started: {error}")))?;
    Ok(end)
}

async fn closed(stdin: Option<oneshot::Receiver<()>>) {
    match stdin {
        // An error means that the thread is gone, and stdin with it.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
}
