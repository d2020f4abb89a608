//! `d-engine demo`: imports a file into three processes, kills the leader in the middle, and checks
//! every record.
//!
//! `failover.rs` watches the import, `verify.rs` checks the records. `cluster` runs the processes
//! and `import` the import.

mod failover;
mod verify;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use d_engine_client::{Client, ClientOptions, KvClient};

use self::failover::Failover;
use self::verify::{CALLERS, Lost};
use crate::args::{DemoArgs, InputFormat};
use crate::cluster::{Cluster, Ports};
use crate::exit::{Exit, Failure, say};
use crate::import::{Import, Input, Manner, Record};
use crate::place::Place;
use crate::progress::{progress, tell};
use crate::signals::StopSignals;
/// How long the put of one record may take, retries included.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The percentage of acknowledged records at which the leader is killed.
const KILL_AT_PERCENT: usize = 40;
/// Timeout of one call, far longer than an election.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// How many lost keys are printed; a file lists all of them.
const LOST_SHOWN: usize = 20;

const WHAT_IT_SHOWS: &str = "\
This shows failover: a process is killed and nothing acknowledged is lost. It does not show
power loss: the operating system keeps running and retains unsynced writes. Power loss is tested by
`cargo test -p d-engine-storage` (the log cut and damaged at every byte) and by the simulator,
whose crashes lose unsynced writes: `cargo run --release -p d-engine-sim`.";

pub(crate) async fn demo(args: DemoArgs) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let input = Input::read(args.input.as_deref(), InputFormat::Tsv)?;
    let place = Place::empty(args.dir.as_deref(), "d-engine-demo-")?;
    // The nodes are child processes owned by this future: dropping it kills them.
    let result = tokio::select! {
        result = run(&input, place.path(), place.is_kept(), args.nodes) => result,
        signal = signals.next() => {
            Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}; the nodes were killed")))
        }
    };
    match result {
        Err(failure) if !failure.is_interrupt() => {
            say(format_args!("  kept      data and logs in {}", place.keep().display()));
            Err(failure)
        }
        result => result,
    }
}

async fn run(input: &Input, dir: &Path, kept: bool, nodes: u64) -> Result<(), Failure> {
    let began = Instant::now();
    say(format_args!(
        "d-engine demo: {nodes} processes on this machine; acknowledged means synced by a majority"
    ));
    say(format_args!(
        "  data      {} ({})",
        dir.display(),
        if kept { "kept" } else { "removed at the end" }
    ));
    say(format_args!(
        "  input     {} records from {}, {} replaced by a later line",
        input.records.len(),
        input.source,
        input.replaced()
    ));
    let mut cluster = Cluster::prepare(dir, nodes, Ports::Ephemeral, "demo")?;
    let client = Client::new(cluster.endpoints(), ClientOptions::default().timeout(CALL_TIMEOUT))?;
    cluster.start()?;
    cluster.wait_until(&client, "ready", |status| status.ready).await?;
    say(format_args!("  start     {nodes} nodes ready after {}", milliseconds(began.elapsed())));

    let records = Arc::new(input.records.clone());
    let killed = import_through_a_failover(&mut cluster, &client, &records).await?;
    restart(&mut cluster, &client, killed).await?;
    let lost = check(&mut cluster, &client, &records).await?;
    cluster.stop().await?;
    if !lost.is_empty() {
        return Err(tell_lost(dir, &lost));
    }
    say(format_args!(
        "  result    nothing acknowledged was lost: {} records on each of {nodes} nodes ({:.1} s in all)",
        records.len(),
        began.elapsed().as_secs_f64()
    ));
    say(WHAT_IT_SHOWS);
    Ok(())
}

/// Imports everything and kills the leader meanwhile; returns its id.
async fn import_through_a_failover(
    cluster: &mut Cluster,
    client: &Client,
    records: &Arc<Vec<Record>>,
) -> Result<u64, Failure> {
    let bar = progress("import", records.len());
    let threshold = (records.len() * KILL_AT_PERCENT).div_ceil(100);
    let began = Instant::now();
    let failover = Failover::new(client.clone(), threshold);
    let watching = failover.clone();
    let manner = Manner {
        callers: CALLERS,
        timeout: TIMEOUT,
        on_acknowledged: Box::new(move |acknowledged| watching.on_acknowledged(acknowledged)),
    };
    let mut import =
        Import::start(KvClient::new(client.clone()), records.clone(), manner, bar.clone());
    failover.threshold_reached(&mut import).await?;

    let leader = client.leader().ok_or_else(|| Failure::failed("there was no leader to kill"))?;
    let victim = cluster.id_at(&leader).ok_or_else(|| Failure::failed("an unknown node leads"))?;
    failover.leader_dies(&leader);
    let (before, killed_at) = (import.acknowledged(), Instant::now());
    let process = cluster.kill(victim).await?;
    tell(&bar, import_line(before, killed_at - began, "all nodes"));
    tell(&bar, format_args!("  kill -9   node {victim}, the leader (process {process})"));

    let (succeeded_at, successor) = failover.succeeded(&mut import, records).await?;
    let successor =
        cluster.id_at(&successor).ok_or_else(|| Failure::failed("an unknown node leads"))?;
    tell(
        &bar,
        format_args!(
            "  failover  {} from the kill to the first acknowledgement by node {successor}",
            milliseconds(succeeded_at - killed_at)
        ),
    );
    import.finish().await?;
    if let Some(refused) = import.refused().first() {
        return Err(Failure::failed(format!(
            "the put of {:?} was refused: {}",
            refused.key, refused.reason
        )));
    }
    bar.finish_and_clear();
    let after = import.acknowledged() - before;
    say(import_line(after, succeeded_at.elapsed(), "one node down"));
    say(format_args!(
        "            {} puts of unknown outcome were repeated (safe: the value is the same)",
        import.repeated()
    ));
    Ok(victim)
}

fn import_line(records: usize, time: Duration, with: &str) -> String {
    let rate = records as f64 / time.as_secs_f64().max(1e-6);
    format!(
        "  import    {records} records acknowledged in {:.2} s: {rate:.0}/s with {with}, {CALLERS} callers",
        time.as_secs_f64()
    )
}

/// Restarts the killed node and waits until it has every committed entry.
async fn restart(cluster: &mut Cluster, client: &Client, killed: u64) -> Result<(), Failure> {
    let began = Instant::now();
    cluster.start()?;
    cluster.wait_until(client, "ready", |status| status.ready).await?;
    say(format_args!(
        "  restart   node {killed} ready after {}, caught up with what it had missed",
        milliseconds(began.elapsed())
    ));
    Ok(())
}

/// Checks every node separately; returns what is lost.
async fn check(
    cluster: &mut Cluster,
    client: &Client,
    records: &Arc<Vec<Record>>,
) -> Result<Vec<Lost>, Failure> {
    let said = cluster.wait_until(client, "ready", |status| status.ready).await?;
    // The highest commit index of all nodes is the leader's.
    let committed = said.iter().map(|status| status.commit_index).max().unwrap_or(0);
    cluster.wait_until(client, "up to date", |status| status.applied_index >= committed).await?;
    let mut lost = Vec::new();
    for node in cluster.nodes() {
        let (id, address) = (node.id(), node.client_addr());
        let began = Instant::now();
        let bar = progress(&format!("check node {id}"), records.len());
        let lost_here = verify::verify(id, address, records, &bar).await?;
        bar.finish_and_clear();
        say(format_args!(
            "  check     node {id} separately (eventual reads): {} of {} records correct, {}",
            records.len() - lost_here.len(),
            records.len(),
            milliseconds(began.elapsed())
        ));
        lost.extend(lost_here);
    }
    Ok(lost)
}

fn tell_lost(dir: &Path, lost: &[Lost]) -> Failure {
    let line = |one: &Lost| {
        let found = one.found.as_ref().map(|value| String::from_utf8_lossy(value));
        format!("node {}: {:?} has {found:?}", one.node, String::from_utf8_lossy(&one.key))
    };
    let all: Vec<String> = lost.iter().map(line).collect();
    for one in all.iter().take(LOST_SHOWN) {
        say(format_args!("  LOST      {one}"));
    }
    let file = dir.join("lost.txt");
    // The file is optional: the keys printed above suffice for the failure.
    fs::write(&file, all.join("\n")).ok();
    Failure::failed(format!(
        "{} acknowledged records are lost; the full list is in {}",
        lost.len(),
        file.display()
    ))
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
