//! The results, as a table or as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::cost::Cost;
use super::load::Done;
use super::plan::Plan;
use super::tally::Errors;
use super::target::About;
use crate::exit::Failure;

/// The durability of acknowledged writes. There is no other mode.
const DURABILITY: &str = "durable";
/// Percentiles in the report.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)];

/// All results.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    version: &'static str,
    /// `processes`, `embedded` or `endpoints`.
    target: &'static str,
    nodes: usize,
    node_versions: Vec<String>,
    durability: &'static str,
    directory: Option<String>,
    file_system: Option<String>,
    workload: &'static str,
    consistency: Option<&'static str>,
    key_bytes: usize,
    value_bytes: usize,
    keys: u32,
    /// Intended operations per second; `null` for a closed loop.
    rate: Option<u32>,
    pub(super) interrupted: bool,
    pub(super) runs: Vec<RunReport>,
}

/// The results with one number of callers.
#[derive(Serialize, Debug)]
pub(super) struct RunReport {
    pub(super) callers: u16,
    /// Connections to each node; `null` for embedded nodes.
    connections: Option<u16>,
    seconds: f64,
    /// Operations that succeeded or failed.
    operations: u64,
    succeeded: u64,
    errors: Errors,
    first_error: Option<String>,
    /// Successful operations per second.
    per_second: f64,
    latency_us: Latency,
    by_operation: BTreeMap<&'static str, KindReport>,
    fixed_rate: Option<FixedRate>,
    cost_per_operation: Cost,
    #[serde(skip)]
    pub(super) curve: Curve,
}

#[derive(Serialize, Debug)]
struct KindReport {
    succeeded: u64,
    errors: Errors,
    latency_us: Latency,
}

/// Latencies in microseconds; all 0 if no operation succeeded.
#[derive(Clone, Serialize, Debug)]
struct Latency {
    min: f64,
    mean: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

/// How closely a fixed rate was kept.
#[derive(Serialize, Debug)]
struct FixedRate {
    asked_per_second: u32,
    /// The longest delay of an operation after its intended time.
    behind_max_ms: f64,
    /// Operations that should have begun before the end and did not; they have no latency.
    never_begun: u64,
}

/// The data of the plot.
#[derive(Clone, Default, Debug)]
pub(super) struct Curve {
    /// The fraction of operations, from 0 to 1, that took at most this many milliseconds.
    pub(super) latency: Vec<(f64, f64)>,
    /// Seconds since the start, and operations per second.
    pub(super) throughput: Vec<(f64, f64)>,
}

impl Report {
    pub(super) fn new(plan: &Plan, about: &About) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            target: about.kind,
            nodes: about.nodes,
            node_versions: about.versions.clone(),
            durability: DURABILITY,
            directory: about.directory.clone(),
            file_system: about.file_system.clone(),
            workload: plan.workload_word(),
            consistency: plan.consistency_word,
            key_bytes: plan.key_bytes,
            value_bytes: plan.value.len(),
            keys: plan.keys,
            rate: plan.rate,
            interrupted: false,
            runs: Vec::new(),
        }
    }

    pub(super) fn add(
        &mut self,
        plan: &Plan,
        callers: u16,
        done: &Done,
        cost: Cost,
    ) -> Result<(), Failure> {
        let tally = &done.tally;
        let (succeeded, errors, seconds) =
            (tally.succeeded(), tally.errors(), done.elapsed.as_secs_f64());
        let all = tally.latency()?;
        let by_operation = tally.kinds.iter().map(|kind| {
            let report = KindReport {
                succeeded: kind.latency.len(),
                errors: kind.errors,
                latency_us: Latency::of(&kind.latency),
            };
            (kind.operation.word(), report)
        });
        self.runs.push(RunReport {
            callers,
            connections: (self.target != "embedded").then(|| plan.connections(callers)),
            seconds,
            operations: succeeded + errors.sum(),
            succeeded,
            errors,
            first_error: tally.first_error.clone(),
            per_second: succeeded as f64 / seconds.max(1e-6),
            latency_us: Latency::of(&all),
            by_operation: by_operation.collect(),
            fixed_rate: plan.rate.map(|asked_per_second| FixedRate {
                asked_per_second,
                behind_max_ms: tally.behind_max.as_secs_f64() * 1e3,
                never_begun: done.never_begun,
            }),
            cost_per_operation: cost,
            curve: Curve::of(&all, &tally.slots, tally.slot, done.elapsed),
        });
        Ok(())
    }

    pub(super) fn json(&self) -> Result<String, Failure> {
        serde_json::to_string_pretty(self)
            .map_err(|error| Failure::failed(format_args!("the JSON cannot be written: {error}")))
    }

    /// Describes the measurement in one line; also the title of the plot.
    pub(super) fn title(&self) -> String {
        let consistency = self.consistency.map(|word| format!(" ({word})")).unwrap_or_default();
        let pace = match self.rate {
            Some(rate) => format!("{rate} operations/s, fixed"),
            None => "closed loop".to_owned(),
        };
        format!(
            "d-engine bench {}: {}{consistency}, {}-byte keys, {}-byte values, {} keys, {pace}",
            self.version, self.workload, self.key_bytes, self.value_bytes, self.keys
        )
    }

    /// Describes the target; known before the first run.
    pub(super) fn head(&self) -> Vec<String> {
        let nodes = match self.target {
            "processes" => format!("{} processes on this machine", self.nodes),
            "embedded" => {
                format!(
                    "{} nodes embedded in this process, called directly, without a network",
                    self.nodes
                )
            }
            _ => {
                format!("{} existing nodes, version {}", self.nodes, self.node_versions.join(", "))
            }
        };
        let mut lines = vec![
            self.title(),
            format!(
                "  nodes     {nodes}; {DURABILITY}: a majority syncs a write before it is \
                 acknowledged"
            ),
        ];
        if let Some(directory) = &self.directory {
            let kind = self.file_system.as_deref().unwrap_or("file system n/a");
            lines.push(format!("  data      {directory} ({kind}), removed at the end"));
            if kind == "tmpfs" {
                lines.push(
                    "            tmpfs is memory, where syncs cost nothing; name a disk with --dir"
                        .to_owned(),
                );
            }
        }
        lines
    }

    /// Formats the table.
    pub(super) fn table(&self) -> Vec<String> {
        let mut rows = vec![words(&[
            "CALLERS",
            "OPERATION",
            "PER SECOND",
            "P50 ms",
            "P90 ms",
            "P99 ms",
            "P99.9 ms",
            "MAX ms",
            "FAILED",
        ])];
        let mut costs = vec![words(&[
            "CALLERS",
            "SYNCS",
            "LOG BYTES",
            "DISK BYTES",
            "CPU µs",
            "CALLER CPU µs",
            "SWITCHES",
            "HOPS",
            "PEAK MiB",
        ])];
        for run in &self.runs {
            let several = run.by_operation.len() > 1;
            let failed = run.errors.sum();
            let all = if several { "all" } else { self.workload };
            rows.push(row(run.callers, all, run.per_second, &run.latency_us, failed));
            for (operation, kind) in run.by_operation.iter().filter(|_| several) {
                let per_second = kind.succeeded as f64 / run.seconds.max(1e-6);
                rows.push(row(
                    run.callers,
                    operation,
                    per_second,
                    &kind.latency_us,
                    kind.errors.sum(),
                ));
            }
            costs.push(cost_row(run.callers, &run.cost_per_operation));
        }
        let mut lines = aligned(&rows);
        lines.push(String::new());
        lines.push("Per successful operation, all nodes together:".to_owned());
        lines.extend(aligned(&costs));
        for run in &self.runs {
            lines.extend(run.remarks());
        }
        lines
    }
}

impl RunReport {
    /// Returns remarks on failures and on the fixed rate.
    fn remarks(&self) -> Vec<String> {
        let mut remarks = Vec::new();
        let errors = &self.errors;
        if errors.sum() > 0 {
            remarks.push(format!(
                "{} callers: {} busy, {} without a leader, {} of unknown outcome, {} past the \
                 deadline, {} others; first: {}",
                self.callers,
                errors.busy,
                errors.not_leader,
                errors.unknown,
                errors.deadline,
                errors.other,
                self.first_error.as_deref().unwrap_or_default()
            ));
        }
        if let Some(rate) = &self.fixed_rate {
            remarks.push(format!(
                "{} callers: latency counts from the intended time; at most {:.1} ms late; {} \
                 operations never begun",
                self.callers, rate.behind_max_ms, rate.never_begun
            ));
        }
        remarks
    }
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        let us = |nanos: u64| nanos as f64 / 1e3;
        let [p50, p90, p99, p999] =
            QUANTILES.map(|(_, quantile)| us(histogram.value_at_quantile(quantile)));
        let min = if histogram.is_empty() { 0.0 } else { us(histogram.min()) };
        Self { min, mean: histogram.mean() / 1e3, p50, p90, p99, p999, max: us(histogram.max()) }
    }
}

impl Curve {
    fn of(latency: &Histogram<u64>, slots: &[u64], slot: Duration, elapsed: Duration) -> Self {
        let mut curve = Self::default();
        // From 0 in steps that halve the remaining fraction, ten steps per halving, as far as there
        // are samples.
        for step in 0..300 {
            let rest = 0.5_f64.powf(f64::from(step) / 10.0);
            if latency.is_empty() || rest * (latency.len() as f64) < 1.0 {
                break;
            }
            curve.latency.push((1.0 - rest, latency.value_at_quantile(1.0 - rest) as f64 / 1e6));
        }
        let width = slot.as_secs_f64();
        // A last slot that is not full would look like a stall.
        let whole = slots.iter().zip(1..).take_while(|(_, number)| slot * *number <= elapsed);
        curve.throughput = whole
            .map(|(count, number)| (f64::from(number) * width, *count as f64 / width))
            .collect();
        curve
    }
}

fn row(
    callers: u16,
    operation: &str,
    per_second: f64,
    latency: &Latency,
    failed: u64,
) -> Vec<String> {
    let ms = |us: f64| format!("{:.3}", us / 1e3);
    vec![
        callers.to_string(),
        operation.to_owned(),
        format!("{per_second:.0}"),
        ms(latency.p50),
        ms(latency.p90),
        ms(latency.p99),
        ms(latency.p999),
        ms(latency.max),
        failed.to_string(),
    ]
}

fn cost_row(callers: u16, cost: &Cost) -> Vec<String> {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "n/a".to_owned(), |value| format!("{value:.digits$}"))
    };
    let peaks = cost.peak_memory_bytes.as_ref().map(|peaks| {
        let mib: Vec<String> = peaks.iter().map(|bytes| format!("{}", bytes >> 20)).collect();
        mib.join(" ")
    });
    vec![
        callers.to_string(),
        number(cost.syncs, 3),
        number(cost.log_bytes, 0),
        number(cost.disk_bytes, 0),
        number(cost.cpu_seconds.map(|seconds| seconds * 1e6), 1),
        number(cost.caller_cpu_seconds.map(|seconds| seconds * 1e6), 1),
        number(cost.context_switches, 3),
        number(cost.thread_hops, 3),
        peaks.unwrap_or_else(|| "n/a".to_owned()),
    ]
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// Aligns the columns to the right.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let length = |cell: &String| cell.chars().count();
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(length).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:>width$}")).collect();
        cells.join("  ")
    };
    rows.iter().map(line).collect()
}
