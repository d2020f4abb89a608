//! A cluster on this machine; its nodes are child processes of this one.
//!
//! `node.rs` runs one process, `ports.rs` chooses the ports.

mod node;
mod ports;

use std::future::poll_fn;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::{Duration, Instant};

use d_engine_client::{Client, NodeStatus};
use d_engine_server::Config;

pub(crate) use self::node::{Ended, Node};
pub(crate) use self::ports::Ports;
use crate::exit::Failure;

/// How long a node may take to become ready, or to catch up with the leader.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between status polls of a node.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The nodes of a local cluster. Dropping it kills their processes.
pub(crate) struct Cluster {
    nodes: Vec<Node>,
}

/// Escapes control characters: a line break in a path would end the comment.
fn in_a_comment(text: &str) -> String {
    let escaped =
        |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

impl Cluster {
    /// Writes a config for each node into `dir`. The configs name `verb` as the command that wrote
    /// them.
    pub(crate) fn prepare(
        dir: &Path,
        count: u64,
        ports: Ports,
        verb: &str,
    ) -> Result<Self, Failure> {
        let mut cluster_id = [0; 16];
        getrandom::fill(&mut cluster_id).map_err(|error| {
            Failure::failed(format!("the system's random number source failed: {error}"))
        })?;
        let cluster_id: String = cluster_id.iter().map(|byte| format!("{byte:02x}")).collect();
        // Held until every config is written, so that no port is assigned twice.
        let held: Vec<(TcpListener, TcpListener)> = ports::reserve(count, ports)?;
        let mut members = String::new();
        let mut nodes = Vec::new();
        for ((peer, client), id) in held.iter().zip(1..) {
            let address = |listener: &TcpListener| {
                let address = listener.local_addr();
                address.map_err(|error| {
                    Failure::failed(format!("a reserved port has no address: {error}"))
                })
            };
            let (peer, client) = (address(peer)?, address(client)?);
            members.push_str(&format!(
                "\n[[members]]\nid = {id}\npeer_addr = \"{peer}\"\nclient_addr = \"{client}\"\n"
            ));
            nodes.push(Node::new(dir, id, client.to_string()));
        }
        for node in &nodes {
            let text = format!(
                "# Written by `d-engine {verb}`; start with `{}`.\n\
                 node_id = {id}\ncluster_id = \"{cluster_id}\"\ndata_dir = \"node-{id}\"\n{members}",
                in_a_comment(&node.start_command()),
                id = node.id(),
            );
            std::fs::write(node.config(), text).map_err(|error| {
                Failure::failed(format!("{} cannot be written: {error}", node.config().display()))
            })?;
        }
        Ok(Self { nodes })
    }

    /// Opens the cluster that an earlier run left in `dir`, if there is one.
    pub(crate) fn reopen(dir: &Path) -> Result<Option<Self>, Failure> {
        let first = node::config_path(dir, 1);
        if !first.exists() {
            return Ok(None);
        }
        let config = Config::from_file(&first).map_err(Failure::refused)?;
        let missing = |path: PathBuf| {
            Failure::refused(format_args!(
                "{} is missing; it is the config of a member of the cluster in {}",
                path.display(),
                dir.display()
            ))
        };
        let mut nodes = Vec::new();
        for member in config.members {
            let node = Node::new(dir, member.id, member.client_addr);
            if !node.config().exists() {
                return Err(missing(node.config().to_owned()));
            }
            nodes.push(node);
        }
        Ok(Some(Self { nodes }))
    }

    /// Reads the config of each node.
    pub(crate) fn configs(&self) -> Result<Vec<Config>, Failure> {
        let read = |node: &Node| Config::from_file(node.config()).map_err(Failure::refused);
        self.nodes.iter().map(read).collect()
    }

    /// Starts every node that is not running.
    pub(crate) fn start(&mut self) -> Result<(), Failure> {
        self.nodes.iter_mut().filter(|node| !node.runs()).try_for_each(Node::start)
    }

    /// The nodes.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes' client addresses.
    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client_addr().to_owned()).collect()
    }

    /// Returns the id of the node with this client address.
    pub(crate) fn id_at(&self, address: &str) -> Option<u64> {
        self.nodes.iter().find(|node| node.client_addr() == address).map(Node::id)
    }

    /// Waits until the status of every node is `enough`, and returns these statuses. Fails if a
    /// node's process ends or the wait takes too long.
    pub(crate) async fn wait_until(
        &mut self,
        client: &Client,
        what: &str,
        enough: impl Fn(&NodeStatus) -> bool,
    ) -> Result<Vec<NodeStatus>, Failure> {
        let deadline = Instant::now() + TIMEOUT;
        let mut statuses = Vec::new();
        for node in &mut self.nodes {
            loop {
                node.check()?;
                let said = client.status(node.client_addr()).await;
                let problem = match said {
                    Ok(status) if enough(&status) => {
                        statuses.push(status);
                        break;
                    }
                    Ok(status) => format!("{status:?}"),
                    Err(error) => error.to_string(),
                };
                if Instant::now() >= deadline {
                    return Err(
                        node.failure(&format!("is not {what} after {TIMEOUT:?}: {problem}"))
                    );
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(statuses)
    }

    /// Waits until the process of a running node ends, whatever the cause.
    pub(crate) async fn next_end(&mut self) -> Ended {
        poll_fn(|context| {
            let ended = self.nodes.iter_mut().find_map(|node| match node.poll_end(context) {
                Poll::Ready(ended) => Some(ended),
                Poll::Pending => None,
            });
            ended.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    /// Kills a node with SIGKILL, by its process id; returns that id once the process is gone.
    pub(crate) async fn kill(&mut self, id: u64) -> Result<u32, Failure> {
        match self.nodes.iter_mut().find(|node| node.id() == id) {
            Some(node) => node.kill().await,
            None => Err(Failure::failed(format!("there is no node {id} to kill"))),
        }
    }

    /// Stops every node cleanly, by closing its stdin; kills a node that takes too long.
    pub(crate) async fn stop(&mut self) -> Result<(), Failure> {
        self.nodes.iter_mut().for_each(Node::ask_to_stop);
        let mut result = Ok(());
        for node in &mut self.nodes {
            // A failure of one node does not keep the others from being stopped.
            result = result.and(node.wait_stopped().await);
        }
        result
    }
}
