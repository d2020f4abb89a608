//! What the programs that measure share: nodes in one process on free ports, callers, percentiles.
#![allow(dead_code, reason = "each program uses its part")]

use std::error::Error;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d_engine::{Config, EmbeddedEngine, MemberConfig};

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) fn configs(dir: &Path, nodes: u64) -> Outcome<Vec<Config>> {
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

pub(crate) async fn leader(nodes: &[EmbeddedEngine]) -> Outcome<EmbeddedEngine> {
    loop {
        for node in nodes {
            if node.is_leader() {
                return Ok(node.clone());
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Calls from `callers` tasks, each one call at a time, for `length`; how many a second, the median and the 99th
/// percentile.
pub(crate) async fn measure<F>(
    callers: u64,
    length: Duration,
    call: impl Fn(u64, u64) -> F + Clone + Send + 'static,
) -> Outcome<(f64, Duration, Duration)>
where
    F: Future<Output = Outcome<()>> + Send,
{
    measure_until(callers, tokio::time::sleep(length), call).await
}

/// The same until something has happened.
pub(crate) async fn measure_until<F>(
    callers: u64,
    until: impl Future,
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
    until.await;
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
