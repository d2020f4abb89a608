//! A node: the real binary as a process in its own network namespace, on its own file system.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::disk::Disk;
use crate::net::{NODES, client_addr, enter, peer_addr};
use crate::shell::{Outcome, doing};

/// The timeout of an orderly stop: the node's disk may be full, and the machine busy.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The settings with which all nodes run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// The release binary.
    pub(crate) binary: PathBuf,
    /// The directory of disks, configs and logs.
    pub(crate) dir: PathBuf,
    /// The path of libfaketime, which gives a process another wall clock; `None` if it is not
    /// installed.
    pub(crate) faketime: Option<PathBuf>,
}

/// A node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: u64,
    pub(crate) disk: Disk,
    setup: Setup,
    keeps_records_on_disk: bool,
    child: Option<Child>,
}

impl Node {
    /// Creates the node's disk and config.
    pub(crate) fn prepare(setup: &Setup, id: u64, keeps_records_on_disk: bool) -> Outcome<Self> {
        let disk = Disk::make(&setup.dir, &format!("disk-{id}"), 64)?;
        let mut text = format!(
            "node_id = {id}\ncluster_id = \"00112233445566778899aabbccddeeff\"\ndata_dir = \"{}\"\n\
             [limits]\nmax_command_bytes = 524288\nsegment_bytes = 2097152\n\
             [snapshots]\nafter_log_bytes = 4194304\nmax_log_bytes = 16777216\ntail_entries = 200\n\
             tail_bytes = 1048576\nreserve_bytes = 2097152\n",
            disk.at().join("data").display(),
        );
        for id in 1..=NODES {
            let (peer, client) = (peer_addr(id), client_addr(id));
            text.push_str(&format!(
                "[[members]]\nid = {id}\npeer_addr = \"{peer}\"\nclient_addr = \"{client}\"\n"
            ));
        }
        let node = Self { id, disk, setup: setup.clone(), keeps_records_on_disk, child: None };
        std::fs::write(node.path("toml"), text).map_err(doing("a config cannot be written"))?;
        Ok(node)
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.setup.dir.join(format!("node-{}.{extension}", self.id))
    }

    /// Returns the file of its log lines.
    pub(crate) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Returns its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.disk.at().join("data")
    }

    /// Starts the process. With `clock`, its wall clock is wrong by that much, as in "+1d".
    pub(crate) fn start(&mut self, clock: Option<&str>) -> Outcome<()> {
        let log =
            File::options().create(true).append(true).open(self.log()).map_err(doing("a log"))?;
        let out = log.try_clone().map_err(doing("a log"))?;
        let mut command = Command::new("nsenter");
        command.arg(enter(self.id)).arg(&self.setup.binary).args(["serve", "--config"]);
        command.arg(self.path("toml"));
        if self.keeps_records_on_disk {
            command.args(["--state-machine", "disk"]);
        }
        if let (Some(clock), Some(library)) = (clock, &self.setup.faketime) {
            command.env("LD_PRELOAD", library).env("FAKETIME", clock);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1").env("DONT_FAKE_MONOTONIC", "1");
        }
        // A process group of its own: a Ctrl-C at the terminal reaches only this program, which
        // then stops the nodes.
        command.stdin(Stdio::null()).stdout(out).stderr(log).process_group(0);
        self.child = Some(command.spawn().map_err(doing("nsenter"))?);
        Ok(())
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = process.ok_or("a process without an id")?;
        kill_process(process, signal).map_err(doing(format!("node {}: {signal:?}", self.id)))
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().map_err(doing(format!("node {} cannot be killed", self.id)))?;
            child.wait().map_err(doing(format!("node {} cannot be waited for", self.id)))?;
        }
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has ended. The error says that it failed or did
    /// not end in time.
    pub(crate) fn stop(&mut self) -> Outcome<()> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            match self.ended()? {
                Some(exit) if exit.success() => return Ok(()),
                Some(exit) => {
                    return Err(format!("node {} failed to stop cleanly: {exit}", self.id));
                }
                None if self.child.is_none() => return Ok(()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(format!("node {} did not stop within {STOP_TIMEOUT:?} of SIGTERM", self.id))
    }

    /// Returns how the process ended, if it has ended.
    pub(crate) fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let exit = child.try_wait().map_err(doing(format!("node {}", self.id)))?;
        if exit.is_some() {
            self.child = None;
        }
        Ok(exit)
    }

    /// Returns the last lines of its log, for a report.
    pub(crate) fn last_lines(&self) -> String {
        last_lines(&self.log(), 3)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // A process that waits for a frozen disk cannot end, and a file system in use cannot be
        // unmounted.
        for step in [self.disk.thaw(), self.kill()] {
            if let Err(problem) = step {
                eprintln!("campaign: {problem}");
            }
        }
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n    ")
}

/// Describes how a process ended.
pub(crate) fn words(exit: ExitStatus) -> String {
    exit.signal().map_or_else(|| exit.to_string(), |signal| format!("ended by signal {signal}"))
}
