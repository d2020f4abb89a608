//! `d-engine dev`: runs a local cluster to develop against; each node is a process of its own.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use d_engine_client::{Client, ClientOptions, MemberRole};
use tokio::time::{MissedTickBehavior, interval};

use crate::args::DevArgs;
use crate::cluster::{Cluster, Ended, Ports};
use crate::exit::{Failure, say};
use crate::place::Place;
use crate::signals::StopSignals;
use crate::status::{Answers, ask_all, leader_with_quorum};

/// Number of nodes without `--nodes`.
const NODES: u64 = 3;
/// Interval between status polls until a node leads.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Interval between status polls afterwards.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// Timeout of one status call.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);

pub(crate) async fn dev(args: DevArgs) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let place = Place::any(args.dir.as_deref(), "d-engine-dev-")?;
    let mut cluster = open(&args, &place)?;
    let ended = tokio::select! {
        Err(failure) = run(&mut cluster, &place) => Err(failure),
        signal = signals.next() => Ok(signal),
    };
    match ended {
        Ok(signal) => {
            say(format_args!(
                "  stop      {signal} received; stopping every node; a second signal kills them"
            ));
            // The nodes are child processes of the cluster: dropping it kills them.
            let stopped = tokio::select! {
                stopped = cluster.stop() => stopped,
                _ = signals.next() => Ok(()),
            };
            leave_to_others(&cluster, place).await;
            stopped
        }
        Err(failure) => {
            // The failure that ended the run matters more than one of the stop.
            cluster.stop().await.ok();
            say(format_args!("  kept      data and logs in {}", place.keep().display()));
            Err(failure)
        }
    }
}

/// `dev` does not stop a node that was started by hand, and does not remove the files it uses.
async fn leave_to_others(cluster: &Cluster, place: Place) {
    let options = ClientOptions::default().timeout(STATUS_TIMEOUT);
    let Ok(client) = Client::new(cluster.endpoints(), options) else { return };
    let answers = ask_all(&client, cluster.endpoints()).await;
    let left: Vec<u64> = answers.values().flatten().map(|status| status.node).collect();
    if left.is_empty() {
        return;
    }
    for node in left {
        say(format_args!(
            "  node {node}    was started by hand and keeps running; stop it where it was started"
        ));
    }
    say(format_args!("  kept      data and logs in {}", place.keep().display()));
}

/// Creates a new cluster, or reopens the one that an earlier run left in `--dir`.
fn open(args: &DevArgs, place: &Place) -> Result<Cluster, Failure> {
    let Some(cluster) = Cluster::reopen(place.path())? else {
        let ports = if args.ephemeral { Ports::Ephemeral } else { Ports::Fixed };
        return Cluster::prepare_to_join(place.path(), args.nodes.unwrap_or(NODES), ports, "dev");
    };
    let there = cluster.nodes().len() as u64;
    match args.nodes {
        Some(asked) if asked != there => Err(Failure::refused(format_args!(
            "--nodes {asked}: the cluster in {} has {there} nodes; use another --dir for a new one",
            place.path().display()
        ))),
        _ => Ok(cluster),
    }
}

/// Runs the cluster and returns only if it fails to start. Drop the future to end it.
async fn run(cluster: &mut Cluster, place: &Place) -> Result<(), Failure> {
    let began = Instant::now();
    let client =
        Client::new(cluster.endpoints(), ClientOptions::default().timeout(STATUS_TIMEOUT))?;
    announce(cluster, place);
    cluster.start_in_turn(&client).await?;
    introduce(cluster);
    let endpoints = cluster.endpoints();
    let found = tokio::select! {
        leader = first_leader(&client, endpoints) => Ok(leader),
        ended = cluster.next_end() => Err(ended),
    };
    let leader = found.map_err(|ended| {
        let node = cluster.nodes().iter().find(|node| node.id() == ended.node);
        let what = format!("has ended ({}) before the cluster had a leader", ended.how);
        node.map_or_else(|| Failure::failed(&what), |node| node.failure(&what))
    })?;
    say(format_args!(
        "  ready     node {leader} leads after {} ms; Ctrl-C stops everything",
        began.elapsed().as_millis()
    ));
    watch(cluster, &client, leader).await
}

fn announce(cluster: &Cluster, place: &Place) {
    let dir = place.path().display();
    say(format_args!("d-engine dev: {} processes on this machine", cluster.nodes().len()));
    say(format_args!(
        "  data      {dir} ({})",
        if place.is_kept() { "kept" } else { "removed at the end" }
    ));
}

fn introduce(cluster: &Cluster) {
    for node in cluster.nodes() {
        say(format_args!(
            "  node {}    clients at {}, process {}, log {}",
            node.id(),
            node.client_addr(),
            node.process().unwrap_or_default(),
            node.log().display()
        ));
    }
    say(format_args!("  endpoints {}", cluster.endpoints().join(",")));
}

/// Waits until a node leads and no member is still to become a voter.
async fn first_leader(client: &Client, endpoints: Vec<String>) -> u64 {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        let answers = ask_all(client, endpoints.clone()).await;
        let Some(leader) = leader_with_quorum(&answers) else { continue };
        let mut members = answers
            .values()
            .flatten()
            .filter(|status| status.node == leader)
            .flat_map(|status| &status.members);
        if members.all(|member| !matches!(member.role, MemberRole::Joining { .. })) {
            return leader;
        }
    }
}

/// Prints changes of the leader and ends of nodes. Never returns.
async fn watch(cluster: &mut Cluster, client: &Client, leader: u64) -> Result<(), Failure> {
    let endpoints = cluster.endpoints();
    let mut seen = Seen { leader: Some(leader), ended: BTreeSet::new() };
    let mut looks = interval(WATCH_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = cluster.next_end() => {
                seen.ended.insert(ended.node);
                tell_end(cluster, &ended);
            }
            answers = async { looks.tick().await; ask_all(client, endpoints.clone()).await } => {
                seen.tell_news(&answers);
            }
        }
    }
}

fn tell_end(cluster: &Cluster, ended: &Ended) {
    say(format_args!(
        "  node {}    process {} has ended: {}",
        ended.node, ended.process, ended.how
    ));
    if let Some(node) = cluster.nodes().iter().find(|node| node.id() == ended.node) {
        say(format_args!("            start it again with: {}", node.start_command()));
    }
}

/// What was printed last.
struct Seen {
    leader: Option<u64>,
    /// Nodes whose process has ended and that have not answered since.
    ended: BTreeSet<u64>,
}

impl Seen {
    fn tell_news(&mut self, answers: &Answers) {
        for status in answers.values().flatten().filter(|status| status.ready) {
            if self.ended.remove(&status.node) {
                say(format_args!("  node {}    was started by hand, and is ready", status.node));
            }
        }
        let leader = leader_with_quorum(answers);
        if leader != self.leader {
            match leader {
                Some(leader) => say(format_args!("  leader    node {leader}")),
                None => say("  leader    none that a majority follows"),
            }
            self.leader = leader;
        }
    }
}
