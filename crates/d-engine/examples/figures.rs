//! First figures, in one run: durable writes per second of three nodes in one process at 1, 16, 64
//! and 256 callers, compared with what the disk itself can sync. Compare ratios, because the speed
//! of a disk varies.
//!
//! `cargo run --release -p d-engine --example figures [SECONDS [DIRECTORY]]`

mod support;

use std::error::Error;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use d_engine::{Config, EmbeddedEngine, KvCommand, KvStateMachine, ProposeError, ReadConsistency};
use support::{Outcome, leader, measure};

const VALUE_BYTES: usize = 256;

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let seconds: u64 = arguments.next().map_or(Ok(3), |text| text.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = arguments.next().map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let length = Duration::from_secs(seconds);
    let mut nodes = Vec::new();
    for config in Config::local_cluster(&dir, 3)? {
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
    for consistency in
        [ReadConsistency::Linearizable, ReadConsistency::Lease, ReadConsistency::Eventual]
    {
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

/// Overwrites 4 KiB of a zero-filled file, each synced, with `writers` threads at the same time.
/// Returns the number per writer and second.
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
                KvCommand::put(format!("{caller}-{}", number % 1000), vec![7; VALUE_BYTES])
                    .encode();
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
