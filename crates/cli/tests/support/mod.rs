//! Real processes of the real binary, killed when the test ends, however it ends.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The only place where a test waits: until `condition` gives something, or the deadline has passed.
pub(crate) fn wait_until<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    // Nobody sends: receiving is a wait with an end.
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

    /// What the process prints.
    pub(crate) fn stdout(&mut self) -> std::process::ChildStdout {
        self.child.stdout.take().unwrap()
    }

    /// Closes the process's stdin.
    pub(crate) fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Any other signal, by name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the end; returns exit code, stdout and stderr.
    pub(crate) fn finish(mut self) -> Finished {
        // Both pipes are drained beside the wait, so that neither fills up.
        let out = drain(self.child.stdout.take());
        let err = drain(self.child.stderr.take());
        let exit = wait_until(PATIENCE, || self.child.try_wait().unwrap());
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

fn drain(pipe: Option<impl std::io::Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.map(|mut pipe| pipe.read_to_end(&mut bytes));
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What a process left behind.
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
}

impl Cluster {
    /// Writes the configs and starts every node.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let held: Vec<TcpListener> = (0..6).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let at = |i: usize| held[i].local_addr().unwrap().to_string();
        let mut members = String::new();
        for i in 0..3 {
            members.push_str(&format!(
                "[[members]]\nid = {}\npeer_addr = \"{}\"\nclient_addr = \"{}\"\n",
                i + 1,
                at(2 * i),
                at(2 * i + 1)
            ));
        }
        let clients = (0..3).map(|i| at(2 * i + 1)).collect();
        for id in 1..=3 {
            let text = format!(
                "node_id = {id}\ncluster_id = \"00112233445566778899aabbccddeeff\"\ndata_dir = \"data-{id}\"\n{members}"
            );
            fs::write(dir.path().join(format!("node-{id}.toml")), text).unwrap();
        }
        drop(held);
        let mut cluster = Self { dir, clients, nodes: vec![None, None, None] };
        for i in 0..3 {
            cluster.start_node(i);
        }
        cluster.wait_ready(&[0, 1, 2]);
        cluster
    }

    pub(crate) fn config(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("node-{}.toml", i + 1))
    }

    pub(crate) fn start_node(&mut self, i: usize) {
        self.nodes[i] = Some(serve(&self.config(i)));
    }

    /// Waits until these nodes say that they are ready.
    pub(crate) fn wait_ready(&self, nodes: &[usize]) {
        for i in nodes {
            wait_until(PATIENCE, || {
                let status = self.status(*i)?;
                (status["reachable"] == true && status["ready"] == true).then_some(())
            });
        }
    }

    /// What node `i` says about itself.
    fn status(&self, i: usize) -> Option<serde_json::Value> {
        let said = run(&["status", "--json", "--endpoints", &self.clients[i]]);
        let report: serde_json::Value = serde_json::from_str(&said.out).ok()?;
        let rows = report["nodes"].as_array()?;
        rows.iter().find(|row| row["address"] == *self.clients[i]).cloned()
    }

    /// The position of the leader.
    pub(crate) fn leader(&self) -> usize {
        wait_until(PATIENCE, || {
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
    let log = fs::File::options().create(true).append(true).open(config.with_extension("log")).unwrap();
    let mut command = d_engine();
    command.args(["serve", "--config"]).arg(config);
    Process { child: command.stdout(Stdio::piped()).stderr(log).spawn().unwrap() }
}
