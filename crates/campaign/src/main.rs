//! `d-engine-campaign`: three nodes of the real binary, each in a network namespace and on a file
//! system of its own, under faults that are drawn from a seed. The simulator's checker judges what
//! their clients observed.
//!
//! Run it with `scripts/campaign`, which creates the namespaces around it. `nemesis.rs` decides
//! what happens when, `faults.rs` begins and ends a fault, and `net.rs`, `disk.rs` and `node.rs`
//! are the things that it acts on. `clients.rs` and `expiry.rs` are the load, `history.rs` judges
//! it, and `watch.rs` polls the nodes' status. `record.rs` collects the results.

mod clients;
mod disk;
mod expiry;
mod faults;
mod history;
mod nemesis;
mod net;
mod node;
mod record;
mod shell;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use d_engine_sim::Prng;

use crate::clients::{Client, read_all};
use crate::expiry::Seen;
use crate::history::{Group, judge_all};
use crate::nemesis::Nemesis;
use crate::net::NODES;
use crate::node::{Node, Setup};
use crate::record::Record;
use crate::shell::{Outcome, doing};
use crate::watch::View;

/// Groups of clients; each contends for a pair of keys of its own.
const GROUPS: usize = 4;
/// Clients per group; more would make histories slow to check.
const CLIENTS: u64 = 4;
/// While at most one node is under a fault, writes may pause this long: a call's timeout, an
/// election, and a margin.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs three nodes under faults; start it with `scripts/campaign`.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Seconds of faults.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// The seed of faults and load.
    #[arg(long)]
    seed: u64,
    /// The release binary of d-engine.
    #[arg(long)]
    binary: PathBuf,
    /// An empty directory for disks, logs and histories.
    #[arg(long)]
    dir: PathBuf,
    /// The library of libfaketime; without it no clock is wrong.
    #[arg(long)]
    faketime: Option<PathBuf>,
    /// Plant a fault that must be found.
    #[arg(long)]
    plant: Option<Plant>,
}

/// A planted fault that must be found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Plant {
    /// Every data directory is put back to an earlier copy of itself, which loses acknowledged
    /// writes.
    Rollback,
    /// Reads are eventual, and are judged as linearizable.
    StaleReads,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("campaign: the runtime cannot be started: {error}");
            return ExitCode::from(2);
        }
    };
    match runtime.block_on(campaign(&arguments)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(problem) => {
            eprintln!("campaign: cannot continue: {problem}");
            ExitCode::from(2)
        }
    }
}

async fn campaign(arguments: &Arguments) -> Outcome<bool> {
    let seed = arguments.seed;
    let record = Arc::new(Record::new(&arguments.dir)?);
    let interrupted = on_interrupt(&record)?;
    net::make()?;
    let mut nemesis = prepare(arguments, &record)?;
    nemesis.interrupted = interrupted.clone();
    let groups: Vec<Arc<Group>> = (0..GROUPS).map(|number| Arc::new(Group::new(number))).collect();
    let view = nemesis.view.clone();
    let mut tasks = Vec::new();
    for (group, at) in groups.iter().zip(0..) {
        for number in at * CLIENTS..(at + 1) * CLIENTS {
            let reads_stale = arguments.plant == Some(Plant::StaleReads);
            let client = Client::new(record.clone(), group.clone(), seed, number, reads_stale)?;
            tasks.push(tokio::spawn(client.work()));
        }
    }
    let watching = tokio::spawn(watch::watch(record.clone(), view.clone()));
    let expiring = tokio::spawn(expiry::watch(record.clone(), seed));
    let telling = tokio::spawn(tell(record.clone(), view.clone()));

    let length = Duration::from_secs(arguments.seconds);
    let worked = tokio::task::spawn_blocking(move || {
        let worked = nemesis.work(length);
        (nemesis, worked)
    });
    let (nemesis, worked) = worked.await.map_err(doing("the nemesis"))?;
    record.end();
    for task in tasks {
        task.await.map_err(doing("a client"))?;
    }
    watching.await.map_err(doing("the watch"))??;
    telling.await.map_err(doing("the telling"))?;
    let seen = expiring.await.map_err(doing("keys that expire"))??;
    worked?;
    let is_interrupted = interrupted.load(Ordering::Relaxed);
    if !is_interrupted && let Err(problem) = read_all(&groups, &record).await {
        record.finding(&problem);
    }
    let recovery = nemesis.slowest_recovery;
    let finished = tokio::task::spawn_blocking(move || nemesis.finish());
    finished.await.map_err(doing("the end"))??;
    judge(&record, &groups, &arguments.dir)?;
    let interrupted = if is_interrupted { " (interrupted)" } else { "" };
    println!(
        "\ncampaign of seed {seed}{interrupted}: {:.0} s, {} terms with a leader",
        record.now().as_secs_f64(),
        view.terms()
    );
    Ok(summary(&record, recovery, seen))
}

/// Prepares the nodes and the nemesis.
fn prepare(arguments: &Arguments, record: &Arc<Record>) -> Outcome<Nemesis> {
    let setup = Setup {
        binary: arguments.binary.clone(),
        dir: arguments.dir.clone(),
        faketime: arguments.faketime.clone(),
    };
    let mut prng = Prng::stream(arguments.seed, "machines");
    let nodes: Vec<Node> = (1..=NODES)
        .map(|id| Node::prepare(&setup, id, prng.chance(400_000)))
        .collect::<Outcome<_>>()?;
    let mut nemesis =
        Nemesis::start(nodes, record.clone(), Arc::new(View::default()), arguments.seed)?;
    nemesis.has_faketime = arguments.faketime.is_some();
    if !nemesis.has_faketime {
        record.say("SKIPPED: wrong clocks: libfaketime is not installed");
    }
    nemesis.plants_rollback =
        (arguments.plant == Some(Plant::Rollback)).then(|| arguments.dir.clone());
    Ok(nemesis)
}

/// Returns a flag that the first Ctrl-C or SIGTERM sets.
fn on_interrupt(record: &Arc<Record>) -> Outcome<Arc<AtomicBool>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).map_err(doing("signals"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(doing("signals"))?;
    let interrupted = Arc::new(AtomicBool::new(false));
    let (flag, record) = (interrupted.clone(), record.clone());
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            record.say("interrupted: ending all faults and stopping the nodes");
            flag.store(true, Ordering::Relaxed);
        }
    });
    Ok(interrupted)
}

/// Prints a line of progress every ten seconds.
async fn tell(record: Arc<Record>, view: Arc<View>) {
    let mut next = Duration::from_secs(10);
    while !record.is_over() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if record.now() >= next {
            next += Duration::from_secs(10);
            let [ok, failed, unknown] = counts(&record);
            let leader = view.leader().map_or("nobody".to_owned(), |id| format!("node {id}"));
            record.say(&format!(
                "operations: {ok} ok, {failed} failed, {unknown} unknown; {leader} leads"
            ));
        }
    }
}

fn counts(record: &Record) -> [u64; 3] {
    [&record.ok, &record.failed, &record.unknown].map(|count| count.load(Ordering::Relaxed))
}

fn judge(record: &Record, groups: &[Arc<Group>], dir: &Path) -> Outcome<()> {
    let judged = judge_all(groups, record, dir)?;
    record.say(&format!("{judged} operations were judged"));
    let (pause, at) = record.pauses().with_one_fault;
    if pause > PAUSE_MAX {
        record.finding(&format!(
            "no write was acknowledged for {:.1} s until {:.1} s, although at most one node was \
             under a fault",
            pause.as_secs_f64(),
            at.as_secs_f64()
        ));
    }
    Ok(())
}

/// Prints the results of the run; returns whether nothing was found.
fn summary(record: &Record, recovery: Duration, seen: Seen) -> bool {
    let [ok, failed, unknown] = counts(record);
    let pauses = record.pauses();
    println!("  operations     {ok} ok, {failed} failed, {unknown} of unknown outcome");
    let faults: Vec<String> =
        record.faults().iter().map(|(name, count)| format!("{name} {count}")).collect();
    println!("  faults         {}", faults.join(", "));
    println!(
        "  longest pause  {:.1} s without an acknowledged write; {:.1} s with at most one node \
         under a fault",
        pauses.longest.as_secs_f64(),
        pauses.with_one_fault.0.as_secs_f64()
    );
    println!(
        "  recovery       at most {:.1} s from the end of all faults to the next write",
        recovery.as_secs_f64()
    );
    println!(
        "  expiring keys  {} put, {} reads found one, {} found one gone; at most {:.1} s late",
        seen.keys,
        seen.there,
        seen.gone,
        seen.latest.as_secs_f64()
    );
    let findings = record.findings();
    for finding in &findings {
        println!("  FINDING        {finding}");
    }
    let is_good = findings.is_empty() && ok > 0;
    println!("  verdict        {}", if is_good { "linearizable; nothing found" } else { "FAILED" });
    is_good
}
