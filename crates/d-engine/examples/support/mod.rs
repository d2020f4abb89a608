//! What the measuring programs share: nodes in one process on free ports, callers, percentiles.
#![allow(dead_code, reason = "each program uses its part")]

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use d_engine::EmbeddedEngine;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

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

/// Makes calls from `callers` tasks, each one call at a time, for `length`. Returns the calls per
/// second, the median and the 99th percentile of the latency.
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

/// The same until `until` completes.
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
