//! A node on its machine: the real binary as a process in the machine's network namespace, on the
//! machine's file system.

use std::fs::File;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::config::{self, Origin, Ports};
use crate::disk::Disk;
use crate::net::{FOUNDERS, PORTS, address, enter};
use crate::shell::{Outcome, doing};

/// The timeout of an orderly stop: the node's disk may be full, and the machine busy.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// A process that was started less than this ago may be ended by SIGTERM itself.
const YOUNG: Duration = Duration::from_secs(1);

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

/// The exit code of a node that was removed.
const REMOVED: i32 = 6;
/// The exit code of a node that the cluster refuses.
const FAILED: i32 = 1;

/// What the node on a machine is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duty {
    /// There is no node.
    Vacant,
    /// It is a member or becomes one. It must not end by itself.
    Member,
    /// It is removed, and then must end by itself with exit code 6.
    Leaves,
    /// It has lost its directory and comes back under its old id. It may end by itself with exit
    /// code 1.
    Returns,
}

/// A machine, and the node on it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) machine: u64,
    pub(crate) disk: Disk,
    pub(crate) duty: Duty,
    pub(crate) ports: Ports,
    pub(crate) origin: Origin,
    /// The operator has stopped it, or it is as good as stopped. No fault is drawn for it.
    pub(crate) is_reserved: bool,
    /// It counts as under a fault until then, because it has just been started.
    pub(crate) counts_until: Duration,
    setup: Setup,
    keeps_records_on_disk: bool,
    child: Option<Child>,
    /// When the process was started.
    began: Instant,
    /// With what its last process ended by itself, as its duty allows.
    ended_with: Option<i32>,
}

impl Node {
    /// Creates the machine's disk, and the config of a founder.
    pub(crate) fn prepare(setup: &Setup, machine: u64, on_disk: bool) -> Outcome<Self> {
        let disk = Disk::make(&setup.dir, &format!("disk-{machine}"), 64)?;
        let is_founder = machine <= FOUNDERS;
        let node = Self {
            machine,
            disk,
            duty: if is_founder { Duty::Member } else { Duty::Vacant },
            ports: PORTS,
            origin: Origin::Founds,
            is_reserved: false,
            counts_until: Duration::ZERO,
            setup: setup.clone(),
            keeps_records_on_disk: on_disk,
            child: None,
            began: Instant::now(),
            ended_with: None,
        };
        if is_founder {
            node.configure()?;
        }
        Ok(node)
    }

    /// Writes its config.
    pub(crate) fn configure(&self) -> Outcome<()> {
        let text = config::text(self.machine, self.ports, &self.origin, &self.data());
        std::fs::write(self.path("toml"), text).map_err(doing("a config cannot be written"))
    }

    /// Removes its data directory.
    pub(crate) fn wipe(&self) -> Outcome<()> {
        let data = self.data();
        match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(format!("{} cannot be removed: {error}", data.display()))
            }
            _ => Ok(()),
        }
    }

    /// Whether there is no node on the machine.
    pub(crate) fn is_vacant(&self) -> bool {
        self.duty == Duty::Vacant
    }

    /// Whether its last process ended because the node was removed.
    pub(crate) fn has_left(&self) -> bool {
        self.child.is_none() && self.ended_with == Some(REMOVED)
    }

    /// Whether its last process ended because the cluster refused it.
    pub(crate) fn was_refused(&self) -> bool {
        self.child.is_none() && self.ended_with == Some(FAILED)
    }

    /// Returns its address for clients.
    pub(crate) fn client_addr(&self) -> String {
        address(self.machine, self.ports.0)
    }

    /// Returns its address for peers.
    pub(crate) fn peer_addr(&self) -> String {
        address(self.machine, self.ports.1)
    }

    /// Whether its duty allows that its process ended so; if it does, remembers that.
    pub(crate) fn may_end(&mut self, exit: ExitStatus) -> bool {
        let may = match self.duty {
            Duty::Leaves => exit.code() == Some(REMOVED),
            Duty::Returns => exit.code() == Some(FAILED),
            Duty::Vacant | Duty::Member => false,
        };
        if may {
            self.ended_with = exit.code();
        }
        may
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.setup.dir.join(format!("node-{}.{extension}", self.machine))
    }

    /// Returns the file of its log lines.
    pub(crate) fn log(&self) -> PathBuf {
        self.path("log")
    }

    /// Returns its data directory.
    pub(crate) fn data(&self) -> PathBuf {
        self.disk.at().join("data")
    }

    /// Starts the process, if there is a node. With `clock`, its wall clock is wrong by that much,
    /// as in "+1d".
    pub(crate) fn start(&mut self, clock: Option<&str>) -> Outcome<()> {
        if self.is_vacant() {
            return Ok(());
        }
        self.ended_with = None;
        let log =
            File::options().create(true).append(true).open(self.log()).map_err(doing("a log"))?;
        let out = log.try_clone().map_err(doing("a log"))?;
        let mut command = Command::new("nsenter");
        command.arg(enter(self.machine)).arg(&self.setup.binary).args(["serve", "--config"]);
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
        self.began = Instant::now();
        Ok(())
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) -> Outcome<()> {
        let Some(child) = &self.child else { return Ok(()) };
        let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let process = process.ok_or("a process without an id")?;
        kill_process(process, signal)
            .map_err(doing(format!("machine {}: {signal:?}", self.machine)))
    }

    /// Kills the process and waits until it is gone.
    pub(crate) fn kill(&mut self) -> Outcome<()> {
        if let Some(mut child) = self.child.take() {
            child
                .kill()
                .map_err(doing(format!("the node on machine {} cannot be killed", self.machine)))?;
            child.wait().map_err(doing(format!(
                "the node on machine {} cannot be waited for",
                self.machine
            )))?;
        }
        Ok(())
    }

    /// Sends SIGTERM and waits until the process has ended. The error says that it failed or did
    /// not end in time.
    pub(crate) fn stop(&mut self) -> Outcome<()> {
        let is_young = self.began.elapsed() < YOUNG;
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            match self.ended()? {
                Some(exit) if exit.success() || self.may_end(exit) => return Ok(()),
                // It had not yet begun to listen for signals.
                Some(exit) if exit.signal() == Some(Signal::TERM.as_raw()) && is_young => {
                    return Ok(());
                }
                Some(exit) => {
                    return Err(format!(
                        "the node on machine {} failed to stop cleanly: {exit}",
                        self.machine
                    ));
                }
                None if self.child.is_none() => return Ok(()),
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(format!(
            "the node on machine {} did not stop within {STOP_TIMEOUT:?} of SIGTERM",
            self.machine
        ))
    }

    /// Returns how the process ended, if it has ended.
    pub(crate) fn ended(&mut self) -> Outcome<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { return Ok(None) };
        let exit = child.try_wait().map_err(doing(format!("machine {}", self.machine)))?;
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
