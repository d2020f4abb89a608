//! A cluster on this machine; its nodes are child processes of this one.
//!
//! `node.rs` runs one process, `ports.rs` chooses the ports.

mod node;
mod ports;

use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::task::Poll;
use std::time::{Duration, Instant};

use d_engine_client::{Client, NodeStatus};
use d_engine_server::Config;

pub(crate) use self::node::{Ended, Node};
pub(crate) use self::ports::Ports;
use crate::exit::Failure;
use crate::json::hex;

/// How long a node may take to become ready, or to catch up with the leader.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Interval between status polls of a node.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The most nodes that a local cluster has.
const NODES_MAX: u64 = 9;

/// The addresses of a node for other nodes and for clients.
type Addresses = (SocketAddr, SocketAddr);

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
    /// them. The nodes are created together, as the members of one list.
    pub(crate) fn prepare(
        dir: &Path,
        count: u64,
        ports: Ports,
        verb: &str,
    ) -> Result<Self, Failure> {
        let listed = |all: &[Addresses], _id: u64| {
            let mut members = String::new();
            for ((peer, client), id) in all.iter().zip(1..) {
                members.push_str(&format!(
                    "\n[[members]]\nid = {id}\npeer_addr = \"{peer}\"\nclient_addr = \"{client}\"\n"
                ));
            }
            members
        };
        Self::write(dir, count, ports, verb, listed)
    }

    /// The same for a cluster that node 1 founds and the other nodes join.
    pub(crate) fn prepare_to_join(
        dir: &Path,
        count: u64,
        ports: Ports,
        verb: &str,
    ) -> Result<Self, Failure> {
        let joining = |all: &[Addresses], id: u64| {
            let mut text = String::new();
            let (mut others, mut own) = (Vec::new(), None);
            for (addresses, other) in all.iter().zip(1..) {
                if other == id {
                    own = Some(addresses);
                } else {
                    others.push(format!("\"{}\"", addresses.0));
                }
            }
            if let Some((peer, client)) = own {
                text.push_str(&format!("peer_listen = \"{peer}\"\nclient_listen = \"{client}\"\n"));
            }
            if id > 1 {
                text.push_str(&format!("join = [{}]\n", others.join(", ")));
            }
            text
        };
        Self::write(dir, count, ports, verb, joining)
    }

    /// Writes the configs; `rest` returns what is special to a node.
    fn write(
        dir: &Path,
        count: u64,
        ports: Ports,
        verb: &str,
        rest: impl Fn(&[Addresses], u64) -> String,
    ) -> Result<Self, Failure> {
        let mut cluster_id = [0; 16];
        getrandom::fill(&mut cluster_id).map_err(|error| {
            Failure::failed(format!("the system's random number source failed: {error}"))
        })?;
        let cluster_id = hex(&cluster_id);
        // Held until every config is written, so that no port is assigned twice.
        let held: Vec<(TcpListener, TcpListener)> = ports::reserve(count, ports)?;
        let address = |listener: &TcpListener| {
            listener.local_addr().map_err(|error| {
                Failure::failed(format!("a reserved port has no address: {error}"))
            })
        };
        let all = held.iter().map(|(peer, client)| Ok((address(peer)?, address(client)?)));
        let all: Vec<Addresses> = all.collect::<Result<_, Failure>>()?;
        let mut nodes = Vec::new();
        for ((_, client), id) in all.iter().zip(1..) {
            let node = Node::new(dir, id, client.to_string());
            let text = format!(
                "# Written by `d-engine {verb}`; start with `{}`.\n\
                 node_id = {id}\ncluster_id = \"{cluster_id}\"\ndata_dir = \"node-{id}\"\n{}",
                in_a_comment(&node.start_command()),
                rest(&all, id),
            );
            std::fs::write(node.config(), text).map_err(|error| {
                Failure::failed(format!("{} cannot be written: {error}", node.config().display()))
            })?;
            nodes.push(node);
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
        let missing = |path: &Path| {
            Failure::refused(format_args!(
                "{} is missing; it is the config of a member of the cluster in {}",
                path.display(),
                dir.display()
            ))
        };
        let listed = config.members.into_iter().map(|member| (member.id, member.client_addr));
        let mut ids: Vec<(u64, Option<String>)> =
            listed.map(|(id, client)| (id, Some(client))).collect();
        if ids.is_empty() {
            // A node that joined is in no list.
            let last = (1..=NODES_MAX).rev().find(|id| node::config_path(dir, *id).exists());
            ids = (1..=last.unwrap_or(1)).map(|id| (id, None)).collect();
        }
        let mut nodes = Vec::new();
        for (id, listed) in ids {
            let path = node::config_path(dir, id);
            if !path.exists() {
                return Err(missing(&path));
            }
            let client = match listed {
                Some(client) => client,
                None => {
                    let config = Config::from_file(&path).map_err(Failure::refused)?;
                    config.client_listen_addr().unwrap_or_default().to_owned()
                }
            };
            nodes.push(Node::new(dir, id, client));
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

    /// Starts every node. A node that has not joined the cluster yet is started once the node
    /// before it is a member, so that each gets the id in its config.
    pub(crate) async fn start_in_turn(&mut self, client: &Client) -> Result<(), Failure> {
        let deadline = Instant::now() + TIMEOUT;
        for at in 0..self.nodes.len() {
            let is_new = self.nodes.get(at).is_some_and(|node| !node.has_data());
            if is_new && at > 0 {
                self.wait_for_answer(at - 1, client, deadline).await?;
            }
            if let Some(node) = self.nodes.get_mut(at).filter(|node| !node.runs()) {
                node.start()?;
            }
            if is_new && at + 1 == self.nodes.len() {
                self.wait_for_answer(at, client, deadline).await?;
            }
        }
        Ok(())
    }

    /// Waits until a node answers clients; one that joins does once it is a member.
    async fn wait_for_answer(
        &mut self,
        at: usize,
        client: &Client,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let Some(node) = self.nodes.get_mut(at) else { return Ok(()) };
        loop {
            node.check()?;
            match client.status(node.client_addr()).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(node.failure(&format!("is no member after {TIMEOUT:?}: {error}")));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
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
