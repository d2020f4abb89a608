//! `import`, during failures of the cluster and with bad input.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::PathBuf;

use support::{Dev, Process, TIMEOUT, d_engine, wait_until};

fn write_records(dev: &Dev, count: usize) -> PathBuf {
    let file = dev.dir.join("words.tsv");
    let records: Vec<String> = (0..count).map(|n| format!("k{n:06}\tvalue {n}\n")).collect();
    fs::write(&file, records.concat()).unwrap();
    file
}

fn start(dev: &Dev, args: &[&str]) -> Process {
    Process::start(d_engine().arg("import").args(args).env("D_ENGINE_ENDPOINTS", &dev.endpoints))
}

fn summary(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

#[test]
fn every_record_is_there_and_the_summary_says_so() {
    let dev = Dev::start();
    let file = write_records(&dev, 300);
    let out = dev.ok(&["import", file.to_str().unwrap()]);
    assert!(out.starts_with("300 of 300 records acknowledged in "), "{out}");
    let told = summary(&dev.ok(&["import", "--json", "--skip", "100", file.to_str().unwrap()]));
    assert_eq!((told["records"].as_u64(), told["skipped"].as_u64()), (Some(300), Some(100)));
    assert_eq!(
        (told["acknowledged"].as_u64(), told["interrupted"].as_bool()),
        (Some(200), Some(false))
    );
    assert!(told["go_on_with_skip"].is_null() && told["refused"].as_array().unwrap().is_empty());
    assert_eq!(dev.ok(&["scan"]), fs::read_to_string(&file).unwrap());
}

#[test]
fn an_import_goes_on_through_the_death_of_the_leader() {
    let dev = Dev::start();
    let file = write_records(&dev, 20_000);
    let import = start(&dev, &["--json", file.to_str().unwrap()]);
    wait_until(TIMEOUT, || (dev.run(&["get", "k001000"]).code == Some(0)).then_some(()));
    support::send("KILL", dev.node_process(dev.leader()));
    let ended = import.finish();
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert_eq!(summary(&ended.out)["acknowledged"].as_u64(), Some(20_000));
    assert_eq!(dev.ok(&["scan"]), fs::read_to_string(&file).unwrap());
}

#[test]
fn an_interrupted_import_says_where_to_go_on() {
    let dev = Dev::start();
    let file = write_records(&dev, 100_000);
    let file = file.to_str().unwrap();
    let import = start(&dev, &["--callers", "4", file]);
    wait_until(TIMEOUT, || (dev.run(&["get", "k000100"]).code == Some(0)).then_some(()));
    import.signal("INT");
    let ended = import.finish();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.out.contains("of 100000 records acknowledged"), "{}", ended.out);
    let skip = ended.err.trim().rsplit(' ').next().unwrap();
    let settled: usize = skip.parse().unwrap_or_else(|_| panic!("{}", ended.err));
    assert!(settled > 100 && settled < 100_000);
    // All acknowledged records are there.
    let first = dev.ok(&["scan", "--limit", skip]);
    assert!(
        fs::read_to_string(file).unwrap().starts_with(&first) && first.lines().count() == settled
    );
    let rest = (100_000 - 500).max(settled).to_string();
    dev.ok(&["import", "--skip", &rest, file]);
}

#[test]
fn a_record_that_is_too_long_is_named_and_the_others_are_put() {
    let dev = Dev::start();
    let file = dev.dir.join("words.tsv");
    fs::write(&file, format!("a\t1\nhuge\t{}\nz\t2\n", "x".repeat(2 << 20))).unwrap();
    let ended = dev.run(&["import", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.out.contains("2 of 3 records acknowledged"), "{}", ended.out);
    assert!(
        ended.err.contains("1 records were refused") && ended.err.contains("\"huge\""),
        "{}",
        ended.err
    );
    assert_eq!(dev.ok(&["scan"]), "a\t1\nz\t2\n");
}

#[test]
fn a_cluster_without_a_majority_ends_the_import_with_where_to_go_on() {
    let dev = Dev::start();
    let file = write_records(&dev, 100);
    for id in [1, 2] {
        support::send("KILL", dev.node_process(id));
    }
    let ended = dev.run(&["import", "--timeout", "1s", "--skip", "10", file.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("continue with --skip 10"), "{}", ended.err);
    let wrong = dev.dir.join("wrong.tsv");
    fs::write(&wrong, "a\t1\nno tab\n").unwrap();
    let ended = dev.run(&["import", wrong.to_str().unwrap()]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("line 2: there is no tab"), "{}", ended.err);
}
