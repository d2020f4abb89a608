//! First figures, in one run: durable writes per second of three nodes in one process at 1, 16, 64 and 256
//! callers, against what the disk itself can sync. Ratios are what to read: disks have moods.
//!
//! `cargo run --release -p d-engine --example figures [SECONDS [DIRECTORY]]`

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use d_engine::{
    Config, EmbeddedEngine, KvCommand, KvStateMachine, MemberConfig, ProposeError, ReadConsistency,
};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const VALUE_BYTES: usize = 256;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let length = Duration::from_secs(seconds);
    let mut nodes = Vec::new();
    for config in configs(&dir, 3)? {
        nodes.push(EmbeddedEngine::start_custom(Arc::new(KvStateMachine::new()), config).await?);
    }
    for node in &nodes {
        node.wait_ready(Duration::from_secs(20)).await?;
    }
    println!(
        "{VALUE_BYTES}-byte values, three nodes in one process on one disk, every write synced by a majority"
    );
    println!("{:>24} {:>12} {:>12} {:>12}", "", "per second", "p50", "p99");
    for callers in [1, 16, 64, 256] {
        let alone = sync_rate(&dir.join("sync-loop"), 1, length / 3)?;
        let three = sync_rate(&dir.join("sync-loop"), 3, length / 3)?;
        let leader = leader(&nodes).await?;
        let (rate, p50, p99) = writes(&leader, callers, length).await?;
        println!("{:>24} {rate:>12.0} {p50:>12.0?} {p99:>12.0?}", format!("{callers} callers"));
        println!(
            "{:>24} {:.2} of one sync loop ({alone:.0}/s), {:.2} of three beside each other ({three:.0}/s each)",
            "",
            rate / alone,
            rate / three
        );
    }
    let leader = leader(&nodes).await?;
    for consistency in [ReadConsistency::Linearizable, ReadConsistency::Lease, ReadConsistency::Eventual] {
        for callers in [1, 2, 64] {
            let (rate, p50, p99) = reads(&leader, consistency, callers, length).await?;
            let name = format!("{callers} {consistency:?} readers").to_lowercase();
            println!("{name:>24} {rate:>12.0} {p50:>12.0?} {p99:>12.0?}");
        }
    }
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

fn configs(dir: &Path, nodes: u64) -> Outcome<Vec<Config>> {
    let listeners = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
    let mut members = Vec::new();
    for (listener, id) in listeners.iter().zip(1..) {
        members.push(MemberConfig {
            id,
            peer_addr: listener.local_addr()?.to_string(),
            client_addr: String::new(),
        });
    }
    let config = |node_id| Config {
        node_id,
        cluster_id: Some("0123456789abcdef0123456789abcdef".to_owned()),
        data_dir: dir.join(format!("node-{node_id}")),
        members: members.clone(),
        ..Config::default()
    };
    Ok((1..=nodes).map(config).collect())
}

async fn leader(nodes: &[EmbeddedEngine]) -> Outcome<EmbeddedEngine> {
    loop {
        for node in nodes {
            if node.is_leader() {
                return Ok(node.clone());
            }
        }
        tokio::task::yield_now().await;
    }
}

/// 4 KiB overwrites of a zero-filled file, each synced, by `writers` at the same time; per writer and
/// second.
fn sync_rate(path: &Path, writers: usize, length: Duration) -> Outcome<f64> {
    const FILE_BYTES: usize = 16 << 20;
    let count = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for writer in 0..writers {
            let (path, count) = (path.with_extension(writer.to_string()), &count);
            threads.push(scope.spawn(move || -> std::io::Result<()> {
                let mut file = File::create(&path)?;
                file.write_all(&vec![0; FILE_BYTES])?;
                file.sync_all()?;
                let block = vec![7; 4096];
                let (mut at, began) = (0, Instant::now());
                while began.elapsed() < length {
                    file.write_all_at(&block, at)?;
                    file.sync_data()?;
                    at = (at + 4096) % FILE_BYTES as u64;
                    count.fetch_add(1, Ordering::Relaxed);
                }
                std::fs::remove_file(&path)
            }));
        }
        for thread in threads {
            thread.join().map_err(|_| "a sync loop panicked")??;
        }
        Ok::<(), Box<dyn Error + Send + Sync>>(())
    })?;
    Ok(count.into_inner() as f64 / length.as_secs_f64() / writers as f64)
}

async fn writes(
    leader: &EmbeddedEngine,
    callers: u64,
    length: Duration,
) -> Outcome<(f64, Duration, Duration)> {
    let leader = leader.clone();
    measure(callers, length, move |caller, number| {
        let leader = leader.clone();
        async move {
            let command =
                KvCommand::put(format!("{caller}-{}", number % 1000), vec![7; VALUE_BYTES]).encode();
            loop {
                match leader.propose(command.clone()).await {
                    Err(ProposeError::Busy { .. }) => tokio::task::yield_now().await,
                    other => return other.map(|_| ()).map_err(Into::into),
                }
            }
        }
    })
    .await
}

async fn reads(
    leader: &EmbeddedEngine,
    consistency: ReadConsistency,
    callers: u64,
    length: Duration,
) -> Outcome<(f64, Duration, Duration)> {
    let leader = leader.clone();
    measure(callers, length, move |caller, number| {
        let leader = leader.clone();
        async move {
            let key = format!("{caller}-{}", number % 1000);
            leader.get(key.as_bytes(), consistency).await.map(|_| ()).map_err(Into::into)
        }
    })
    .await
}

/// Calls from `callers` tasks, each one call at a time, for `length`.
async fn measure<F>(
    callers: u64,
    length: Duration,
    call: impl Fn(u64, u64) -> F + Clone + Send + 'static,
) -> Outcome<(f64, Duration, Duration)>
where
    F: Future<Output = Outcome<()>> + Send,
{
    let over = Arc::new(AtomicBool::new(false));
    let started = Instant::now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (call, over) = (call.clone(), over.clone());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let began = Instant::now();
                    call(caller, times.len() as u64).await?;
                    times.push(began.elapsed());
                }
                Ok::<_, Box<dyn Error + Send + Sync>>(times)
            })
        })
        .collect();
    tokio::time::sleep(length).await;
    over.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
    Ok((rate, at(50), at(99)))
}
