//! `bench`, from outside: every workload on real processes, what it prints, and which files and
//! processes it leaves.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use serde_json::Value;
use support::{Dev, Process, Strays, d_engine, processes_of, run};

/// Runs a short bench in a directory of its own; returns its JSON, and checks that no process and
/// no file is left.
fn bench(args: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let _strays = Strays(path.to_owned());
    let short = ["--json", "--warmup", "0s", "--keys", "200", "--dir", path];
    let ended = Process::start(d_engine().arg("bench").args(args).args(short)).finish();
    assert_eq!(ended.code, Some(0), "{args:?}: {}{}", ended.out, ended.err);
    assert_eq!(processes_of(path), Vec::<u32>::new(), "a node is left");
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "files are left");
    json(&ended.out)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is not a count"))
}

/// The parts add up to the total, latencies are in order, and nothing failed.
fn check(run: &Value) {
    let operations = number(&run["operations"]);
    let errors: u64 = run["errors"].as_object().unwrap().values().map(number).sum();
    assert_eq!((errors, operations), (0, number(&run["succeeded"])), "{run}");
    let kinds = run["by_operation"].as_object().unwrap();
    assert_eq!(
        kinds.values().map(|kind| number(&kind["succeeded"])).sum::<u64>(),
        operations,
        "{run}"
    );
    assert!(operations > 0, "{run}");
    let latency = &run["latency_us"];
    let in_order =
        ["min", "p50", "p90", "p99", "p999", "max"].map(|name| latency[name].as_f64().unwrap());
    assert!(in_order.is_sorted() && in_order[0] > 0.0, "{latency}");
    let (seconds, rate) = (run["seconds"].as_f64().unwrap(), run["per_second"].as_f64().unwrap());
    assert!((seconds * rate / operations as f64 - 1.0).abs() < 1e-6, "{run}");
}

#[test]
fn puts_cost_syncs_at_a_majority_and_each_number_of_callers_is_told() {
    let report = bench(&["put", "--callers", "1,16", "--duration", "1s", "--value-bytes", "100"]);
    assert_eq!(
        (report["nodes"].as_u64(), report["durability"].as_str()),
        (Some(3), Some("durable"))
    );
    assert_eq!(
        (report["target"].as_str(), report["value_bytes"].as_u64()),
        (Some("processes"), Some(100))
    );
    let runs = report["runs"].as_array().unwrap();
    assert_eq!(runs.iter().map(|run| number(&run["callers"])).collect::<Vec<_>>(), [1, 16]);
    runs.iter().for_each(check);
    let cost = &runs[0]["cost_per_operation"];
    // A single caller shares no sync with another: the leader's and a follower's at least.
    assert!(
        cost["syncs"].as_f64().unwrap() >= 2.0 && cost["log_bytes"].as_f64().unwrap() > 200.0,
        "{cost}"
    );
    if cfg!(target_os = "linux") {
        assert!(report["file_system"].is_string());
        assert!(cost["cpu_seconds"].as_f64().unwrap() > 0.0, "{cost}");
        assert!(cost["thread_hops"].as_f64().unwrap() > 1.0, "{cost}");
        assert_eq!(cost["peak_memory_bytes"].as_array().unwrap().len(), 3);
    }
}

#[test]
fn reads_of_every_kind_find_what_was_put_and_cost_no_sync() {
    for args in [
        &["get", "--consistency", "linearizable"][..],
        &["get", "--consistency", "lease"],
        &["get", "--consistency", "eventual"],
        &["scan", "--page", "20"],
    ] {
        let report = bench(&[args, &["--callers", "8", "--duration", "500ms"]].concat());
        check(&report["runs"][0]);
        let syncs = report["runs"][0]["cost_per_operation"]["syncs"].as_f64().unwrap();
        assert!(syncs < 0.5, "{args:?}: {syncs} syncs per read");
    }
}

#[test]
fn a_mixed_workload_tells_its_parts_apart() {
    let report = bench(&["mixed", "--reads", "80", "--callers", "8", "--duration", "1s"]);
    let run = &report["runs"][0];
    check(run);
    let of = |kind: &str| number(&run["by_operation"][kind]["succeeded"]) as f64;
    let share = of("get") / (of("get") + of("put"));
    assert!((0.7..0.9).contains(&share), "{share}");
}

#[test]
fn embedded_nodes_are_measured_in_the_process_itself() {
    let report = bench(&["propose", "--embedded", "--callers", "8", "--duration", "1s"]);
    assert_eq!(report["target"], "embedded");
    check(&report["runs"][0]);
    assert!(report["runs"][0]["cost_per_operation"]["syncs"].as_f64().unwrap() > 0.1);
    assert!(report["runs"][0]["connections"].is_null());
}

#[test]
fn at_a_fixed_rate_no_more_begins_than_is_asked_for() {
    let report = bench(&["put", "--rate", "200", "--callers", "16", "--duration", "1s"]);
    let run = &report["runs"][0];
    check(run);
    let rate = &run["fixed_rate"];
    assert_eq!(number(&run["operations"]) + number(&rate["never_begun"]), 200, "{run}");
    assert!(rate["behind_max_ms"].as_f64().unwrap() >= 0.0);
}

/// Far more than the cluster can handle: the time that operations wait for their turn is reported,
/// and counts in the latency.
#[test]
fn a_rate_that_cannot_be_kept_shows_in_latency_and_lag() {
    let report = bench(&["put", "--rate", "1000000", "--callers", "4", "--duration", "1s"]);
    let run = &report["runs"][0];
    check(run);
    assert!(number(&run["fixed_rate"]["never_begun"]) > 500_000, "{run}");
    assert!(run["fixed_rate"]["behind_max_ms"].as_f64().unwrap() > 300.0, "{run}");
    assert!(run["latency_us"]["p50"].as_f64().unwrap() > 100_000.0, "{run}");
}

#[test]
fn a_cluster_that_is_there_is_measured_and_goes_on() {
    let dev = Dev::start();
    let plot = dev.dir.join("plot.svg");
    let args = ["bench", "put", "--duration", "500ms", "--warmup", "100ms", "--callers", "4"];
    let more = ["--endpoints", &dev.endpoints, "--plot", plot.to_str().unwrap()];
    let out = dev.ok(&[&args[..], &more].concat());
    assert!(out.contains("3 existing nodes") && out.contains("PER SECOND"), "{out}");
    // The processes of the cluster were not started by this command.
    let costs = out.lines().last().unwrap();
    assert!(costs.contains("n/a") && !costs.trim_start().starts_with("4  n/a"), "{out}");
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.contains("latency by percentile") && svg.contains("4 callers"), "{svg}");
    assert!(dev.ok(&["scan", "--limit", "1", "--keys-only"]).starts_with("bench/"));
}

#[test]
fn ctrl_c_shows_what_was_measured_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let _strays = Strays(path.to_owned());
    let args = ["bench", "--duration", "10m", "--warmup", "0s", "--dir", path];
    let mut bench = Process::start(d_engine().args(args));
    let mut lines = bench.lines();
    // Printed when the nodes serve and the callers begin.
    lines.wait_for("3 processes on this machine; durable");
    assert_eq!(processes_of(path).len(), 4);
    bench.signal("INT");
    lines.wait_for("PER SECOND");
    lines.wait_for("all nodes together");
    let ended = bench.finish();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.err.contains("interrupted by Ctrl-C"), "{}", ended.err);
    assert_eq!(processes_of(path), Vec::<u32>::new(), "a node is left");
    assert_eq!(fs::read_dir(path).unwrap().count(), 0, "files are left");
}

#[test]
fn what_cannot_be_measured_is_refused_before_anything_is_started() {
    for (args, named) in [
        (
            &["bench", "put", "--consistency", "lease"][..],
            "--consistency goes with get, mixed, scan",
        ),
        (&["bench", "--keys", "1000", "--key-bytes", "8"], "--key-bytes 8"),
        (&["bench", "--plot", "/nonexistent/x.svg"], "--plot /nonexistent/x.svg"),
        (&["bench", "--callers", "0"], "--callers"),
        (&["bench", "--endpoints", "nowhere"], "host:port"),
    ] {
        let ended = run(args);
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.err);
        assert!(ended.err.contains(named) && ended.out.is_empty(), "{args:?}: {}", ended.err);
    }
}

/// What is received is a slice of a larger buffer. An entry that kept that buffer would make each
/// small command cost kilobytes for as long as it is in the log's cache.
#[test]
fn a_small_command_does_not_keep_the_buffer_it_came_in() {
    let report = bench(&["put", "--callers", "64", "--value-bytes", "8", "--duration", "3s"]);
    let run = &report["runs"][0];
    check(run);
    if cfg!(target_os = "linux") {
        let allowed = (60 << 20) + 1024 * number(&run["operations"]);
        let peaks = run["cost_per_operation"]["peak_memory_bytes"].as_array().unwrap();
        for peak in peaks.iter().map(number) {
            assert!(peak < allowed, "{peak} bytes after {} small commands", run["operations"]);
        }
    }
}
