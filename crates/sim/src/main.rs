//! `d-engine-sim`: runs one seed or a series of seeds and prints what they found.

mod progress;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use d_engine_locks::Unpoisoned;
use d_engine_sim::{
    Disturbance, Fault, Numbers, Reduction, Report, Rule, RunOptions, Shrunk, Sometimes, Violation,
    profile_of, run, run_reduced, shrink,
};

use crate::progress::Progress;

/// The lowest acceptable speed, in simulated seconds per second and core. Below this, the seeds
/// that every change must pass take too long.
const SPEED_MIN: f64 = 60.0;

/// Runs simulated clusters under faults and checks every rule after every step.
///
/// A failing seed prints the rule it broke and the command that repeats the run with a readable
/// trace. It is then shrunk: faults, kinds of faults and client calls are left out and the run is
/// cut, as long as the same rule breaks; the command that repeats what is left is printed too.
/// Exit code 0: nothing found; 1: a finding, or insufficient coverage; 2: wrong arguments.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Run this one seed and print its trace.
    #[arg(long, conflicts_with_all = ["from", "count", "replay"])]
    seed: Option<u64>,
    #[command(flatten)]
    part: Part,
    /// First seed of a series.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Number of seeds in the series.
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// Run the seeds in this file instead of a series. One seed per line; `#` begins a comment.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Simulated seconds of faults in each run.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Append the failing seeds to this file, each with its finding as a comment.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Stop at the first finding.
    #[arg(long)]
    fail_fast: bool,
    /// Change the members of the cluster in every run: nodes join, leave and are replaced. Without
    /// this they change in half of the runs.
    #[arg(long)]
    members: bool,
    /// Check every rule, including those that the engine is known to break.
    #[arg(long)]
    all_rules: bool,
    /// Treat the first visit of this rare state as a broken rule, to get a small run that reaches
    /// it. The summary of a series prints the names of the states.
    #[arg(long, value_name = "STATE", value_parser = rare_state)]
    fail_on: Option<Sometimes>,
    /// Seconds of real time that the program may spend on shrinking failing seeds; 0 for none.
    /// Shrinking one seed ends after 200 runs in any case.
    #[arg(long, default_value_t = 60)]
    shrink_seconds: u64,
    /// Number of trace lines to print, counted from the end of the trace.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Number of threads. Each thread runs whole seeds.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Report to standard error every ten seconds how far a series is, also where that is no
    /// terminal.
    #[arg(long)]
    progress: bool,
    /// Fail unless every kind of fault occurred in at least this percentage of the seeds, every
    /// rare state was reached in its required share of the seeds, and the simulation was fast
    /// enough.
    #[arg(long)]
    coverage: Option<u64>,
}

/// Which part of a seed's run to run. The program prints these options for a run that it has
/// shrunk.
#[derive(clap::Args, Debug)]
struct Part {
    /// End faults and calls at this simulated time, in seconds, as the trace shows it.
    #[arg(long, value_name = "SECONDS", requires = "seed", value_parser = Reduction::parse_until)]
    until: Option<u64>,
    /// Of the disturbances that are not numbered, let only these kinds happen, or none: the kinds
    /// of faults that a run has too much of to number them (such as MessageDropped), the rush of
    /// clients to two leaders (Rush), and the trial after the recovery (Trial).
    #[arg(long, value_name = "NAMES", requires = "seed", value_parser = kinds)]
    only_kinds: Option<Kinds>,
    /// Let only these of the seed's numbered faults happen: for example 3,7-12, or none.
    #[arg(long, value_name = "NUMBERS", requires = "seed")]
    only_faults: Option<Numbers>,
    /// Make only these of the seed's client calls: for example 3,7-12, or none.
    #[arg(long, value_name = "NUMBERS", requires = "seed")]
    only_calls: Option<Numbers>,
}

impl Part {
    fn reduction(&self) -> Reduction {
        Reduction {
            faults: self.only_faults.clone(),
            calls: self.only_calls.clone(),
            kinds: self.only_kinds.clone().map(|Kinds(kinds)| kinds),
            until: self.until,
        }
    }
}

/// The argument of `--only-kinds`.
#[derive(Clone, Debug)]
struct Kinds(BTreeSet<Disturbance>);

fn kinds(names: &str) -> Result<Kinds, String> {
    Reduction::parse_kinds(names).map(Kinds)
}

fn rare_state(name: &str) -> Result<Sometimes, String> {
    let all = Sometimes::SHARES.iter().chain(&Sometimes::SHARES_WITH_CHANGES);
    let mut states = all.map(|(state, _)| *state);
    states
        .find(|state| format!("{state:?}") == name)
        .ok_or_else(|| "expected the name of a rare state, such as SnapshotInstalled".to_owned())
}

impl Arguments {
    fn options(&self, trace: bool) -> RunOptions {
        RunOptions {
            seconds: self.seconds,
            trials: true,
            all_rules: self.all_rules,
            members: self.members,
            trace,
            fail_on: self.fail_on,
        }
    }

    /// The command that runs this part of a seed's run.
    fn command(&self, seed: u64, reduction: &Reduction) -> String {
        let mut command = format!("cargo run --release -p d-engine-sim -- --seed {seed}");
        if self.seconds != 30 {
            command.push_str(&format!(" --seconds {}", self.seconds));
        }
        if self.members {
            command.push_str(" --members");
        }
        if self.all_rules {
            command.push_str(" --all-rules");
        }
        if let Some(state) = self.fail_on {
            command.push_str(&format!(" --fail-on {state:?}"));
        }
        if !reduction.is_whole() {
            command.push_str(&format!(" {reduction}"));
        }
        command
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic inside a run is reported as a finding with its message. The default hook would flood
    // the summary.
    std::panic::set_hook(Box::new(|_| {}));
    if let Some(seed) = arguments.seed {
        return one(seed, &arguments);
    }
    let seeds = match &arguments.replay {
        Some(path) => match read_seeds(path) {
            Ok(seeds) => seeds,
            Err(error) => {
                eprintln!("error: {}: {error}", path.display());
                return ExitCode::from(2);
            }
        },
        None => (arguments.from..arguments.from.saturating_add(arguments.count)).collect(),
    };
    many(&seeds, &arguments)
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let reduction = arguments.part.reduction();
    let options = arguments.options(true);
    let report = match reduction.is_whole() {
        true => run(seed, options),
        false => run_reduced(seed, options, &reduction),
    };
    println!("{:#?}", profile_of(seed, options));
    let skipped = report.trace.len().saturating_sub(arguments.lines);
    if skipped > 0 {
        println!("({skipped} earlier lines omitted; --lines {} prints all)", report.trace.len());
    }
    for line in report.trace.iter().skip(skipped) {
        println!("{line}");
    }
    print_report(&report);
    for fault in &report.faults {
        println!("  {fault}");
    }
    if report.finding.is_none() {
        return ExitCode::SUCCESS;
    }
    if reduction.is_whole() {
        print_shrunk(seed, arguments, Duration::from_secs(arguments.shrink_seconds));
    }
    ExitCode::FAILURE
}

/// Shrinks a failing run for at most this time, and prints what is left of it.
fn print_shrunk(seed: u64, arguments: &Arguments, time: Duration) {
    println!("  repeat: {}", arguments.command(seed, &Reduction::default()));
    let started = Instant::now();
    let mut printed = started;
    let mut goes_on = |best: &Shrunk| {
        if printed.elapsed() >= Duration::from_secs(2) {
            printed = Instant::now();
            eprintln!("shrinking seed {seed}: {}", sizes(best));
        }
        started.elapsed() < time
    };
    if time.is_zero() {
        return;
    }
    let Some(shrunk) = shrink(seed, arguments.options(false), &mut goes_on) else { return };
    if shrunk.reduction.is_whole() {
        println!("  not shrunk: {}", sizes(&shrunk));
        return;
    }
    println!("  shrunk: {}", sizes(&shrunk));
    for fault in &shrunk.report.faults {
        println!("    {fault}");
    }
    if let Some(finding) = &shrunk.report.finding {
        println!("    FOUND at {} ms: {}", finding.at / 1_000_000, finding.violation);
    }
    println!("  repeat the shrunk run: {}", arguments.command(seed, &shrunk.reduction));
}

fn sizes(shrunk: &Shrunk) -> String {
    let ((faults, of_faults), (calls, of_calls)) = (shrunk.faults, shrunk.calls);
    format!(
        "{} runs, {faults} of {of_faults} faults, {calls} of {of_calls} calls, {} events",
        shrunk.runs, shrunk.report.events
    )
}

fn print_report(report: &Report) {
    let (succeeded, refused, unknown) = report.operations;
    println!(
        "seed {}: {} events, {} elections, {} committed, operations: {succeeded} answered, \
         {refused} refused, {unknown} of unknown outcome, trace {:016x}",
        report.seed, report.events, report.elections, report.committed, report.trace_hash
    );
    println!("  {}", report.counts);
    match &report.finding {
        Some(finding) => {
            println!("  FOUND at {} ms: {}", finding.at / 1_000_000, finding.violation)
        }
        None => println!("  nothing found"),
    }
}

fn read_seeds(path: &Path) -> Result<Vec<u64>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut seeds = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let seed = line.split('#').next().unwrap_or("").trim();
        if !seed.is_empty() {
            seeds.push(
                seed.parse()
                    .map_err(|_| format!("line {}: {seed:?} is not a number", number + 1))?,
            );
        }
    }
    Ok(seeds)
}

#[derive(Default)]
struct Summary {
    runs: u64,
    /// Simulated seconds, not counting the second runs of the determinism check.
    simulated: u64,
    committed: u64,
    answered: u64,
    unknown: u64,
    elections: u64,
    faults: BTreeMap<Fault, (u64, u64)>,
    states: BTreeMap<Sometimes, u64>,
    findings: Vec<Report>,
}

impl Summary {
    fn add(&mut self, report: Report) {
        self.runs += 1;
        self.simulated += report.simulated_seconds;
        self.committed += report.committed;
        self.answered += report.operations.0;
        self.unknown += report.operations.2;
        self.elections += report.elections;
        for fault in Fault::ALL {
            let count = report.counts.of(fault);
            let (seeds, total) = self.faults.entry(fault).or_default();
            *seeds += u64::from(count > 0);
            *total += count;
        }
        for (state, _) in report.counts.states() {
            *self.states.entry(state).or_default() += 1;
        }
        if report.finding.is_some() {
            self.findings.push(report);
        }
    }
}

impl Summary {
    fn progress(&self, threads: u64, seconds: f64) -> Progress {
        let failed = self.findings.iter().map(|report| report.seed).collect();
        Progress { runs: self.runs, failed, speed: self.speed(threads, seconds) }
    }

    /// Simulated seconds per second and core.
    fn speed(&self, threads: u64, seconds: f64) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cores = usize::try_from(threads).unwrap_or(cores).clamp(1, cores);
        // The conversion is exact for every realistic number of simulated seconds.
        self.simulated as f64 / (seconds * cores as f64).max(f64::EPSILON)
    }
}

fn many(seeds: &[u64], arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    let options = arguments.options(false);
    std::thread::scope(|scope| {
        let (runs, ended) = std::sync::mpsc::channel();
        for _ in 0..arguments.threads.max(1) {
            let (runs, next, summary) = (runs.clone(), &next, &summary);
            scope.spawn(move || {
                work(seeds, next, summary, options, arguments.fail_fast);
                drop(runs);
            });
        }
        drop(runs);
        if progress::is_wanted(arguments.progress) {
            progress::report(seeds.len(), &ended, |seconds| {
                let summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                summary.progress(arguments.threads, seconds)
            });
        }
    });
    let summary = summary.into_inner().unpoisoned();
    let seconds = started.elapsed().as_secs_f64();
    print_summary(&summary, arguments, seconds);
    if let Some(path) = &arguments.keep
        && let Err(error) = keep(path, &summary.findings)
    {
        eprintln!("error: could not append the failing seeds to {}: {error}", path.display());
    }
    let speed = summary.speed(arguments.threads, seconds);
    let covered = arguments
        .coverage
        .is_none_or(|percent| is_covered(&summary, percent, speed, arguments.members));
    if summary.findings.is_empty() && covered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(
    seeds: &[u64],
    next: &AtomicU64,
    summary: &Mutex<Summary>,
    options: RunOptions,
    fail_fast: bool,
) {
    let add = |report: Report| {
        let mut summary = summary.lock().unpoisoned();
        summary.add(report);
        fail_fast && !summary.findings.is_empty()
    };
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some(seed) = usize::try_from(place).ok().and_then(|place| seeds.get(place)) else {
            return;
        };
        let mut report = run(*seed, options);
        // A run must be a function of its seed: otherwise a finding could not be repeated.
        if seed % 50 == 0 && report.finding.is_none() {
            let again = run(*seed, options);
            if again.trace_hash != report.trace_hash {
                report.finding = Some(d_engine_sim::Finding {
                    at: 0,
                    violation: Violation {
                        rule: Rule::Determinism,
                        node: None,
                        what: "two runs of the seed produced different traces".to_owned(),
                    },
                });
            }
        }
        if add(report) {
            next.store(u64::MAX / 2, Ordering::Relaxed);
        }
    }
}

fn print_summary(summary: &Summary, arguments: &Arguments, seconds: f64) {
    println!(
        "{} seeds of {} simulated seconds in {seconds:.1} s: {} entries committed, \
         {} operations answered, {} of unknown outcome, {} elections",
        summary.runs,
        arguments.seconds,
        summary.committed,
        summary.answered,
        summary.unknown,
        summary.elections
    );
    println!(
        "{:.0} simulated seconds per second and core",
        summary.speed(arguments.threads, seconds)
    );
    println!("{:<22}{:>8}{:>12}", "fault", "seeds", "times");
    for (fault, (seeds, total)) in &summary.faults {
        println!("{:<22}{seeds:>8}{total:>12}", format!("{fault:?}"));
    }
    println!("{:<28}{:>8}", "rare state", "seeds");
    for (state, seeds) in &summary.states {
        println!("{:<28}{seeds:>8}", format!("{state:?}"));
    }
    let until = Instant::now() + Duration::from_secs(arguments.shrink_seconds);
    for report in summary.findings.iter().take(20) {
        print_report(report);
        print_shrunk(report.seed, arguments, until.saturating_duration_since(Instant::now()));
    }
    println!("{} findings in {} seeds", summary.findings.len(), summary.runs);
}

fn is_covered(summary: &Summary, percent: u64, speed: f64, members: bool) -> bool {
    let mut covered = true;
    if speed < SPEED_MIN {
        println!(
            "{speed:.0} simulated seconds per second and core: below the required {SPEED_MIN:.0}"
        );
        covered = false;
    }
    // Some faults are off where the members change.
    let faults = summary.faults.iter().filter(|_| !members);
    for (fault, (seeds, _)) in faults {
        if seeds * 100 < summary.runs * percent {
            println!(
                "{fault:?} occurred in {seeds} of {} seeds: below the required {percent} %",
                summary.runs
            );
            covered = false;
        }
    }
    let shares = match members {
        true => &Sometimes::SHARES_WITH_CHANGES[..],
        false => &Sometimes::SHARES[..],
    };
    for (state, thousandths) in shares {
        let seeds = summary.states.get(state).copied().unwrap_or(0);
        if seeds * 1_000 < summary.runs * thousandths {
            println!(
                "{state:?} was reached in {seeds} of {} seeds: below the required {}.{} %",
                summary.runs,
                thousandths / 10,
                thousandths % 10
            );
            covered = false;
        }
    }
    covered
}

fn keep(path: &Path, findings: &[Report]) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    for report in findings {
        let what = report
            .finding
            .as_ref()
            .map(|finding| finding.violation.to_string().lines().next().unwrap_or("").to_owned());
        writeln!(file, "{} # {}", report.seed, what.unwrap_or_default())?;
    }
    Ok(())
}
