//! A failing seed is shrunk, and the printed command repeats what is left of it.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

use d_engine_sim::{Disturbance, Numbers, Reduction, Report, RunOptions, Step, run, run_reduced};

/// The state at which a run is made to fail: a planted failure.
const STATE: &str = "TwoLeadersAtOnce";

fn simulator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_d-engine-sim")).args(arguments).output().unwrap()
}

/// The numbers before and after "of" in the words `3 of 41 faults`.
fn left(line: &str, what: &str) -> (usize, usize) {
    let words: Vec<&str> = line.split([' ', ',']).collect();
    let at = words.iter().position(|word| *word == what).unwrap();
    (words[at - 3].parse().unwrap(), words[at - 1].parse().unwrap())
}

#[test]
fn a_failing_seed_is_shrunk_and_the_printed_command_repeats_the_failure() {
    let series = ["--count", "100", "--fail-fast", "--threads", "1", "--shrink-seconds", "300"];
    let output = simulator(&[&series[..], &["--fail-on", STATE]].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let line = |start: &str| {
        text.lines().find_map(|line| line.trim_start().strip_prefix(start)).unwrap_or_default()
    };
    let sizes = line("shrunk: ");
    let ((faults, of_faults), (calls, of_calls)) = (left(sizes, "faults"), left(sizes, "calls"));
    assert!(faults * 2 < of_faults && calls * 2 < of_calls, "{text}");

    let command = line("repeat the shrunk run: cargo run --release -p d-engine-sim -- ");
    let arguments: Vec<&str> = command.split(' ').collect();
    let repeated = simulator(&arguments);
    let text = String::from_utf8(repeated.stdout).unwrap();
    assert_eq!(repeated.status.code(), Some(1), "{command}\n{text}");
    assert!(text.contains(&format!("fail on: {STATE} is reached")), "{command}\n{text}");
}

#[test]
fn a_run_from_which_nothing_is_left_out_is_the_run_itself() {
    for seed in 1..=12 {
        let options = RunOptions { seconds: 10, ..RunOptions::default() };
        let whole = run(seed, options);
        let again = run_reduced(seed, options, &Reduction::default());
        assert_eq!(
            (again.trace_hash, again.events, again.committed),
            (whole.trace_hash, whole.events, whole.committed),
            "seed {seed}"
        );
    }
}

/// The faults of a run that lasts ten seconds.
fn faults_of(seed: u64, reduction: &Reduction) -> Report {
    let options = RunOptions { seconds: 10, trials: false, ..RunOptions::default() };
    let report = run_reduced(seed, options, reduction);
    let found = report.finding.as_ref().map(|finding| finding.violation.to_string());
    assert_eq!(found, None, "seed {seed}, {reduction}");
    report
}

#[test]
fn a_fault_that_is_left_out_does_not_move_the_others() {
    let mut partitions = 0;
    for seed in 1..=12 {
        let all = faults_of(seed, &Reduction::default()).faults;
        let second: Numbers = all.iter().map(|step| step.number).skip(1).step_by(2).collect();
        let reduction = Reduction {
            faults: Some(second.clone()),
            calls: Some((1..100).step_by(2).collect()),
            kinds: Some([Disturbance::MessageDropped, Disturbance::SyncStall].into()),
            ..Reduction::default()
        };
        let expected: Vec<&Step> = all.iter().filter(|step| second.contains(step.number)).collect();
        let kept = faults_of(seed, &reduction).faults;
        assert_eq!(kept.len(), expected.len(), "seed {seed}");
        for (kept, expected) in kept.iter().zip(expected) {
            assert_eq!((kept.number, kept.at), (expected.number, expected.at), "seed {seed}");
            // The shape of a partition is drawn, and does not depend on the cluster's state.
            if expected.to_string().contains("Partition") {
                partitions += 1;
                assert_eq!(kept.faults, expected.faults, "seed {seed}");
            }
        }
    }
    assert!(partitions > 0, "no partition was kept");
}

#[test]
fn a_fault_that_disturbs_nothing_can_be_left_out_and_nothing_changes() {
    let mut left_out = 0;
    for seed in 1..=12 {
        let whole = faults_of(seed, &Reduction::default());
        // These have effects that are not counted as a fault at once.
        let is_fault = |step: &&Step| {
            let what = step.to_string();
            !step.faults.is_empty()
                || what.contains("SnapshotRequest")
                || what.contains("ProgramChange")
                || what.contains("MembersChange")
        };
        let faults: Numbers = whole.faults.iter().filter(is_fault).map(|it| it.number).collect();
        left_out += whole.faults.len() - faults.iter().count();
        let rest = faults_of(seed, &Reduction { faults: Some(faults), ..Reduction::default() });
        assert_eq!(
            (rest.operations, rest.committed, rest.elections, rest.simulated_seconds),
            (whole.operations, whole.committed, whole.elections, whole.simulated_seconds),
            "seed {seed}"
        );
    }
    assert!(left_out > 0, "every fault disturbed something");
}
