//! `serve --state-machine disk`: real processes, SIGKILL, snapshots, and the change from memory to
//! disk and back.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Cluster, TIMEOUT, run, wait_until};

/// The log keeps no entries before a snapshot.
const NO_TAIL: &str = "[snapshots]\ntail_entries = 0\ntail_bytes = 0\nretained = 1\n";

fn put(cluster: &Cluster, key: &str, value: &str) {
    let put = run(&["put", "--endpoints", &cluster.endpoints(), key, value]);
    assert_eq!(put.code, Some(0), "{}", put.err);
}

fn restart_all(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        node.take().unwrap().kill();
    }
    for i in 0..3 {
        cluster.start_node(i);
    }
    cluster.wait_ready(&[0, 1, 2]);
}

/// Waits until each node, once it has applied everything, returns this value.
fn every_node_has(cluster: &Cluster, key: &str, value: &str) {
    for node in &cluster.clients {
        wait_until(TIMEOUT, || {
            let get = run(&["get", "--consistency", "eventual", "--endpoints", node, key]);
            (get.out == value).then_some(())
        });
    }
}

#[test]
fn records_on_disk_outlive_sigkill_with_and_without_a_snapshot() {
    let mut cluster = Cluster::start_with_args(NO_TAIL, &["--state-machine", "disk"]);
    put(&cluster, "a", "one");
    restart_all(&mut cluster);
    every_node_has(&cluster, "a", "one");

    let told = run(&["snapshot", "--endpoints", &cluster.endpoints()]);
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    assert_eq!(told.out.lines().filter(|line| line.contains("a snapshot up to entry ")).count(), 3);
    put(&cluster, "b", "two");
    restart_all(&mut cluster);
    every_node_has(&cluster, "a", "one");
    every_node_has(&cluster, "b", "two");

    // A node that has lost its records gets them from its snapshot and the log.
    cluster.nodes[1].take().unwrap().kill();
    fs::remove_dir_all(cluster.dir.path().join("data-2/kv-disk")).unwrap();
    cluster.start_node(1);
    cluster.wait_ready(&[1]);
    every_node_has(&cluster, "a", "one");
    every_node_has(&cluster, "b", "two");
}

#[test]
fn a_node_goes_from_memory_to_disk_but_not_back_unless_it_is_told_to_forget() {
    let mut cluster = Cluster::start_with(NO_TAIL);
    put(&cluster, "a", "one");
    let told = run(&["snapshot", "--endpoints", &cluster.endpoints()]);
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    // One node of three changes to disk; the others stay in memory.
    cluster.nodes[0].take().unwrap().kill();
    cluster.args = vec!["--state-machine".to_owned(), "disk".to_owned()];
    cluster.start_node(0);
    cluster.wait_ready(&[0]);
    put(&cluster, "b", "two");
    every_node_has(&cluster, "a", "one");
    every_node_has(&cluster, "b", "two");

    cluster.nodes[0].take().unwrap().kill();
    let config = cluster.config(0);
    let refused = run(&["serve", "--config", config.to_str().unwrap()]);
    assert_eq!(refused.code, Some(2), "{}", refused.err);
    for part in ["--state-machine disk", "--state-machine memory", "data-1/kv-disk"] {
        assert!(refused.err.contains(part), "{part:?} is missing in {:?}", refused.err);
    }
    fs::remove_dir_all(cluster.dir.path().join("data-1/kv-disk")).unwrap();
    cluster.args.clear();
    cluster.start_node(0);
    cluster.wait_ready(&[0]);
    every_node_has(&cluster, "b", "two");
}
