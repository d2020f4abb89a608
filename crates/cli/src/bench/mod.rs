//! `d-engine bench`: measures operations per second, their latency, and their cost.
//!
//! `plan.rs` holds what to measure, `target.rs` the nodes. `caller.rs` sends one operation at a
//! time, `load.rs` runs many callers, and `pace.rs` times operations at a fixed rate. `tally.rs`
//! counts results; `process.rs` and `cost.rs` compute what the nodes used; `report.rs` and
//! `plot.rs` present the results.

mod caller;
mod cost;
mod load;
mod pace;
mod plan;
mod plot;
mod process;
mod report;
mod tally;
mod target;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use tokio::time::{MissedTickBehavior, interval};

use self::cost::Cost;
use self::load::{Done, Load};
use self::plan::Plan;
use self::report::Report;
use self::target::Target;
use crate::args::BenchArgs;
use crate::exit::{Exit, Failure, note, say};
use crate::signals::StopSignals;

/// How long to wait for operations in flight after Ctrl-C.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

pub(crate) async fn bench(args: BenchArgs) -> Result<(), Failure> {
    let plan = Arc::new(Plan::new(&args)?);
    if let Some(file) = &args.plot {
        // Fail before a long measurement, not after it.
        write_plot(file, "")?;
    }
    let mut signals = StopSignals::listen()?;
    let target = tokio::select! {
        target = prepare(&args, &plan) => target?,
        // The nodes that were started are dropped, which kills them.
        signal = signals.next() => return Err(interrupted(signal)),
    };
    let mut report = Report::new(&plan, &target.about);
    if !args.json {
        report.head().iter().for_each(say);
    }
    let measured = measure_all(&plan, &target, &mut report, &mut signals).await;
    if args.json {
        say(report.json()?);
    } else if !report.runs.is_empty() {
        say("");
        report.table().iter().for_each(say);
    }
    if let Some(file) = &args.plot {
        write_plot(file, &plot::svg(&report))?;
    }
    let closed = tokio::select! {
        closed = target.close() => closed,
        _ = signals.next() => Ok(()),
    };
    match measured? {
        Some(signal) => Err(interrupted(signal)),
        None => closed,
    }
}

/// Opens the target and puts the records that the workload reads.
async fn prepare(args: &BenchArgs, plan: &Arc<Plan>) -> Result<Target, Failure> {
    let target = Target::open(args).await?;
    if plan.needs_records()
        && let Err(failure) = target.fill(plan).await
    {
        // The failure of the fill matters more than one of the close.
        target.close().await.ok();
        return Err(failure);
    }
    Ok(target)
}

/// Measures each number of callers in turn; returns the signal that ended the measurement, if any.
async fn measure_all(
    plan: &Arc<Plan>,
    target: &Target,
    report: &mut Report,
    signals: &mut StopSignals,
) -> Result<Option<&'static str>, Failure> {
    for &callers in &plan.callers {
        let connected = target.callers(plan, callers)?;
        // Warm-up and measurement use the same callers, so that their connections are open.
        if !plan.warmup.is_zero() {
            let what = format!("{callers} callers, warm-up");
            let (_, signal) = run(&connected, plan, plan.warmup, &what, signals).await?;
            if signal.is_some() {
                report.interrupted = true;
                return Ok(signal);
            }
        }
        let before = target.look().await;
        let what = format!("{callers} callers");
        let (done, signal) = run(&connected, plan, plan.duration, &what, signals).await?;
        let after = target.look().await;
        let cost = Cost::between(&before, &after, done.tally.succeeded());
        report.add(plan, callers, &done, cost)?;
        if signal.is_some() {
            report.interrupted = true;
            return Ok(signal);
        }
    }
    Ok(None)
}

/// Runs the callers for `length` or until a signal, with progress on a terminal.
async fn run(
    callers: &[Arc<caller::Caller>],
    plan: &Arc<Plan>,
    length: Duration,
    what: &str,
    signals: &mut StopSignals,
) -> Result<(Done, Option<&'static str>), Failure> {
    let bar = ProgressBar::new_spinner();
    let began = Instant::now();
    let mut load = Load::start(callers, plan, length)?;
    let mut looks = interval(Duration::from_secs(1));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let signal = loop {
        tokio::select! {
            finished = load.finish() => {
                finished?;
                break None;
            }
            signal = signals.next() => break Some(signal),
            _ = looks.tick() => {}
        }
        let (succeeded, seconds) = (load.succeeded(), began.elapsed().as_secs_f64());
        let rate = succeeded as f64 / seconds.max(1e-3);
        bar.set_message(format!(
            "{what}: {seconds:.0} of {:.0} s, {rate:.0}/s",
            length.as_secs_f64()
        ));
        bar.tick();
    };
    if signal.is_some() {
        load.stop();
        tokio::select! {
            finished = tokio::time::timeout(LAST_ANSWERS, load.finish()) => {
                if finished.is_err() {
                    note(format_args!(
                        "operations without a response after {LAST_ANSWERS:?} are not counted"
                    ));
                }
            }
            _ = signals.next() => {}
        }
    }
    bar.finish_and_clear();
    Ok((load.done()?, signal))
}

fn write_plot(file: &Path, svg: &str) -> Result<(), Failure> {
    fs::write(file, svg).map_err(|error| {
        Failure::refused(format_args!("--plot {}: it cannot be written: {error}", file.display()))
    })
}

fn interrupted(signal: &str) -> Failure {
    Failure::new(Exit::Interrupted, format_args!("interrupted by {signal}"))
}
