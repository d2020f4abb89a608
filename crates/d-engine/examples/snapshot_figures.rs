//! The cost of snapshots: the latency of writes while one is built, the time of a restart, a
//! follower far behind, and the disk that a long run of writes takes.
//!
//! `cargo run --release -p d-engine --example snapshot_figures -- COMMAND [DIRECTORY]`, where
//! `COMMAND` is `build`, `restart`, `behind` or `disk`.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d_engine::{Config, EmbeddedEngine, KvCommand, KvOperation, KvStateMachine, ProposeError};
use support::{Outcome, leader, measure_until};
use tokio::task::JoinSet;

const TIMEOUT: Duration = Duration::from_secs(120);
/// Callers whose latency is measured.
const CALLERS: u64 = 16;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let what = arguments.next().unwrap_or_default();
    let temporary = tempfile::tempdir()?;
    let dir = arguments.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    match what.as_str() {
        "build" => build(&dir).await,
        "restart" => restart(&dir).await,
        "behind" => behind(&dir).await,
        "disk" => disk(&dir).await,
        _ => Err("say build, restart, behind or disk".into()),
    }
}

async fn start(configs: &[Config]) -> Outcome<Vec<EmbeddedEngine>> {
    let mut nodes = Vec::new();
    for config in configs {
        nodes.push(
            EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config.clone()).await?,
        );
    }
    for node in &nodes {
        node.wait_ready(TIMEOUT).await?;
    }
    Ok(nodes)
}

async fn propose(leader: &EmbeddedEngine, command: bytes::Bytes) -> Outcome<()> {
    loop {
        match leader.propose(command.clone()).await {
            Err(ProposeError::Busy { .. }) => tokio::task::yield_now().await,
            other => return other.map(|_| ()).map_err(Into::into),
        }
    }
}

/// Puts `count` keys of 8 bytes with values of `value_bytes`, in commands of `batch`.
async fn fill(leader: &EmbeddedEngine, count: u64, value_bytes: usize, batch: u64) -> Outcome<()> {
    let mut calls = JoinSet::new();
    for first in (0..count).step_by(usize::try_from(batch)?) {
        let put = |n: u64| KvOperation::put(n.to_be_bytes().to_vec(), vec![7; value_bytes]);
        let command = if batch == 1 {
            KvCommand::put(first.to_be_bytes().to_vec(), vec![7; value_bytes]).encode()
        } else {
            KvCommand::batch((first..(first + batch).min(count)).map(put)).encode()
        };
        let leader = leader.clone();
        calls.spawn(async move { propose(&leader, command).await });
        while calls.len() >= 512 {
            if let Some(done) = calls.join_next().await {
                done??;
            }
        }
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    Ok(())
}

/// Makes small durable puts from some callers, for `length`.
async fn puts(leader: &EmbeddedEngine, length: Duration) -> Outcome<(f64, Duration, Duration)> {
    puts_until(leader, tokio::time::sleep(length)).await
}

/// The same until `until` completes.
async fn puts_until(
    leader: &EmbeddedEngine,
    until: impl Future,
) -> Outcome<(f64, Duration, Duration)> {
    let leader = leader.clone();
    measure_until(CALLERS, until, move |caller, number| {
        let leader = leader.clone();
        let command = KvCommand::put(format!("{caller}-{}", number % 1_000), vec![7; 256]).encode();
        async move { propose(&leader, command).await }
    })
    .await
}

/// Compares the 99th percentile of durable puts while a snapshot of 1 GiB is built with that of
/// undisturbed puts.
async fn build(dir: &Path) -> Outcome<()> {
    let mut configs = Config::local_cluster(dir, 3)?;
    for config in &mut configs {
        // Only on request.
        config.snapshots.after_log_bytes = 0;
    }
    let nodes = start(&configs).await?;
    let lead = leader(&nodes).await?;
    fill(&lead, 1 << 18, 4 << 10, 64).await?;
    println!("three nodes in one process, a state of 1 GiB, {CALLERS} callers");
    for _ in 0..3 {
        let (rate, p50, p99) = puts(&lead, Duration::from_secs(8)).await?;
        println!("undisturbed  {rate:>8.0} puts/s  p50 {p50:>10.2?}  p99 {p99:>10.2?}");
        let (node, began) = (lead.clone(), Instant::now());
        let taking = tokio::spawn(async move { node.take_snapshot().await });
        let (rate, p50, while_built) = puts(&lead, Duration::from_secs(8)).await?;
        let taken = taking.await??;
        let (pause, took) = (lead.status().await.snapshots.pause, began.elapsed());
        println!(
            "while built  {rate:>8.0} puts/s  p50 {p50:>10.2?}  p99 {while_built:>10.2?}  ratio {:.2}; {} MiB in {took:.1?}, apply waited {pause:?}",
            while_built.as_secs_f64() / p99.as_secs_f64(),
            taken.len >> 20,
        );
    }
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

/// The time of a restart with a million entries, of which 900,000 are in a snapshot.
async fn restart(dir: &Path) -> Outcome<()> {
    let mut config = Config { data_dir: dir.join("alone"), ..Config::default() };
    config.snapshots.after_log_bytes = 0;
    let alone = std::slice::from_ref(&config);
    let node = start(alone).await?.remove(0);
    fill(&node, 900_000, 256, 1).await?;
    let taken = node.take_snapshot().await?;
    let (leader, more) = (node.clone(), 900_000..1_000_000_u64);
    for n in more.step_by(500) {
        let puts = (n..n + 500).map(|n| {
            let command = KvCommand::put(n.to_be_bytes().to_vec(), vec![7; 256]).encode();
            let leader = leader.clone();
            async move { propose(&leader, command).await }
        });
        let mut calls: JoinSet<Outcome<()>> = puts.collect();
        while let Some(done) = calls.join_next().await {
            done??;
        }
    }
    node.stop().await;
    println!(
        "1,000,000 entries of 256 bytes, a snapshot of the first {} ({} MiB)",
        taken.last_included().index,
        taken.len >> 20
    );
    for _ in 0..5 {
        let began = Instant::now();
        let node = start(alone).await?.remove(0);
        println!(
            "ready after {:.2?}, {} keys",
            began.elapsed(),
            node.status().await.records.unwrap_or(0)
        );
        node.stop().await;
    }
    Ok(())
}

/// A follower that restarts a million entries later, while others write at a steady rate.
async fn behind(dir: &Path) -> Outcome<()> {
    let mut configs = Config::local_cluster(dir, 3)?;
    for config in &mut configs {
        config.snapshots.after_log_bytes = 64 << 20;
    }
    let mut nodes = start(&configs).await?;
    let lead = leader(&nodes).await?;
    let away = nodes.iter().position(|node| !node.is_leader()).ok_or("nobody follows")?;
    nodes.remove(away).stop().await;
    let before = lead.replica_status().await.map_or(0, |replica| replica.applied);
    fill(&lead, 1_000_000, 256, 1).await?;
    for _ in 0..3 {
        let (rate, p50, p99) = puts(&lead, Duration::from_secs(5)).await?;
        println!("two of three    {rate:>8.0} puts/s  p50 {p50:>10.2?}  p99 {p99:>10.2?}");
    }
    let began = Instant::now();
    let back = EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), configs[away].clone())
        .await?;
    let watched = back.clone();
    let catching_up = async move { watched.wait_ready(Duration::from_secs(600)).await };
    let (rate, p50, p99) = puts_until(&lead, catching_up).await?;
    let took = began.elapsed();
    println!("while it comes  {rate:>8.0} puts/s  p50 {p50:>10.2?}  p99 {p99:>10.2?}");
    back.wait_ready(Duration::ZERO).await?;
    let applied = lead.replica_status().await.map_or(0, |replica| replica.applied);
    println!("ready after {took:.1?}, {} entries later", applied - before);
    for _ in 0..3 {
        let (rate, p50, p99) = puts(&lead, Duration::from_secs(5)).await?;
        println!("all three       {rate:>8.0} puts/s  p50 {p50:>10.2?}  p99 {p99:>10.2?}");
    }
    nodes.push(back);
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

/// The largest log and the largest set of snapshots in a run of 20 minutes, with the default
/// settings.
async fn disk(dir: &Path) -> Outcome<()> {
    let configs = Config::local_cluster(dir, 3)?;
    let nodes = start(&configs).await?;
    let lead = leader(&nodes).await?;
    let over = Arc::new(AtomicBool::new(false));
    let (stop, data) = (over.clone(), configs[0].data_dir.clone());
    let watching = std::thread::spawn(move || {
        let mut most = [0; 3];
        while !stop.load(Ordering::Relaxed) {
            let snapshots = size(&data.join("snapshots"));
            for (most, now) in
                most.iter_mut().zip([size(&data.join("log")).0, snapshots.0, snapshots.1])
            {
                *most = now.max(*most);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        most
    });
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1_200) {
        let (rate, _, p99) = puts(&lead, Duration::from_secs(60)).await?;
        let status = lead.status().await;
        println!(
            "{:>5.0?}  {rate:>8.0} puts/s  p99 {p99:>10.2?}  log {:>4} MiB  {} snapshots, {} MiB, {} taken",
            began.elapsed(),
            status.log_bytes_on_disk >> 20,
            status.snapshots.count,
            status.snapshots.disk_bytes >> 20,
            status.snapshots.built,
        );
    }
    over.store(true, Ordering::Relaxed);
    let [log, bytes, files] = watching.join().map_err(|_| "the watcher panicked")?;
    println!("at most: log {} MiB, {files} files of snapshots with {} MiB", log >> 20, bytes >> 20);
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

/// Bytes that the files in a directory take up, and how many there are.
fn size(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(dir) else { return (0, 0) };
    let files = entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(std::fs::Metadata::is_file);
    files.fold((0, 0), |(bytes, count), file| (bytes + file.blocks() * 512, count + 1))
}
