//! One node: a child process that runs `serve`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::process::{Child, ChildStdin, Command};

use crate::exit::Failure;

/// How long a node may take to stop cleanly.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// How many lines of a node's log a failure shows.
const LOG_TAIL: usize = 8;

/// One node of a cluster on this machine.
pub(crate) struct Node {
    id: u64,
    client_addr: String,
    config: PathBuf,
    log: PathBuf,
    running: Option<Running>,
}

/// A node's process. Dropping it kills the process.
struct Running {
    child: Child,
    process: u32,
    /// Held open by this process: when this process ends in any way, stdin closes and the node
    /// stops. Separate from the child, because waiting for the child would close it.
    stdin: Option<ChildStdin>,
}

/// A node's process that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The node.
    pub(crate) node: u64,
    /// Its process id.
    pub(crate) process: u32,
    /// How it ended, as text.
    pub(crate) how: String,
}

/// Returns the path of the config of node `id`.
pub(super) fn config_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("node-{id}.toml"))
}

impl Node {
    pub(super) fn new(dir: &Path, id: u64, client_addr: String) -> Self {
        let log = dir.join(format!("node-{id}.log"));
        Self { id, client_addr, config: config_path(dir, id), log, running: None }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn client_addr(&self) -> &str {
        &self.client_addr
    }

    pub(super) fn config(&self) -> &Path {
        &self.config
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Returns the id of the node's process while it runs.
    pub(crate) fn process(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.process)
    }

    /// Whether the node has started before: its data directory belongs to it.
    pub(super) fn has_data(&self) -> bool {
        // `data_dir` in the config is `node-<id>`, as is the config's own name.
        self.config.with_extension("").join("identity.meta").exists()
    }

    pub(super) fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Returns the command that starts the node by hand.
    pub(crate) fn start_command(&self) -> String {
        format!("d-engine serve --config {}", self.config.display())
    }

    pub(super) fn start(&mut self) -> Result<(), Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::failed(format!("node {} cannot be started: {what}: {error}", self.id))
        };
        let program = std::env::current_exe().map_err(|error| failed("this program", error))?;
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(|error| failed("its log", error))?;
        let out = log.try_clone().map_err(|error| failed("its log", error))?;
        let child = Command::new(&program)
            .args(["serve", "--stop-on-stdin-close", "--config"])
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(log)
            // In a process group of its own, so that Ctrl-C at the terminal reaches only this
            // process, which then stops the nodes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|error| failed(&program.display().to_string(), error))?;
        let (process, stdin) = (child.id().unwrap_or_default(), child.stdin.take());
        self.running = Some(Running { child, process, stdin });
        Ok(())
    }

    /// Ready when the process has ended; the node then counts as not running.
    pub(super) fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Ended> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        let Poll::Ready(exit) = pin!(running.child.wait()).poll(context) else {
            return Poll::Pending;
        };
        let ended = Ended { node: self.id, process: running.process, how: words(exit) };
        self.running = None;
        Poll::Ready(ended)
    }

    /// Fails if the process has ended.
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        match self.running.as_mut().map(|running| running.child.try_wait()) {
            Some(Ok(Some(exit))) => Err(self.failure(&format!("has ended ({exit})"))),
            Some(Err(error)) => Err(self.failure(&format!("cannot be checked: {error}"))),
            Some(Ok(None)) => Ok(()),
            None => Err(self.failure("was not started")),
        }
    }

    pub(super) async fn kill(&mut self) -> Result<u32, Failure> {
        let Some(mut running) = self.running.take() else {
            return Err(Failure::failed(format!(
                "node {} is not running and cannot be killed",
                self.id
            )));
        };
        running.child.kill().await.map_err(|error| {
            Failure::failed(format!("node {} cannot be killed: {error}", self.id))
        })?;
        Ok(running.process)
    }

    pub(super) fn ask_to_stop(&mut self) {
        if let Some(running) = &mut self.running {
            drop(running.stdin.take());
        }
    }

    pub(super) async fn wait_stopped(&mut self) -> Result<(), Failure> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        match tokio::time::timeout(STOP_TIMEOUT, running.child.wait()).await {
            Ok(Ok(exit)) if exit.success() => Ok(()),
            Ok(exit) => Err(self.failure(&format!("did not stop cleanly ({})", words(exit)))),
            // Dropping the child kills it.
            Err(_) => {
                Err(self.failure(&format!("did not stop within {STOP_TIMEOUT:?} and was killed")))
            }
        }
    }

    /// Returns a failure of this node with the end of its log.
    pub(crate) fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail =
            lines.get(lines.len().saturating_sub(LOG_TAIL)..).unwrap_or_default().join("\n    ");
        Failure::failed(format!(
            "node {} {what}; its log {} ends:\n    {tail}",
            self.id,
            self.log.display()
        ))
    }
}

fn words(exit: std::io::Result<ExitStatus>) -> String {
    match exit {
        Ok(exit) => exit.to_string(),
        Err(error) => format!("waiting for it failed: {error}"),
    }
}
