//! The nodes of the demonstration: child processes of this one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use d_engine_client::{Client, NodeStatus};
use tokio::process::{Child, Command};

use super::ports;
use crate::exit::Failure;

/// How long a node may take to become ready, or to get where the leader is.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a node may take to stop in order.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at a node.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Lines of a node's log that a failure shows.
const LOG_TAIL: usize = 8;

/// The nodes. Dropping it kills them, whatever they are doing.
pub(super) struct Cluster {
    nodes: Vec<Node>,
}

struct Node {
    id: u64,
    client_addr: String,
    config: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Cluster {
    /// Writes a config for each node into `dir`.
    pub(super) fn prepare(dir: &Path, count: u64) -> Result<Self, Failure> {
        let mut cluster_id = [0; 16];
        getrandom::fill(&mut cluster_id)
            .map_err(|error| Failure::failed(format!("the system gives no random numbers: {error}")))?;
        let cluster_id: String = cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
        // Held until every config is written, so that no port is given twice.
        let held = ports::reserve(2 * count as usize)?;
        let mut addresses = held.iter().filter_map(|listener| listener.local_addr().ok());
        let mut members = String::new();
        let mut nodes = Vec::new();
        for id in 1..=count {
            let (Some(peer), Some(client)) = (addresses.next(), addresses.next()) else {
                return Err(Failure::failed("a reserved port has no address"));
            };
            members.push_str(&format!(
                "\n[[members]]\nid = {id}\npeer_addr = \"{peer}\"\nclient_addr = \"{client}\"\n"
            ));
            let (config, log) = (dir.join(format!("node-{id}.toml")), dir.join(format!("node-{id}.log")));
            nodes.push(Node { id, client_addr: client.to_string(), config, log, child: None });
        }
        for Node { id, config, .. } in &nodes {
            let text = format!(
                "# Written by `d-engine demo`; start with `d-engine serve --config {}`.\n\
                 node_id = {id}\ncluster_id = \"{cluster_id}\"\ndata_dir = \"node-{id}\"\n{members}",
                config.display()
            );
            fs::write(config, text).map_err(|error| {
                Failure::failed(format!("{} cannot be written: {error}", config.display()))
            })?;
        }
        Ok(Self { nodes })
    }

    /// Starts every node that does not run.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        self.nodes.iter_mut().filter(|node| node.child.is_none()).try_for_each(Node::start)
    }

    /// The nodes' ids and client addresses.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u64, &str)> {
        self.nodes.iter().map(|node| (node.id, node.client_addr.as_str()))
    }

    /// The id of the node with this client address.
    pub(super) fn id_at(&self, address: &str) -> Option<u64> {
        self.nodes().find(|(_, client_addr)| *client_addr == address).map(|(id, _)| id)
    }

    /// Waits until every node that should run says something that is `enough`, and returns what each said.
    pub(super) async fn wait_until(
        &mut self,
        client: &Client,
        what: &str,
        enough: impl Fn(&NodeStatus) -> bool,
    ) -> Result<Vec<NodeStatus>, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let mut statuses = Vec::new();
        for node in &mut self.nodes {
            loop {
                node.check()?;
                let said = client.status(&node.client_addr).await;
                let problem = match said {
                    Ok(status) if enough(&status) => {
                        statuses.push(status);
                        break;
                    }
                    Ok(status) => format!("{status:?}"),
                    Err(error) => error.to_string(),
                };
                if Instant::now() >= deadline {
                    return Err(node.failure(&format!("is not {what} after {PATIENCE:?}: {problem}")));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(statuses)
    }

    /// Kills a node with SIGKILL, by its process id; returns that id once the process is gone.
    pub(super) async fn kill(&mut self, id: u64) -> Result<u32, Failure> {
        let node = self.nodes.iter_mut().find(|node| node.id == id);
        let running = node.and_then(|node| node.child.take());
        let Some(mut child) = running else {
            return Err(Failure::failed(format!("node {id} does not run, so it cannot be killed")));
        };
        let process = child.id().unwrap_or_default();
        child
            .kill()
            .await
            .map_err(|error| Failure::failed(format!("node {id} cannot be killed: {error}")))?;
        Ok(process)
    }

    /// Stops every node in order, by closing its stdin; kills one that takes too long.
    pub(super) async fn stop(&mut self) -> Result<(), Failure> {
        for node in &mut self.nodes {
            if let Some(child) = &mut node.child {
                drop(child.stdin.take());
            }
        }
        for node in &mut self.nodes {
            let Some(mut child) = node.child.take() else { continue };
            match tokio::time::timeout(STOP_PATIENCE, child.wait()).await {
                Ok(Ok(exit)) if exit.success() => {}
                Ok(Ok(exit)) => return Err(node.failure(&format!("did not stop in order ({exit})"))),
                Ok(Err(error)) => return Err(node.failure(&format!("cannot be waited for: {error}"))),
                // Dropped with the child: killed.
                Err(_) => return Err(node.failure(&format!("did not stop within {STOP_PATIENCE:?}"))),
            }
        }
        Ok(())
    }
}

impl Node {
    fn start(&mut self) -> Result<(), Failure> {
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
            // Held open by this process: when it ends, however it ends, so does the node.
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(log)
            .kill_on_drop(true)
            .spawn();
        self.child = Some(child.map_err(|error| failed(&program.display().to_string(), error))?);
        Ok(())
    }

    /// An error when the process has ended that should run.
    fn check(&mut self) -> Result<(), Failure> {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(exit))) => Err(self.failure(&format!("has ended ({exit})"))),
            Some(Err(error)) => Err(self.failure(&format!("cannot be looked at: {error}"))),
            Some(Ok(None)) => Ok(()),
            None => Err(self.failure("was not started")),
        }
    }

    /// An error about this node, with the end of its log.
    fn failure(&self, what: &str) -> Failure {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(LOG_TAIL)..).unwrap_or_default().join("\n    ");
        Failure::failed(format!("node {} {what}; its log {} ends:\n    {tail}", self.id, self.log.display()))
    }
}
