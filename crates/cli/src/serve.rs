//! `d-engine serve`: runs one node.

use std::io::Read as _;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use d_engine_kv_disk::DiskKvStateMachine;
use d_engine_server::{Config, EmbeddedEngine, JoinRole, NodeBuilder, StartError};
use tokio::sync::{oneshot, watch};

use crate::args::{ServeArgs, StateMachineKind};
use crate::descriptors;
use crate::exit::{Exit, Failure, try_say};
use crate::log_lines::LogLines;
use crate::signals::StopSignals;

/// The directory inside the data directory that holds the records of `--state-machine disk`.
const DISK_DIR: &str = "kv-disk";

pub(crate) async fn serve(args: ServeArgs) -> Result<(), Failure> {
    let mut config =
        Config::from_file(&args.config).map_err(|error| Failure::new(Exit::Refused, error))?;
    config.ignore_superseded |= args.ignore_superseded;
    let lines = LogLines::to_stderr()?;
    let ended = node(args, config).await;
    // From here on a write to stderr could block, so the last message goes through the log queue
    // too.
    let ended = ended.map_err(|failure| failure.said_by(|words| lines.say(words)));
    lines.finish();
    ended
}

/// Runs one node until it is asked to stop or fails.
async fn node(args: ServeArgs, config: Config) -> Result<(), Failure> {
    // First, so that an early signal does not end the process without a clean stop.
    let mut signals = StopSignals::listen()?;
    let mut stdin = args.stop_on_stdin_close.then(stdin_closed).transpose()?;
    descriptors::raise_limit();
    let joins = !config.join.is_empty() && config.join_as == JoinRole::Voter;
    // Ends a start. A node that runs is stopped through its handle.
    let (shutdown, shuts_down) = watch::channel(());
    let node = with_machine(config, args.state_machine, shuts_down)?;
    let mut start = pin!(node.build().map_err(start_failure)?.start());
    let engine = tokio::select! {
        started = &mut start => started.map_err(start_failure)?,
        // A node that joins asks until it is a member, for ever.
        why = asked_to_stop(&mut signals, &mut stdin) => {
            tracing::info!("stopping before the node has started: {why}");
            shutdown.send_replace(());
            if let Ok(engine) = start.await {
                engine.stop().await;
            }
            return Ok(());
        }
    };
    let id = engine.node_id();
    tokio::select! {
        why = asked_to_stop(&mut signals, &mut stdin) => {
            tracing::info!(node = id, "stopping: {why}");
            engine.stop().await;
            tracing::info!(node = id, "stopped");
            Ok(())
        }
        failure = runs(&engine, joins) => failure,
    }
}

/// The state machine on disk has a directory of its own. Its existence shows that it was chosen
/// before.
fn with_machine(
    config: Config,
    kind: StateMachineKind,
    shutdown: watch::Receiver<()>,
) -> Result<NodeBuilder, Failure> {
    // The engine refuses an empty data directory, with the reason.
    let has_data_dir = !config.data_dir.as_os_str().is_empty();
    let dir = config.data_dir.join(DISK_DIR);
    let builder = NodeBuilder::new(config, shutdown);
    match kind {
        StateMachineKind::Disk => Ok(builder.state_machine(Arc::new(DiskKvStateMachine::new(dir)))),
        StateMachineKind::Memory if has_data_dir && dir.exists() => {
            Err(Failure::refused(format_args!(
                "{} was created with --state-machine disk, but this node was started with \
                 --state-machine memory; start it with --state-machine disk, or remove that \
                 directory to rebuild the records in memory from the snapshot and the log",
                dir.display()
            )))
        }
        StateMachineKind::Memory => Ok(builder),
    }
}

/// Prints a line when the node is ready, and if it joins as a voter, when it votes; returns when it
/// has stopped.
async fn runs(engine: &EmbeddedEngine, joins: bool) -> Result<(), Failure> {
    let id = engine.node_id();
    let votes = engine.members().get(id).is_some_and(|member| member.role.votes());
    if engine.wait_ready(Duration::MAX).await.is_ok() {
        let clients =
            engine.client_addr().map(|addr| format!(", clients at {addr}")).unwrap_or_default();
        print(id, format!("node {id} is ready{clients}"));
    }
    if joins && !votes && engine.wait_voter(Duration::MAX).await.is_ok() {
        print(id, format!("node {id} votes"));
    }
    engine.stopped().await.map_err(|error| {
        let exit = exit_of(&error);
        Failure::new(exit, format_args!("node {id}: {error}"))
    })
}

/// Prints a line on stdout, on a thread of its own: stdout may be a pipe without a reader, and then
/// it blocks.
fn print(id: u64, line: String) {
    let told =
        std::thread::Builder::new().name("stdout".to_owned()).spawn(move || try_say(line).ok());
    if let Err(error) = told {
        tracing::warn!(node = id, %error, "a line for stdout cannot be printed");
    }
}

fn start_failure(error: StartError) -> Failure {
    Failure::new(exit_of(&error), error)
}

/// A node that was removed has a code of its own, so that no supervisor starts it again.
fn exit_of(error: &StartError) -> Exit {
    match error {
        StartError::Config(_) => Exit::Refused,
        StartError::DirectoryRemoved { .. } => Exit::Removed,
        StartError::Stopped(reason) if reason.was_removed() => Exit::Removed,
        _ => Exit::Failed,
    }
}

/// Resolves when stdin is closed. Reads on a thread of its own, so that a blocked read does not
/// delay the shutdown of the runtime.
fn stdin_closed() -> Result<oneshot::Receiver<()>, Failure> {
    let (ended, end) = oneshot::channel();
    let read = move || {
        let mut ignored = [0; 256];
        // An error counts as the end of stdin too.
        while std::io::stdin().read(&mut ignored).is_ok_and(|bytes| bytes > 0) {}
        ended.send(()).ok();
    };
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(read)
        .map_err(|error| Failure::failed(format!("the stdin thread cannot be started: {error}")))?;
    Ok(end)
}

/// Returns when the node is to stop, with the reason.
async fn asked_to_stop(
    signals: &mut StopSignals,
    stdin: &mut Option<oneshot::Receiver<()>>,
) -> &'static str {
    tokio::select! {
        signal = signals.next() => signal,
        () = closed(stdin) => "stdin was closed",
    }
}

async fn closed(stdin: &mut Option<oneshot::Receiver<()>>) {
    match stdin {
        // An error means that the thread has ended, and stdin with it.
        Some(end) => drop(end.await),
        None => std::future::pending().await,
    }
}
