//! `d-engine-sim`: runs seeds, one or many, and says what they found.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use d_engine_sim::{Fault, Profile, Report, RunOptions, Sometimes, run};

/// Fewer simulated seconds per second and core than this are too few for the seeds that a change must pass.
const SPEED_MIN: f64 = 60.0;

/// Runs simulated clusters under faults and checks every promise at every step.
///
/// A failing seed prints what it broke and the command that repeats it with a readable trace. Exit
/// code 0: nothing found; 1: a finding; 2: wrong arguments.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// Run this one seed and print its trace.
    #[arg(long, conflicts_with_all = ["from", "count", "replay"])]
    seed: Option<u64>,
    /// First seed of a series.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 200)]
    count: u64,
    /// Run the seeds in this file (one a line, `#` begins a comment) instead of a series.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Simulated seconds of faults in each run.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Append failing seeds to this file.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Stop at the first finding.
    #[arg(long)]
    fail_fast: bool,
    /// Judge every rule, also those that the product is known not to keep yet.
    #[arg(long)]
    all_rules: bool,
    /// How many lines of a trace to print.
    #[arg(long, default_value_t = 60)]
    lines: usize,
    /// Threads; each runs whole seeds.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Fail unless every kind of fault was done in at least this percentage of the seeds, every rare state
    /// reached in its share of them, and the runs were fast enough.
    #[arg(long)]
    coverage: Option<u64>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // A panic is a finding with a message; its usual print-out would drown the summary.
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
    let options =
        RunOptions { seconds: arguments.seconds, trials: true, all_rules: arguments.all_rules, trace: true };
    let report = run(seed, options);
    println!("{:#?}", Profile::of(seed));
    let skipped = report.trace.len().saturating_sub(arguments.lines);
    if skipped > 0 {
        println!("({skipped} earlier lines; --lines {} shows all)", report.trace.len());
    }
    for line in report.trace.iter().skip(skipped) {
        println!("{line}");
    }
    print_report(&report);
    if report.finding.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn print_report(report: &Report) {
    let (succeeded, refused, unknown) = report.operations;
    println!(
        "seed {}: {} events, {} elections, {} committed, operations {succeeded} answered {refused} refused {unknown} \
         unknown, trace {:016x}",
        report.seed, report.events, report.elections, report.committed, report.trace_hash
    );
    println!("  {}", report.counts);
    match &report.finding {
        Some(finding) => println!("  FOUND at {} ms: {}", finding.at / 1_000_000, finding.what),
        None => println!("  nothing found"),
    }
}

fn read_seeds(path: &Path) -> Result<Vec<u64>, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut seeds = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let seed = line.split('#').next().unwrap_or("").trim();
        if !seed.is_empty() {
            seeds.push(seed.parse().map_err(|_| format!("line {}: {seed:?} is no seed", number + 1))?);
        }
    }
    Ok(seeds)
}

#[derive(Default)]
struct Summary {
    runs: u64,
    /// Simulated seconds, those of repeated runs included.
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
    /// Simulated seconds per second and core.
    fn speed(&self, threads: u64, seconds: f64) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let cores = usize::try_from(threads).unwrap_or(cores).clamp(1, cores);
        // Exact enough: fewer simulated seconds than a float can count.
        self.simulated as f64 / (seconds * cores as f64).max(f64::EPSILON)
    }
}

fn many(seeds: &[u64], arguments: &Arguments) -> ExitCode {
    let started = Instant::now();
    let next = AtomicU64::new(0);
    let summary = Mutex::new(Summary::default());
    let options =
        RunOptions { seconds: arguments.seconds, trials: true, all_rules: arguments.all_rules, trace: false };
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            scope.spawn(|| work(seeds, &next, &summary, options, arguments.fail_fast));
        }
    });
    let summary = summary.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    print_summary(&summary, arguments, started.elapsed().as_secs_f64());
    if let Some(path) = &arguments.keep
        && let Err(error) = keep(path, &summary.findings)
    {
        eprintln!("error: failing seeds could not be kept in {}: {error}", path.display());
    }
    let speed = summary.speed(arguments.threads, started.elapsed().as_secs_f64());
    let covered = arguments.coverage.is_none_or(|percent| is_covered(&summary, percent, speed));
    if summary.findings.is_empty() && covered { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work(seeds: &[u64], next: &AtomicU64, summary: &Mutex<Summary>, options: RunOptions, fail_fast: bool) {
    let add = |report: Report| {
        let mut summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        summary.add(report);
        fail_fast && !summary.findings.is_empty()
    };
    loop {
        let place = next.fetch_add(1, Ordering::Relaxed);
        let Some(seed) = usize::try_from(place).ok().and_then(|place| seeds.get(place)) else { return };
        let mut report = run(*seed, options);
        // A run must be a function of its seed, or a finding could not be repeated.
        if seed % 50 == 0 && report.finding.is_none() {
            let again = run(*seed, options);
            if again.trace_hash != report.trace_hash {
                report.finding = Some(d_engine_sim::Finding {
                    at: 0,
                    what: "determinism: two runs of the seed differ".to_owned(),
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
        "{} seeds of {} simulated seconds in {seconds:.1} s: {} entries committed, {} operations answered, {} of \
         unknown outcome, {} elections",
        summary.runs,
        arguments.seconds,
        summary.committed,
        summary.answered,
        summary.unknown,
        summary.elections
    );
    println!("{:.0} simulated seconds per second and core", summary.speed(arguments.threads, seconds));
    println!("{:<22}{:>8}{:>12}", "fault", "seeds", "times");
    for (fault, (seeds, total)) in &summary.faults {
        println!("{:<22}{seeds:>8}{total:>12}", format!("{fault:?}"));
    }
    println!("{:<28}{:>8}", "rare state", "seeds");
    for (state, seeds) in &summary.states {
        println!("{:<28}{seeds:>8}", format!("{state:?}"));
    }
    for report in summary.findings.iter().take(20) {
        print_report(report);
        println!("  repeat: cargo run --release -p d-engine-sim -- --seed {}", report.seed);
    }
    println!("{} findings in {} seeds", summary.findings.len(), summary.runs);
}

fn is_covered(summary: &Summary, percent: u64, speed: f64) -> bool {
    let mut covered = true;
    if speed < SPEED_MIN {
        println!("{speed:.0} simulated seconds per second and core: less than {SPEED_MIN:.0}");
        covered = false;
    }
    for (fault, (seeds, _)) in &summary.faults {
        if seeds * 100 < summary.runs * percent {
            println!("{fault:?} was done in {seeds} of {} seeds: less than {percent} %", summary.runs);
            covered = false;
        }
    }
    for (state, thousandths) in Sometimes::SHARES {
        let seeds = summary.states.get(&state).copied().unwrap_or(0);
        if seeds * 1_000 < summary.runs * thousandths {
            println!(
                "{state:?} was reached in {seeds} of {} seeds: less than {}.{} %",
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
        let what =
            report.finding.as_ref().map(|finding| finding.what.lines().next().unwrap_or("").to_owned());
        writeln!(file, "{} # {}", report.seed, what.unwrap_or_default())?;
    }
    Ok(())
}
