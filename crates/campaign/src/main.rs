//! `d-engine-campaign`: nodes of the real binary, each in a network namespace and on a file system
//! of its own, under faults that are drawn from a seed. The simulator's checker judges what their
//! clients observed.
//!
//! Run it with `scripts/campaign`, which creates the namespaces around it. `nemesis.rs` decides
//! what happens when, `faults.rs` begins and ends a fault, and `operator/` changes the members.
//! `site.rs` is what they act on: the machines, with `net.rs`, `disk.rs`, `node.rs` and
//! `config.rs`. `clients.rs` and `expiry.rs` are the load, `history.rs` judges it, and `view.rs`
//! polls the nodes' status. `record.rs` collects the results, and `summary.rs` prints them.

mod clients;
mod config;
mod disk;
mod expiry;
mod faults;
mod history;
mod nemesis;
mod net;
mod node;
mod operator;
mod record;
mod shell;
mod site;
mod summary;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use d_engine_sim::Prng;

use crate::clients::{Client, read_all};
use crate::history::{Group, judge_all};
use crate::nemesis::Nemesis;
use crate::net::FOUNDERS;
use crate::node::{Node, Setup};
use crate::operator::Operator;
use crate::record::Record;
use crate::shell::{Outcome, doing};
use crate::site::Site;
use crate::summary::{counts, summary};
use crate::view::View;

/// Groups of clients; each contends for a pair of keys of its own.
const GROUPS: usize = 4;
/// Clients per group; more would make histories slow to check.
const CLIENTS: u64 = 4;
/// The machines of a cluster whose members change.
const MACHINES: u64 = 8;
/// While a majority is without a fault, writes may pause this long: a call's timeout, an election,
/// a joint configuration that is rolled back, and a margin.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs nodes under faults; start it with `scripts/campaign`.
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
    /// Change the members meanwhile.
    #[arg(long)]
    members: bool,
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
    if arguments.members && arguments.plant == Some(Plant::Rollback) {
        return Err("--plant rollback needs members that stay the same".to_owned());
    }
    net::make(machines(arguments))?;
    let mut nemesis = prepare(arguments, &record)?;
    nemesis.interrupted = interrupted.clone();
    let groups: Vec<Arc<Group>> = (0..GROUPS).map(|number| Arc::new(Group::new(number))).collect();
    let view = nemesis.site.view.clone();
    let mut tasks = Vec::new();
    for (group, at) in groups.iter().zip(0..) {
        for number in at * CLIENTS..(at + 1) * CLIENTS {
            let reads_stale = arguments.plant == Some(Plant::StaleReads);
            let (record, view) = (record.clone(), view.clone());
            let client = Client::new(record, view, group.clone(), seed, number, reads_stale)?;
            tasks.push(tokio::spawn(client.work()));
        }
    }
    let watching = tokio::spawn(view::watch(record.clone(), view.clone()));
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
    if !is_interrupted && let Err(problem) = read_all(&groups, &record, &view).await {
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

fn machines(arguments: &Arguments) -> u64 {
    if arguments.members { MACHINES } else { FOUNDERS }
}

/// Prepares the machines and starts the founders.
fn prepare(arguments: &Arguments, record: &Arc<Record>) -> Outcome<Nemesis> {
    let setup = Setup {
        binary: arguments.binary.clone(),
        dir: arguments.dir.clone(),
        faketime: arguments.faketime.clone(),
    };
    let mut prng = Prng::stream(arguments.seed, "machines");
    let nodes: Vec<Node> = (1..=machines(arguments))
        .map(|machine| Node::prepare(&setup, machine, prng.chance(400_000)))
        .collect::<Outcome<_>>()?;
    let site = Site::start(nodes, record.clone(), Arc::new(View::default()), &setup)?;
    let mut nemesis = Nemesis::new(site, arguments.seed);
    nemesis.operator = arguments.members.then(|| Operator::new(arguments.seed));
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
            let leader = view.said_by_leader();
            let leader = leader.map_or("nobody".to_owned(), |said| format!("node {}", said.node));
            record.say(&format!(
                "operations: {ok} ok, {failed} failed, {unknown} unknown; {leader} leads"
            ));
        }
    }
}

fn judge(record: &Record, groups: &[Arc<Group>], dir: &Path) -> Outcome<()> {
    let judged = judge_all(groups, record, dir)?;
    record.say(&format!("{judged} operations were judged"));
    let (pause, at) = record.pauses().with_majority;
    if pause > PAUSE_MAX {
        record.finding(&format!(
            "no write was acknowledged for {:.1} s until {:.1} s, although a majority was without a \
             fault",
            pause.as_secs_f64(),
            at.as_secs_f64()
        ));
    }
    Ok(())
}
