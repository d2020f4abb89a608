//! `d-engine repair` over real processes: a node whose log is damaged comes back with everything.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::{Cluster, TIMEOUT, run, wait_until};

fn put(cluster: &Cluster, from: usize, to: usize) {
    let file = cluster.dir.path().join("records.tsv");
    let lines: Vec<String> = (from..to).map(|n| format!("k{n:05}\tvalue-{n}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    let file = file.to_str().unwrap();
    // One call after the other, so that the log has many groups.
    let endpoints = cluster.endpoints();
    let done = run(&["import", "--callers", "1", "--endpoints", &endpoints, file]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
}

/// Flips a bit of the log in the third write group that has entries after it.
fn damage(data: &Path) -> PathBuf {
    let mut segments: Vec<_> = fs::read_dir(data.join("log")).unwrap().flatten().collect();
    segments.sort_by_key(std::fs::DirEntry::path);
    let path = segments[0].path();
    let mut bytes = fs::read(&path).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    let key = b"value-20";
    let at = bytes[..used].windows(key.len()).position(|it| it == key).unwrap();
    bytes[at] ^= 1;
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn a_node_whose_log_is_damaged_comes_back_with_everything() {
    comes_back(&[]);
}

/// Its files stay in the damaged directory, and the state is rebuilt.
#[test]
fn a_node_with_its_records_on_disk_comes_back_with_everything() {
    comes_back(&["--state-machine", "disk"]);
}

fn comes_back(args: &[&str]) {
    let mut cluster = Cluster::start_with_args("", args);
    put(&cluster, 0, 60);
    for i in 0..3 {
        wait_until(TIMEOUT, || cluster.status(i).filter(|row| row["records"] == 60));
    }
    let node = (cluster.leader() + 1) % 3;
    let data = cluster.dir.path().join(format!("data-{}", node + 1));
    let dir = data.to_str().unwrap();
    // It runs.
    let refused = run(&["repair", "--data-dir", dir]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("in use"), "{}", refused.err);
    cluster.nodes[node].take().unwrap().kill();
    // Its log is intact.
    let refused = run(&["repair", "--data-dir", dir]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains("start the node"), "{}", refused.err);
    put(&cluster, 60, 90);
    let segment = damage(&data);
    let dump = run(&["log", "dump", "--data-dir", dir]);
    assert!(dump.out.contains("d-engine repair --data-dir"), "{}", dump.out);
    let config = cluster.config(node);
    let serve = ["serve", "--config", config.to_str().unwrap()];
    let started = run(&[&serve[..], args].concat());
    assert_eq!(started.code, Some(1), "{}", started.err);
    let name = segment.file_name().unwrap().to_str().unwrap();
    assert!(started.err.contains(name) && started.err.contains("damaged"), "{}", started.err);

    let repaired = run(&["repair", "--data-dir", dir]);
    assert_eq!(repaired.code, Some(0), "{}{}", repaired.out, repaired.err);
    assert!(repaired.out.contains("the leader sends entries"), "{}", repaired.out);
    assert!(repaired.out.contains("it does not lead before"), "{}", repaired.out);
    cluster.start_node(node);
    wait_until(TIMEOUT, || cluster.status(node).filter(|row| row["records"] == 90));
    let row = cluster.status(node).unwrap();
    assert!(!row["alarms"].to_string().contains("repaired"), "{row}");
    assert!(row["losses"].as_array().is_none_or(Vec::is_empty), "{row}");
    // It leads, and has everything.
    let id = (node + 1).to_string();
    wait_until(TIMEOUT, || {
        let moved = run(&["transfer-leader", "--to", &id, "--endpoints", &cluster.endpoints()]);
        (moved.code == Some(0)).then_some(())
    });
    let scanned = run(&["scan", "--endpoints", &cluster.endpoints()]);
    assert_eq!(scanned.out.lines().count(), 90, "{}", scanned.err);
    let beside: Vec<_> = fs::read_dir(cluster.dir.path())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_str().unwrap().contains(".before-repair-"))
        .collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
}

/// The log keeps no entries before a snapshot.
const NO_TAIL: &str = "[snapshots]\ntail_entries = 0\ntail_bytes = 0\nretained = 1\n";

/// Its log is intact, but begins after a snapshot that is damaged.
#[test]
fn a_node_without_its_snapshots_gets_one_of_another_member() {
    let mut cluster = Cluster::start_with(NO_TAIL);
    put(&cluster, 0, 60);
    let node = (cluster.leader() + 1) % 3;
    wait_until(TIMEOUT, || cluster.status(node).filter(|row| row["records"] == 60));
    let id = (node + 1).to_string();
    let taken = run(&["snapshot", "--node", &id, "--endpoints", &cluster.endpoints()]);
    assert_eq!(taken.code, Some(0), "{}{}", taken.out, taken.err);
    let data = cluster.dir.path().join(format!("data-{id}"));
    let dir = data.to_str().unwrap();
    wait_until(TIMEOUT, || {
        let dump = run(&["log", "dump", "--data-dir", dir, "--headers-only"]);
        dump.out.contains("purged up to").then_some(())
    });
    cluster.nodes[node].take().unwrap().kill();
    put(&cluster, 60, 90);
    for entry in fs::read_dir(data.join("snapshots")).unwrap().flatten() {
        let mut bytes = fs::read(entry.path()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(entry.path(), bytes).unwrap();
    }
    let config = cluster.config(node);
    let started = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(started.code, Some(1), "{}", started.err);
    assert!(started.err.contains("d-engine repair --data-dir DIR --from"), "{}", started.err);
    let dump = run(&["log", "dump", "--data-dir", dir]);
    assert!(dump.out.contains(&format!("d-engine repair --data-dir {dir} --from")), "{}", dump.out);

    let refused = run(&["repair", "--data-dir", dir]);
    assert_eq!(refused.code, Some(1), "{}", refused.err);
    assert!(refused.err.contains("--from HOST:PORT"), "{}", refused.err);
    let mut other = Cluster::prepare("", &[]);
    for i in 0..3 {
        let text = fs::read_to_string(other.config(i)).unwrap();
        fs::write(other.config(i), text.replace("00112233", "99112233")).unwrap();
    }
    other.start_all();
    let refused = run(&["repair", "--data-dir", dir, "--from", &other.clients[0]]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    assert!(refused.err.contains("name another member of its own cluster"), "{}", refused.err);
    drop(other);
    let from = &cluster.clients[(node + 1) % 3];
    let repaired = run(&["repair", "--data-dir", dir, "--from", from]);
    assert_eq!(repaired.code, Some(0), "{}{}", repaired.out, repaired.err);
    assert!(repaired.out.contains("the snapshot of node"), "{}", repaired.out);
    assert!(repaired.out.ends_with("start the node\n"), "{}", repaired.out);
    let again = run(&["repair", "--data-dir", dir, "--from", from]);
    assert_eq!(again.code, Some(2), "{}{}", again.out, again.err);
    cluster.start_node(node);
    wait_until(TIMEOUT, || cluster.status(node).filter(|row| row["records"] == 90));
}
