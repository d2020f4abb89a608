//! `d-engine backup` over real processes: under writers, interrupted, damaged, restored.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;

use support::{
    Cluster, Finished, Process, TIMEOUT, d_engine, free_address, run, serve, wait_until,
};

/// Slow enough to be interrupted: 64 KiB is the least that a node accepts.
const SLOW: &str = "[snapshots]\nsend_bytes_per_second = 200000\n";

/// Imports records with values of a thousand bytes each.
fn import(cluster: &Cluster, records: usize) -> String {
    let file = cluster.dir.path().join("records.tsv");
    let value = "v".repeat(1_000);
    let lines: Vec<String> = (0..records).map(|n| format!("k{n:06}\t{n:06}{value}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    ok(&["import", "--endpoints", &cluster.endpoints(), file.to_str().unwrap()]);
    lines.concat()
}

fn ok(args: &[&str]) -> String {
    let done = run(args);
    assert_eq!(done.code, Some(0), "{args:?}: {}{}", done.out, done.err);
    done.out
}

fn refused(args: &[&str], exit: i32, words: &[&str]) {
    let done = run(args);
    assert_eq!(done.code, Some(exit), "{args:?}: {}{}", done.out, done.err);
    for word in words {
        assert!(done.err.contains(word), "{args:?}: {word:?} is missing: {}", done.err);
    }
}

/// The bytes of the incomplete backup.
fn received(dir: &Path) -> u64 {
    let partial = fs::read_dir(dir)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_str().is_some_and(|name| name.ends_with(".partial")));
    partial.and_then(|entry| entry.metadata().ok()).map_or(0, |metadata| metadata.len())
}

fn begin(args: &[&str]) -> Process {
    Process::start(d_engine().arg("backup").args(args))
}

#[test]
fn a_backup_under_writers_is_verified_and_becomes_a_new_cluster() {
    let cluster = Cluster::start();
    let records = import(&cluster, 500);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db.dbak");
    let (file, all) = (file.to_str().unwrap(), cluster.endpoints());
    ok(&["put", "--endpoints", &all, "z-last", "acknowledged"]);
    let bench = ["bench", "--endpoints", &all, "--duration", "20s", "--clients", "4"];
    let mut writers = Process::start(d_engine().args(bench));
    let out = ok(&["backup", "--endpoints", &cluster.clients[0], file]);
    assert!(out.contains("(follower): every write that was acknowledged"), "{out}");
    assert!(out.contains("verified and synced in"), "{out}");
    writers.kill();
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let out = ok(&["backup", "verify", file]);
    assert!(out.contains("members 1 2 3 (configuration") && out.contains(": intact"), "{out}");

    // A new cluster of one.
    let (client, data) = (free_address(), dir.path().join("new"));
    ok(&["restore", file, "--data-dir", data.to_str().unwrap()]);
    let config = dir.path().join("new.toml");
    let text = format!("data_dir = {data:?}\nclient_listen = {client:?}\n");
    fs::write(&config, text).unwrap();
    let mut node = serve(&config);
    node.lines().wait_for("is ready");
    let found = ok(&["scan", "--endpoints", &client, "--prefix", "k"]);
    assert!(found.contains(records.lines().next().unwrap()), "{found}");
    assert_eq!(found.lines().filter(|line| records.contains(*line)).count(), 500);
    assert_eq!(ok(&["get", "--endpoints", &client, "z-last"]).trim(), "acknowledged");
    node.kill();

    // What is there is never overwritten, and what cannot be is named.
    refused(&["backup", "--endpoints", &all, file], 2, &["exists", "overwrites nothing"]);
    let missing = dir.path().join("missing/db.dbak");
    refused(&["backup", "--endpoints", &all, missing.to_str().unwrap()], 2, &["missing"]);
    refused(&["backup", "verify", missing.to_str().unwrap()], 2, &["missing"]);
    let other = dir.path().join("other.dbak");
    let other = other.to_str().unwrap();
    refused(&["backup", "--endpoints", &all, "--resume", other], 2, &["without --resume"]);
    refused(&["backup", "--endpoints", &all, "--node", "9", other], 1, &["node 9 was not found"]);
    refused(&["backup", "--endpoints", &free_address(), other], 1, &["no node answers"]);
    refused(&["backup"], 2, &["FILE"]);

    // One bit.
    let mut bytes = fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).unwrap();
    refused(&["backup", "verify", file], 1, &["damaged at offset", "snapshot inspect"]);
}

#[test]
fn a_killed_node_and_a_stopped_command_only_delay_a_backup() {
    let mut cluster = Cluster::start_with(SLOW);
    import(&cluster, 1_500);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db.dbak");
    let (file, all) = (file.to_str().unwrap(), cluster.endpoints());
    // The node dies, and comes back.
    let leader = cluster.leader();
    let from = (leader + 1) % 3;
    let node = (from + 1).to_string();
    let backup = begin(&["--endpoints", &all, "--node", &node, file]);
    wait_until(TIMEOUT, || (received(dir.path()) > 300_000).then_some(()));
    cluster.nodes[from].take().unwrap().kill();
    cluster.start_node(from);
    let done: Finished = backup.finish();
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(done.err.contains("continuing"), "{}", done.err);
    ok(&["backup", "verify", file]);

    // The command is stopped, and continued.
    let file = dir.path().join("second.dbak");
    let file = file.to_str().unwrap();
    let backup = begin(&["--endpoints", &all, file]);
    wait_until(TIMEOUT, || (received(dir.path()) > 300_000).then_some(()));
    backup.signal("INT");
    let done = backup.finish();
    assert_eq!(done.code, Some(130), "{}{}", done.out, done.err);
    assert!(done.err.contains("--resume"), "{}", done.err);
    let had = received(dir.path());
    let out = ok(&["backup", "--endpoints", &all, "--resume", file]);
    assert!(out.contains("acknowledged after it may be missing"), "{out}");
    assert!(had > 300_000 && received(dir.path()) == 0, "{had}");
    ok(&["backup", "verify", file]);
}

#[test]
fn without_a_majority_the_command_names_the_flag_that_helps() {
    let mut cluster = Cluster::start();
    import(&cluster, 50);
    let applied = wait_until(TIMEOUT, || {
        let row = cluster.status(2).filter(|row| row["records"] == 50)?;
        row["applied_index"].as_u64()
    });
    for i in [0, 1] {
        cluster.nodes[i].take().unwrap().kill();
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db.dbak");
    let (file, all) = (file.to_str().unwrap(), cluster.endpoints());
    refused(&["backup", "--endpoints", &all, file], 1, &["--stale", "could not confirm"]);
    let out = ok(&["backup", "--endpoints", &all, "--stale", "--json", file]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((report["node"].as_u64(), report["complete_up_to"].is_null()), (Some(3), true));
    assert!(report["index"].as_u64().unwrap() >= applied, "{report}");
}

/// The file of the node is cut off under the transfer: asking again would end at the same place.
#[test]
fn a_snapshot_that_cannot_be_read_any_more_ends_the_command() {
    let cluster = Cluster::start_with(SLOW);
    import(&cluster, 1_500);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db.dbak");
    let leader = (cluster.leader() + 1).to_string();
    let all = cluster.endpoints();
    let arguments = ["--endpoints", &all, "--node", &leader, file.to_str().unwrap()];
    let backup = begin(&arguments);
    wait_until(TIMEOUT, || (received(dir.path()) > 300_000).then_some(()));
    let snapshots = cluster.dir.path().join(format!("data-{leader}/snapshots"));
    for entry in fs::read_dir(snapshots).unwrap().flatten() {
        if entry.file_name().to_str().unwrap().ends_with(".snap") {
            fs::OpenOptions::new().write(true).open(entry.path()).unwrap().set_len(1_000).unwrap();
        }
    }
    let done = backup.finish();
    assert_eq!(done.code, Some(1), "{}{}", done.out, done.err);
    assert!(done.err.contains("the transfer ended after"), "{}", done.err);
    // The node has noticed, and takes another one.
    ok(&[&["backup"], &arguments[..]].concat());
}

/// Everything was received, and the command was killed before it had verified that.
#[test]
fn a_backup_that_is_all_here_is_finished_without_a_node() {
    let mut cluster = Cluster::start();
    import(&cluster, 50);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("db.dbak");
    let all = cluster.endpoints();
    let json = ok(&["backup", "--endpoints", &all, "--json", file.to_str().unwrap()]);
    let made: serde_json::Value = serde_json::from_str(&json).unwrap();
    let (term, index, bytes) = (&made["term"], &made["index"], &made["bytes"]);
    let partial =
        format!("db.dbak.{term}-{index}-{bytes}-{}.partial", made["sha256"].as_str().unwrap());
    fs::rename(&file, dir.path().join(partial)).unwrap();
    for node in &mut cluster.nodes {
        node.take().unwrap().kill();
    }
    let out = ok(&["backup", "--endpoints", &all, "--resume", file.to_str().unwrap()]);
    assert!(out.contains("everything was there already"), "{out}");
    ok(&["backup", "verify", file.to_str().unwrap()]);
}
