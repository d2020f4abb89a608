//! Real processes of the real binary, killed when the test ends, however it ends.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

#[path = "../../../server/tests/support/ports.rs"]
mod ports;
pub(crate) use ports::free_address;

/// The longest time that a test waits for anything.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// The only place where a test waits: until `condition` returns a value, or the deadline has
/// passed.
pub(crate) fn wait_until<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    // Nothing is ever sent: receiving is a wait with a timeout.
    let (_nobody, quiet) = mpsc::channel::<()>();
    let began = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(began.elapsed() < deadline, "the condition did not hold within {deadline:?}");
        quiet.recv_timeout(Duration::from_millis(10)).ok();
    }
}

/// The binary under test.
pub(crate) fn d_engine() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_d-engine"));
    command.env_remove("D_ENGINE_ENDPOINTS").env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A process that is killed when the test ends.
pub(crate) struct Process {
    child: Child,
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self { child: command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns what the process prints.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Returns what the process prints from now on, line by line.
    pub(crate) fn lines(&mut self) -> Lines {
        let (line, lines) = mpsc::channel();
        let out = self.stdout();
        std::thread::spawn(move || {
            for read in BufReader::new(out).lines().map_while(Result::ok) {
                if line.send(read).is_err() {
                    return;
                }
            }
        });
        Lines { lines, seen: Vec::new() }
    }

    /// Closes the process's stdin.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Sends SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends any other signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        assert!(send(name, self.id()), "SIG{name} was not sent");
    }

    /// Waits for the end; returns exit code, stdout and stderr.
    pub(crate) fn finish(mut self) -> Finished {
        // Both pipes are drained during the wait, so that neither fills up.
        let out = drain(self.child.stdout.take());
        let err = drain(self.child.stderr.take());
        let exit = wait_until(TIMEOUT, || self.child.try_wait().unwrap());
        Finished {
            code: exit.code(),
            out: out.join().unwrap_or_default(),
            err: err.join().unwrap_or_default(),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The lines that a process prints.
pub(crate) struct Lines {
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
}

impl Lines {
    /// Waits for a line that contains `part`.
    pub(crate) fn wait_for(&mut self, part: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(_) => panic!("{part:?} was not printed, only\n{}", self.seen.join("\n")),
            }
        }
    }
}

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Sends a signal to a process; returns whether there was such a process.
pub(crate) fn send(signal: &str, process: u32) -> bool {
    let mut kill = Command::new("kill");
    kill.args([&format!("-{signal}"), &process.to_string()]).stderr(Stdio::null());
    kill.status().unwrap().success()
}

/// The exit code and the output of a process.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Finished {
    Process::start(d_engine().args(args)).finish()
}

/// Three nodes as processes.
pub(crate) struct Cluster {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) clients: Vec<String>,
    pub(crate) nodes: Vec<Option<Process>>,
    /// The arguments of every node beside its config.
    pub(crate) args: Vec<String>,
    /// Where the stderr of every node goes; if `None`, a file beside its config.
    pub(crate) stderr: Option<Box<dyn Fn() -> Stdio>>,
}

impl Cluster {
    /// Writes the configs and starts every node.
    pub(crate) fn start() -> Self {
        Self::start_with("")
    }

    /// The same with additional lines in each config.
    pub(crate) fn start_with(settings: &str) -> Self {
        Self::start_with_args(settings, &[])
    }

    /// The same with additional arguments of `serve`.
    pub(crate) fn start_with_args(settings: &str, args: &[&str]) -> Self {
        let mut cluster = Self::prepare(settings, args);
        cluster.start_all();
        cluster
    }

    /// Starts every node and waits until all are ready.
    pub(crate) fn start_all(&mut self) {
        for i in 0..3 {
            self.start_node(i);
        }
        self.wait_ready(&[0, 1, 2]);
    }

    /// Writes the configs and starts no node.
    pub(crate) fn prepare(settings: &str, args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clients: Vec<String> = (0..3).map(|_| free_address()).collect();
        let mut members = String::new();
        for (client, id) in clients.iter().zip(1..) {
            members.push_str(&format!(
                "[[members]]\nid = {id}\npeer_addr = \"{}\"\nclient_addr = \"{client}\"\n",
                free_address()
            ));
        }
        for id in 1..=3 {
            let text = format!(
                "node_id = {id}\ncluster_id = \"00112233445566778899aabbccddeeff\"\ndata_dir = \"data-{id}\"\n{settings}{members}"
            );
            fs::write(dir.path().join(format!("node-{id}.toml")), text).unwrap();
        }
        let args = args.iter().map(ToString::to_string).collect();
        Self { dir, clients, nodes: vec![None, None, None], args, stderr: None }
    }

    pub(crate) fn config(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}.toml", i + 1))
    }

    pub(crate) fn start_node(&mut self, i: usize) {
        let stderr = self.stderr.as_ref().map(|stderr| stderr());
        self.nodes[i] = Some(serve_with(&self.config(i), &self.args, stderr));
    }

    /// Waits until these nodes report that they are ready.
    pub(crate) fn wait_ready(&self, nodes: &[usize]) {
        for i in nodes {
            wait_until(TIMEOUT, || {
                let status = self.status(*i)?;
                (status["reachable"] == true && status["ready"] == true).then_some(())
            });
        }
    }

    /// Returns the status that node `i` reports about itself.
    pub(crate) fn status(&self, i: usize) -> Option<serde_json::Value> {
        let said = run(&["status", "--json", "--endpoints", &self.clients[i]]);
        let report: serde_json::Value = serde_json::from_str(&said.out).ok()?;
        let rows = report["nodes"].as_array()?;
        rows.iter().find(|row| row["address"] == *self.clients[i]).cloned()
    }

    /// Returns the position of the leader.
    pub(crate) fn leader(&self) -> usize {
        wait_until(TIMEOUT, || {
            let said = run(&["status", "--json", "--endpoints", &self.endpoints()]);
            let report: serde_json::Value = serde_json::from_str(&said.out).ok()?;
            Some(report["leader"].as_u64()? as usize - 1)
        })
    }

    pub(crate) fn endpoints(&self) -> String {
        self.clients.join(",")
    }
}

/// Starts `serve` with logs to a file beside the config, so that no pipe fills up.
pub(crate) fn serve(config: &Path) -> Process {
    serve_with(config, &[], None)
}

/// The same with additional arguments, and stderr elsewhere.
fn serve_with(config: &Path, args: &[String], stderr: Option<Stdio>) -> Process {
    let log = || {
        fs::File::options()
            .create(true)
            .append(true)
            .open(config.with_extension("log"))
            .unwrap()
            .into()
    };
    let mut command = d_engine();
    command.args(["serve", "--config"]).arg(config).args(args);
    Process {
        child: command.stdout(Stdio::piped()).stderr(stderr.unwrap_or_else(log)).spawn().unwrap(),
    }
}

/// A cluster that `dev` runs, on free ports.
pub(crate) struct Dev {
    pub(crate) process: Process,
    pub(crate) lines: Lines,
    pub(crate) endpoints: String,
    /// The directory of data, configs and logs.
    pub(crate) dir: PathBuf,
    _strays: Strays,
    _temporary: tempfile::TempDir,
}

impl Dev {
    /// Starts it and waits until it prints the leader.
    pub(crate) fn start() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path().join("dev");
        let strays = Strays(dir.to_str().unwrap().to_owned());
        let mut command = d_engine();
        command.args(["dev", "--ephemeral", "--dir"]).arg(&dir);
        let mut process = Process::start(&mut command);
        let mut lines = process.lines();
        let endpoints =
            lines.wait_for("  endpoints ").split_whitespace().last().unwrap().to_owned();
        lines.wait_for("  ready ");
        Self { process, lines, endpoints, dir, _strays: strays, _temporary: temporary }
    }

    /// Runs a command against the cluster.
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        Process::start(d_engine().args(args).env("D_ENGINE_ENDPOINTS", &self.endpoints)).finish()
    }

    /// Runs a command that must succeed; returns what it printed.
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(0), "{args:?}: {}{}", ended.out, ended.err);
        ended.out
    }

    /// Returns the id of the node that leads.
    pub(crate) fn leader(&self) -> u64 {
        wait_until(TIMEOUT, || {
            let report: serde_json::Value =
                serde_json::from_str(&self.run(&["status", "--json"]).out).ok()?;
            report["leader"].as_u64()
        })
    }

    /// Returns the process of a node.
    pub(crate) fn node_process(&self, id: u64) -> u32 {
        let config = self.dir.join(format!("node-{id}.toml"));
        let found = processes_of(config.to_str().unwrap());
        assert_eq!(found.len(), 1, "processes of node {id}");
        found[0]
    }
}

/// Kills what a failed test leaves running: every process that names this directory.
pub(crate) struct Strays(pub(crate) String);

impl Drop for Strays {
    fn drop(&mut self) {
        for process in processes_of(&self.0) {
            // It may have ended in the meantime.
            send("KILL", process);
        }
    }
}

/// Returns the ids of all processes whose command line names `dir`.
pub(crate) fn processes_of(dir: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names_dir = |id: &u32| {
        let line = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(dir)
    };
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(names_dir).collect()
}
