//! Three nodes on loopback addresses, and what an operator does when one does not start: what its
//! message says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use d_engine_client::{Client, ClientOptions, MemberRole, NodeStatus};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

use crate::Outcome;

const CLUSTER: &str = "00112233445566778899aabbccddeeff";
const POLL: Duration = Duration::from_millis(20);
/// How long anything may take: a start, a repair, the replacement of a node.
const TIMEOUT: Duration = Duration::from_secs(90);
/// Frequent snapshots and purges.
const SETTINGS: &str = "[limits]\nsegment_bytes = 4194304\n[snapshots]\n\
     after_log_bytes = 8388608\nmax_log_bytes = 33554432\ntail_entries = 200\n\
     tail_bytes = 1048576\n";

/// How a damaged node came back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    Started,
    Repaired,
    Replaced,
}

pub(crate) struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
    /// The leader of each term that was seen.
    leaders: Mutex<BTreeMap<u64, u64>>,
}

struct Node {
    id: u64,
    name: String,
    peer: String,
    client: String,
    child: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Cluster {
    pub(crate) async fn start(binary: &Path, dir: &Path) -> Outcome<Self> {
        let nodes = (1..=3).map(Node::new).collect::<Outcome<Vec<Node>>>()?;
        let mut members = String::new();
        for Node { id, peer, client, .. } in &nodes {
            members.push_str(&format!(
                "[[members]]\nid = {id}\npeer_addr = {peer:?}\nclient_addr = {client:?}\n"
            ));
        }
        let (binary, dir) = (binary.to_owned(), dir.to_owned());
        let mut cluster = Self { binary, dir, nodes, leaders: Mutex::default() };
        for at in 0..3 {
            let id = cluster.nodes[at].id;
            cluster.configure(at, &format!("node_id = {id}\n{SETTINGS}{members}"))?;
            cluster.spawn(at)?;
        }
        cluster.wait_until_level().await?;
        Ok(cluster)
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.client.clone()).collect()
    }

    pub(crate) fn data(&self, at: usize) -> PathBuf {
        self.dir.join(format!("data-{}", self.nodes[at].name))
    }

    fn config(&self, at: usize) -> PathBuf {
        self.dir.join(format!("{}.toml", self.nodes[at].name))
    }

    fn configure(&self, at: usize, rest: &str) -> Outcome<()> {
        let data = self.data(at);
        let text = format!("cluster_id = {CLUSTER:?}\ndata_dir = {:?}\n{rest}", data.display());
        fs::write(self.config(at), text).map_err(|error| format!("a config: {error}"))
    }

    fn log(&self, at: usize) -> PathBuf {
        self.dir.join(format!("{}.log", self.nodes[at].name))
    }

    fn spawn(&mut self, at: usize) -> Outcome<()> {
        let log = File::create(self.log(at)).map_err(|error| format!("a log file: {error}"))?;
        let child = Command::new(&self.binary)
            .arg("serve")
            .arg("--config")
            .arg(self.config(at))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.binary.display()))?;
        self.nodes[at].child = Some(child);
        Ok(())
    }

    /// Ends a node, by SIGTERM or SIGKILL.
    pub(crate) async fn end(&mut self, at: usize, orderly: bool) -> Outcome<()> {
        let Some(mut child) = self.nodes[at].child.take() else { return Ok(()) };
        if orderly && let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::TERM).map_err(|error| format!("SIGTERM: {error}"))?;
            let since = Instant::now();
            while since.elapsed() < TIMEOUT {
                if child.try_wait().map_err(|error| error.to_string())?.is_some() {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        }
        child.kill().and_then(|()| child.wait()).map(drop).map_err(|error| error.to_string())
    }

    /// Starts the node and waits for nothing.
    pub(crate) fn bring_back_unasked(&mut self, at: usize) -> Outcome<()> {
        self.spawn(at)
    }

    /// Starts the node. If it refuses, does what the message says, until it is ready.
    pub(crate) async fn bring_back(&mut self, at: usize) -> Outcome<End> {
        let mut end = End::Started;
        for _ in 0..3 {
            self.spawn(at)?;
            let Some(refusal) = self.wait_ready(at).await? else { return Ok(end) };
            if !refusal.contains("d-engine repair --data-dir") {
                return Err(format!("it does not start, and names no tool: {refusal}"));
            }
            let other = self.nodes[(at + 1) % 3].client.clone();
            let repaired = self.tool(&["repair", "--from", &other, "--data-dir"], at)?;
            let text = String::from_utf8_lossy(&repaired.stderr).into_owned();
            if repaired.status.success() {
                end = End::Repaired;
            } else if text.contains("with `replaces = ") {
                self.replace(at).await?;
                return Ok(End::Replaced);
            } else {
                return Err(format!("it does not start ({refusal}), and repair says: {text}"));
            }
        }
        Err("it was repaired and does not start".to_owned())
    }

    fn tool(&self, arguments: &[&str], at: usize) -> Outcome<Output> {
        let ran = Command::new(&self.binary).args(arguments).arg(self.data(at)).output();
        ran.map_err(|error| format!("{arguments:?} cannot be run: {error}"))
    }

    /// Waits until the node is ready, or has ended: then with what it said.
    async fn wait_ready(&mut self, at: usize) -> Outcome<Option<String>> {
        let since = Instant::now();
        while since.elapsed() < TIMEOUT {
            let log = self.log(at);
            let node = &mut self.nodes[at];
            let ended = node.child.as_mut().map(Child::try_wait).transpose();
            if ended.map_err(|error| error.to_string())?.flatten().is_some() {
                node.child = None;
                let text = fs::read_to_string(&log).unwrap_or_default();
                let last = text.lines().rev().find(|line| line.starts_with("d-engine: "));
                return Ok(Some(last.unwrap_or(&text).to_owned()));
            }
            if status(&node.client).await.is_ok_and(|status| status.ready) {
                return Ok(None);
            }
            sleep(POLL).await;
        }
        let told = status(&self.nodes[at].client).await.map(|status| status.alarms);
        Err(format!("it is not ready after {TIMEOUT:?}: {told:?}"))
    }

    /// Starts a new node, which votes in the place of this one.
    async fn replace(&mut self, at: usize) -> Outcome<()> {
        let old = self.nodes[at].id;
        let seed = self.nodes[(at + 1) % 3].peer.clone();
        let other = self.nodes[(at + 1) % 3].client.clone();
        fs::remove_dir_all(self.data(at)).map_err(|error| error.to_string())?;
        self.nodes[at] = Node::new(old)?;
        let Node { peer, client, .. } = &self.nodes[at];
        let text = format!(
            "join = [{seed:?}]\nreplaces = {old}\npeer_listen = {peer:?}\n\
             client_listen = {client:?}\n{SETTINGS}"
        );
        self.configure(at, &text)?;
        self.spawn(at)?;
        let since = Instant::now();
        while since.elapsed() < TIMEOUT {
            let (new, seen) = (status(&self.nodes[at].client).await, status(&other).await);
            if let (Ok(new), Ok(seen)) = (new, seen) {
                let votes = |id| {
                    let mut members = seen.members.iter();
                    members.any(|it| it.node == id && it.role == MemberRole::Voter)
                };
                if new.node != old && new.ready && votes(new.node) && !votes(old) {
                    self.nodes[at].id = new.node;
                    return Ok(());
                }
            }
            sleep(POLL).await;
        }
        let text = fs::read_to_string(self.log(at)).unwrap_or_default();
        Err(format!("node {old} is not replaced after {TIMEOUT:?}: {text}"))
    }

    /// Waits until all nodes have applied the same. Nothing is written meanwhile.
    pub(crate) async fn wait_until_level(&self) -> Outcome<()> {
        let since = Instant::now();
        let mut seen = Vec::new();
        while since.elapsed() < TIMEOUT {
            seen.clear();
            for node in &self.nodes {
                seen.push(status(&node.client).await);
            }
            let known: Vec<&NodeStatus> = seen.iter().flatten().collect();
            self.check(&known)?;
            let is_level = known.len() == 3
                && known.iter().all(|it| {
                    it.ready
                        && it.leader.is_some()
                        && it.applied_index == known[0].applied_index
                        && it.commit_index == it.applied_index
                        && it.last_index == it.applied_index
                });
            if is_level {
                return Ok(());
            }
            sleep(POLL).await;
        }
        Err(format!("the nodes do not apply the same after {TIMEOUT:?}: {seen:?}"))
    }

    /// No term has two leaders, and no node knows of a loss.
    fn check(&self, known: &[&NodeStatus]) -> Outcome<()> {
        let mut leaders = self.leaders.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for status in known {
            if let Some(loss) = status.losses.first() {
                return Err(format!("node {} reports a loss: {loss}", status.node));
            }
            let Some(leader) = status.leader else { continue };
            let first = *leaders.entry(status.term).or_insert(leader);
            if first != leader {
                let term = status.term;
                return Err(format!("term {term} has two leaders, {first} and {leader}"));
            }
        }
        Ok(())
    }
}

impl Node {
    fn new(id: u64) -> Outcome<Self> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let nth = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (peer, client) = (free_address()?, free_address()?);
        Ok(Self { id, name: format!("node-{nth}"), peer, client, child: None })
    }
}

/// An address on which nobody listens now.
fn free_address() -> Outcome<String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
    listener.local_addr().map(|it| it.to_string()).map_err(|error| error.to_string())
}

async fn status(address: &str) -> Outcome<NodeStatus> {
    let options = ClientOptions::default().timeout(Duration::from_secs(2));
    let client = Client::new([address], options).map_err(|error| error.to_string())?;
    client.status(address).await.map_err(|error| error.to_string())
}
