//! What an operator does, and how the commands respond.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;

use support::{Cluster, Dev, Process, TIMEOUT, d_engine, free_address, run, serve, wait_until};

/// Writes the config of a single node, as a cluster of one.
fn alone(dir: &Path, extra: &str) -> (std::path::PathBuf, String) {
    let (peers, clients) = (free_address(), free_address());
    let text = format!(
        "data_dir = \"data\"\npeer_listen = \"{peers}\"\nclient_listen = \"{clients}\"\n{extra}"
    );
    let config = dir.join("node.toml");
    fs::write(&config, text).unwrap();
    (config, clients)
}

/// Nodes two and three form a cluster while the first is down; then the first runs alone under the
/// same cluster id.
#[test]
fn status_fails_when_nodes_of_one_cluster_contradict_each_other() {
    let mut cluster = Cluster::prepare("", &[]);
    let whole = fs::read_to_string(cluster.config(0)).unwrap();
    for i in [1, 2] {
        cluster.start_node(i);
    }
    cluster.wait_ready(&[1, 2]);
    // The first node with a member list of its own alone.
    let first = whole.find("[[members]]").unwrap();
    let second = first + whole[first..].match_indices("[[members]]").nth(1).unwrap().0;
    fs::write(cluster.config(0), &whole[..second]).unwrap();
    cluster.start_node(0);
    cluster.wait_ready(&[0]);
    let status = run(&["status", "--endpoints", &cluster.endpoints()]);
    assert_eq!(status.code, Some(1), "{}{}", status.out, status.err);
    assert!(
        status.out.contains("CONTRADICTION: the nodes have different member lists: node 1: 1;"),
        "{}",
        status.out
    );
    let json = run(&["status", "--json", "--endpoints", &cluster.endpoints()]);
    assert_eq!(json.code, Some(1), "{}", json.err);
    let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert!(!report["contradictions"].as_array().unwrap().is_empty());
    // They refuse each other, and each one logs it.
    let refused = |i: usize, part: &str| {
        wait_until(TIMEOUT, || {
            let row = cluster.status(i)?;
            row["reason"].as_str()?.contains(part).then_some(())
        });
    };
    refused(1, "node 1 refuses this node");
    refused(0, "node 2 is refused");

    // A corrected config changes no members any more, and the first node says so.
    cluster.nodes[0].take().unwrap().kill();
    fs::write(cluster.config(0), whole).unwrap();
    cluster.start_node(0);
    let log = cluster.config(0).with_extension("log");
    wait_until(TIMEOUT, || {
        let log = fs::read_to_string(&log).unwrap();
        log.contains("`members` lists nodes that are not members").then_some(())
    });
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = alone(dir.path(), "");
    let mut node = serve(&config);
    node.lines().wait_for("is ready");
    for args in [&["status", "--json"][..], &["status"], &["scan"]] {
        let put = run(&["put", "--endpoints", &address, "k", "v"]);
        assert_eq!(put.code, Some(0), "{}", put.err);
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = d_engine();
        command.args(args).args(["--endpoints", &address]).stdout(full).stderr(Stdio::piped());
        let ended = command.output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{args:?}: {told}");
        assert!(told.contains("cannot be written"), "{told}");
    }
}

/// Any value survives: a carriage return at its end, line breaks, bytes that are no UTF-8.
#[test]
fn what_scan_prints_as_json_import_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = alone(dir.path(), "");
    let mut node = serve(&config);
    node.lines().wait_for("is ready");
    let plain = dir.path().join("plain.tsv");
    fs::write(&plain, b"\xef\xbb\xbfmark\tend\r\nback\\slash\ta\tb\nbytes\t\xff\xfe\n").unwrap();
    let ok = |args: &[&str]| {
        let ended = run(&[args, &["--endpoints", &address]].concat());
        assert_eq!(ended.code, Some(0), "{args:?}: {}{}", ended.out, ended.err);
        ended
    };
    ok(&["import", plain.to_str().unwrap()]);
    ok(&["put", "lines", "one\ntwo\r"]);
    let scan = ok(&["scan"]);
    assert!(scan.err.contains("1 records have tabs or line breaks"), "{}", scan.err);
    let before = ok(&["scan", "--json"]).out;
    assert!(before.contains("\"end\\r\"") && before.contains("\"one\\ntwo\\r\""), "{before}");
    for key in ["\u{feff}mark", "back\\slash", "bytes", "lines"] {
        ok(&["delete", key]);
    }
    assert_eq!(ok(&["scan"]).out, "");
    let saved = dir.path().join("saved.jsonl");
    fs::write(&saved, &before).unwrap();
    ok(&["import", "--format", "json", saved.to_str().unwrap()]);
    assert_eq!(ok(&["scan", "--json"]).out, before);
}

#[test]
fn a_snapshot_that_takes_too_long_is_told_as_that() {
    let dir = tempfile::tempdir().unwrap();
    // Its archive takes more than a second to build.
    let (config, address) = alone(dir.path(), "[snapshots]\nbuild_bytes_per_second = 65536\n");
    let mut node = serve(&config);
    node.lines().wait_for("is ready");
    let value = "v".repeat(100_000);
    let put = run(&["put", "--endpoints", &address, "k", &value]);
    assert_eq!(put.code, Some(0), "{}", put.err);
    let late = run(&["snapshot", "--endpoints", &address, "--wait", "100ms"]);
    let told = format!("{}{}", late.out, late.err);
    assert_eq!(late.code, Some(1), "{told}");
    assert!(told.contains("--wait"), "{told}");
    assert!(!told.contains("cannot be reached"), "{told}");
}

#[test]
fn a_directory_with_a_line_break_in_its_name_can_be_used() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("two\nlines");
    let _strays = support::Strays(temporary.path().to_str().unwrap().to_owned());
    let mut command = d_engine();
    command.args(["dev", "--ephemeral", "--nodes", "1", "--dir"]).arg(&dir);
    let mut process = Process::start(&mut command);
    process.lines().wait_for("  ready ");
    process.signal("TERM");
    let ended = process.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
}

#[test]
fn a_config_from_a_pipe_needs_a_whole_path_and_variables_are_not_expanded() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = d_engine();
    command.args(["serve", "--config", "/dev/stdin"]).stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut node = command.spawn().unwrap();
    node.stdin.take().unwrap().write_all(b"data_dir = \"data\"\n").unwrap();
    let ended = node.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(told.contains("`data_dir` is data") && told.contains("write the whole path"), "{told}");
    let config = dir.path().join("node.toml");
    fs::write(&config, "data_dir = \"$HOME/data\"\n").unwrap();
    let ended = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(ended.code, Some(2), "{}", ended.err);
    assert!(ended.err.contains("variables such as $HOME are not expanded"), "{}", ended.err);
    assert!(!dir.path().join("$HOME").exists());
}

/// Every line names its node: three nodes may log to one place.
#[test]
fn every_line_of_a_nodes_log_names_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let (config, address) = alone(dir.path(), "");
    let mut node = serve(&config);
    node.lines().wait_for("is ready");
    let put = run(&["put", "--endpoints", &address, "k", "v"]);
    assert_eq!(put.code, Some(0), "{}", put.err);
    let taken = run(&["snapshot", "--endpoints", &address]);
    assert_eq!(taken.code, Some(0), "{}", taken.err);
    node.signal("TERM");
    assert_eq!(node.finish().code, Some(0));
    let log = fs::read_to_string(config.with_extension("log")).unwrap();
    assert!(log.contains("snapshot built"), "{log}");
    for line in log.lines() {
        assert!(line.contains("node=1"), "{line}");
    }
}

/// Waiting for a dead target is pointless.
#[test]
fn a_leader_is_told_at_once_that_a_dead_node_cannot_take_over() {
    let dev = Dev::start();
    let leader = dev.leader();
    let dead = leader % 3 + 1;
    support::send("KILL", dev.node_process(dead));
    // Once the leader has missed the target's responses, it reports that; shortly before, the
    // transfer times out.
    let transfer = || dev.run(&["transfer-leader", "--to", &dead.to_string()]);
    let told = wait_until(TIMEOUT, || {
        let ended = transfer();
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
        ended.err.contains("keeps its leadership").then_some(ended.err)
    });
    assert!(told.contains(&format!("node {dead} ")), "{told}");
    assert_eq!(dev.leader(), leader);
}
