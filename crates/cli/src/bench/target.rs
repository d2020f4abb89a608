//! The nodes that are measured: started for it inside or outside this process, or an existing
//! cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use d_engine_client::Client;
use d_engine_server::{EmbeddedEngine, NodeBuilder};
use tokio::sync::watch;

use super::caller::{Caller, Connections, EmbeddedNodes, status_client};
use super::cost::{LogCount, Look};
use super::plan::Plan;
use super::process::{Usage, file_system};
use crate::args::BenchArgs;
use crate::cluster::{Cluster, Ports};
use crate::exit::{Failure, note};
use crate::place::Place;
use crate::status::{ask_all, leader_with_quorum};

/// How long embedded nodes may take to become ready.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Timeout of one status call.
const STATUS_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of one batch of records, far below the largest command that a node accepts.
const FILL_BYTES: usize = 256 << 10;
const FILL_RECORDS: usize = 1_000;

/// The nodes that are measured.
pub(super) struct Target {
    nodes: Nodes,
    place: Option<Place>,
    /// Describes the nodes in the report.
    pub(super) about: About,
}

/// Describes the nodes.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// `processes`, `embedded` or `endpoints`.
    pub(super) kind: &'static str,
    pub(super) nodes: usize,
    pub(super) directory: Option<String>,
    pub(super) file_system: Option<String>,
    /// The distinct versions that the nodes run.
    pub(super) versions: Vec<String>,
}

enum Nodes {
    Processes { cluster: Cluster, client: Client },
    Embedded { nodes: Arc<EmbeddedNodes>, _runs: watch::Sender<()> },
    Endpoints { endpoints: Vec<String>, client: Client },
}

impl Target {
    /// Starts the nodes or connects to existing ones, and waits until they can serve.
    pub(super) async fn open(args: &BenchArgs) -> Result<Self, Failure> {
        if !args.endpoints.is_empty() {
            return Self::existing(
                args.endpoints.iter().map(|one| one.trim().to_owned()).collect(),
            )
            .await;
        }
        let place = Place::temporary(args.dir.as_deref(), "d-engine-bench-")?;
        let cluster = Cluster::prepare(place.path(), args.nodes, Ports::Ephemeral, "bench")?;
        let (kind, nodes) = if args.embedded {
            ("embedded", Self::embedded(&cluster).await?)
        } else {
            match Self::processes(cluster).await {
                Ok(nodes) => ("processes", nodes),
                Err(failure) => {
                    note(format_args!("data and logs are kept in {}", place.keep().display()));
                    return Err(failure);
                }
            }
        };
        let about = About {
            kind,
            nodes: usize::try_from(args.nodes).unwrap_or(usize::MAX),
            directory: Some(place.path().display().to_string()),
            file_system: file_system(&real(place.path())),
            versions: vec![env!("CARGO_PKG_VERSION").to_owned()],
        };
        Ok(Self { nodes, place: Some(place), about })
    }

    async fn processes(mut cluster: Cluster) -> Result<Nodes, Failure> {
        cluster.start()?;
        let client = status_client(&cluster.endpoints(), STATUS_TIMEOUT)?;
        cluster.wait_until(&client, "ready", |status| status.ready).await?;
        Ok(Nodes::Processes { cluster, client })
    }

    async fn embedded(cluster: &Cluster) -> Result<Nodes, Failure> {
        let (runs, shutdown) = watch::channel(());
        let mut engines: Vec<EmbeddedEngine> = Vec::new();
        for config in cluster.configs()? {
            let id = config.node_id.unwrap_or(1);
            let failed = |error: d_engine_server::StartError| {
                Failure::failed(format_args!("node {id} cannot be started: {error}"))
            };
            let node = NodeBuilder::new(config, shutdown.clone()).build().map_err(failed)?;
            engines.push(node.start().await.map_err(failed)?);
        }
        for engine in &engines {
            engine.wait_ready(TIMEOUT).await.map_err(Failure::failed)?;
        }
        Ok(Nodes::Embedded { nodes: Arc::new(EmbeddedNodes::new(engines)), _runs: runs })
    }

    async fn existing(endpoints: Vec<String>) -> Result<Self, Failure> {
        let client = status_client(&endpoints, STATUS_TIMEOUT)?;
        let answers = ask_all(&client, endpoints.clone()).await;
        for (address, answer) in &answers {
            if let Err(reason) = answer {
                return Err(Failure::failed(format_args!(
                    "the node at {address} does not answer: {reason}"
                )));
            }
        }
        if leader_with_quorum(&answers).is_none() {
            return Err(Failure::failed(
                "no leader that a majority follows; name all nodes of one cluster with --endpoints",
            ));
        }
        let mut versions: Vec<String> =
            answers.values().flatten().map(|node| node.version.clone()).collect();
        versions.sort();
        versions.dedup();
        let about = About {
            kind: "endpoints",
            nodes: answers.len(),
            directory: None,
            file_system: None,
            versions,
        };
        Ok(Self { nodes: Nodes::Endpoints { endpoints, client }, place: None, about })
    }

    /// Creates `count` callers.
    pub(super) fn callers(
        &self,
        plan: &Arc<Plan>,
        count: u16,
    ) -> Result<Vec<Arc<Caller>>, Failure> {
        let numbers = 0..usize::from(count);
        let endpoints = match &self.nodes {
            Nodes::Embedded { nodes, .. } => {
                return Ok(numbers
                    .map(|number| Arc::new(Caller::embedded(nodes, number, plan)))
                    .collect());
            }
            Nodes::Processes { cluster, .. } => cluster.endpoints(),
            Nodes::Endpoints { endpoints, .. } => endpoints.clone(),
        };
        let connections = Connections::new(&endpoints, plan, count)?;
        Ok(numbers.map(|number| Arc::new(connections.caller(number, plan))).collect())
    }

    /// Puts every key, so that reads find records.
    pub(super) async fn fill(&self, plan: &Arc<Plan>) -> Result<(), Failure> {
        let callers = self.callers(plan, 1)?;
        let record = plan.key_bytes + plan.value.len();
        let batch = u32::try_from((FILL_BYTES / record).clamp(1, FILL_RECORDS)).unwrap_or(1);
        let mut at = 0;
        while let (Some(caller), true) = (callers.first(), at < plan.keys) {
            let end = at.saturating_add(batch).min(plan.keys);
            caller.put_all(at..end).await.map_err(|(_, reason)| {
                Failure::failed(format_args!("the records to read cannot be put: {reason}"))
            })?;
            at = end;
        }
        Ok(())
    }

    /// Samples the counters of every node.
    pub(super) async fn look(&self) -> Look {
        match &self.nodes {
            Nodes::Processes { cluster, client } => Look {
                logs: logs_at(client, &cluster.endpoints()).await,
                processes: cluster
                    .nodes()
                    .iter()
                    .map(|node| node.process().and_then(Usage::of))
                    .collect(),
                callers: Usage::of(std::process::id()),
            },
            Nodes::Endpoints { endpoints, client } => Look {
                logs: logs_at(client, endpoints).await,
                processes: Vec::new(),
                callers: Usage::of(std::process::id()),
            },
            Nodes::Embedded { nodes, .. } => {
                let mut logs = Vec::new();
                for engine in &nodes.engines {
                    logs.push(Some(LogCount::of(&engine.status().await)));
                }
                Look { logs, processes: vec![Usage::of(std::process::id())], callers: None }
            }
        }
    }

    /// Stops the nodes that were started and removes their files.
    pub(super) async fn close(self) -> Result<(), Failure> {
        let stopped = match self.nodes {
            Nodes::Processes { mut cluster, .. } => cluster.stop().await,
            Nodes::Embedded { nodes, .. } => {
                for engine in &nodes.engines {
                    engine.stop().await;
                }
                Ok(())
            }
            Nodes::Endpoints { .. } => Ok(()),
        };
        if let (Err(_), Some(place)) = (&stopped, self.place) {
            note(format_args!("data and logs are kept in {}", place.keep().display()));
        }
        stopped
    }
}

async fn logs_at(client: &Client, endpoints: &[String]) -> Vec<Option<LogCount>> {
    let answers = ask_all(client, endpoints.to_vec()).await;
    let log_of = |endpoint: &String| {
        let status = answers.get(endpoint)?.as_ref().ok()?;
        // A node of an older version does not report these counters.
        (status.log_syncs > 0).then(|| LogCount::of(status))
    };
    endpoints.iter().map(log_of).collect()
}

/// Resolves symbolic links.
fn real(path: &Path) -> std::path::PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}
