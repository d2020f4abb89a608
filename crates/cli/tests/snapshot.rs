//! Snapshots as an operator sees them: real processes, `d-engine snapshot` and `status`, and
//! SIGKILL in the middle.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::time::Duration;

use support::{Cluster, TIMEOUT, run, wait_until};

/// The log keeps no entries before a snapshot.
const NO_TAIL: &str = "[snapshots]\ntail_entries = 0\ntail_bytes = 0\nretained = 1\n";

/// Imports records with values of a thousand bytes each; returns the file.
fn import(cluster: &Cluster, endpoints: &str, records: usize) -> String {
    let file = cluster.dir.path().join("records.tsv");
    let value = "v".repeat(1_000);
    let lines: Vec<String> = (0..records).map(|n| format!("k{n:06}\t{n:06}{value}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    let imported = run(&["import", "--endpoints", endpoints, file.to_str().unwrap()]);
    assert_eq!(imported.code, Some(0), "{}{}", imported.out, imported.err);
    lines.concat()
}

#[test]
fn an_operator_takes_snapshots_of_a_cluster_and_sees_them() {
    let mut cluster = Cluster::start_with(NO_TAIL);
    let all = cluster.endpoints();
    let records = import(&cluster, &all, 500);
    // A follower's snapshot contains what the follower has applied itself.
    for i in 0..3 {
        wait_until(TIMEOUT, || cluster.status(i).filter(|row| row["records"] == 500));
    }
    let told = run(&["snapshot", "--endpoints", &cluster.clients[0]]);
    assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    for node in 1..=3 {
        let line =
            told.out.lines().find(|line| line.starts_with(&format!("node {node}: "))).unwrap();
        assert!(line.contains("a snapshot up to entry "), "{line}");
    }
    // The snapshot shortens the log.
    for i in 0..3 {
        let status =
            wait_until(TIMEOUT, || cluster.status(i).filter(|row| row["applied_index"].is_u64()));
        let snapshots = &status["snapshots"];
        assert!(snapshots["newest_index"].as_u64().unwrap() > 1, "{status}");
        assert!(snapshots["newest_bytes"].as_u64().unwrap() > 500_000, "{status}");
        assert_eq!(
            (snapshots["built"].as_u64(), snapshots["failed"].as_u64()),
            (Some(1), Some(0)),
            "{status}"
        );
    }
    let table = run(&["status", "--endpoints", &all]);
    assert!(table.out.contains("SNAPSHOT") && !table.out.contains("ALARM"), "{}", table.out);

    // One node, as JSON.
    let one = run(&["snapshot", "--node", "2", "--json", "--endpoints", &all]);
    let rows: serde_json::Value = serde_json::from_str(&one.out).unwrap();
    assert_eq!(rows.as_array().unwrap().len(), 1, "{rows}");
    assert_eq!(
        (rows[0]["node"].as_u64(), rows[0]["sha256"].as_str().unwrap().len()),
        (Some(2), 64),
        "{rows}"
    );
    let nobody = run(&["snapshot", "--node", "9", "--endpoints", &all]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.err.contains("node 9 was not found"), "{}", nobody.err);

    // All nodes are killed, and start from their snapshots.
    for node in &mut cluster.nodes {
        node.take().unwrap().kill();
    }
    for i in 0..3 {
        cluster.start_node(i);
    }
    cluster.wait_ready(&[0, 1, 2]);
    assert_eq!(run(&["scan", "--endpoints", &all]).out, records);
}

#[test]
fn without_room_on_the_disk_there_is_no_snapshot_but_a_reason_and_an_alarm() {
    let cluster = Cluster::start_with(
        "[snapshots]\nreserve_bytes = 4611686018427387904\nmax_log_bytes = 33554432\nafter_log_bytes = 0\n",
    );
    let all = cluster.endpoints();
    import(&cluster, &all, 500);
    let told = run(&["snapshot", "--endpoints", &all]);
    assert_eq!(told.code, Some(1), "{}", told.out);
    assert!(told.err.contains("3 of 3 nodes took no snapshot"), "{}", told.err);
    assert!(told.err.contains("node 1: ") && told.err.contains("free"), "{}", told.err);
    let table = run(&["status", "--endpoints", &all]);
    assert!(
        table.out.contains("node 1: the last snapshot failed (1 failed since the node started): "),
        "{}",
        table.out
    );
    // Nothing but the snapshot has failed.
    assert_eq!(run(&["put", "--endpoints", &all, "k", "v"]).code, Some(0));
    import(&cluster, &all, 40_000);
    wait_until(TIMEOUT, || {
        let table = run(&["status", "--endpoints", &all]);
        let is_told = table.out.contains("ALARM: node 1: its log has")
            && table.out.contains("the last snapshot failed");
        is_told.then_some(())
    });
}

/// A follower that was down is killed repeatedly while it receives a snapshot, and so is the leader
/// that sends it.
#[test]
fn kill_9_while_a_snapshot_is_sent_costs_nothing() {
    let settings = format!("{NO_TAIL}send_bytes_per_second = 500000\n");
    let mut cluster = Cluster::start_with(&settings);
    let away = (cluster.leader() + 1) % 3;
    cluster.nodes[away].take().unwrap().kill();
    let others: Vec<String> =
        (0..3).filter(|i| *i != away).map(|i| cluster.clients[i].clone()).collect();
    let records = import(&cluster, &others.join(","), 3_000);
    for other in &others {
        let node =
            (cluster.clients.iter().position(|address| address == other).unwrap() + 1).to_string();
        let told = run(&["snapshot", "--node", &node, "--endpoints", other]);
        assert_eq!(told.code, Some(0), "{}{}", told.out, told.err);
    }
    let received = |cluster: &Cluster| {
        wait_until(TIMEOUT, || cluster.status(away)?["snapshots"]["receiving"]["received"].as_u64())
    };
    for victim in ["follower", "leader", "follower"] {
        cluster.start_node(away);
        let before = received(&cluster);
        wait_until(TIMEOUT, || (received(&cluster) > before + 250_000).then_some(()));
        if victim == "leader" {
            let leader = cluster.leader();
            cluster.nodes[leader].take().unwrap().kill();
            cluster.start_node(leader);
            cluster.wait_ready(&[leader]);
        }
        cluster.nodes[away].take().unwrap().kill();
    }
    cluster.start_node(away);
    cluster.wait_ready(&[0, 1, 2]);
    let status = cluster.status(away).unwrap();
    assert!(
        status["snapshots"]["newest_index"].is_u64(),
        "it must have installed a snapshot: {status}"
    );
    let held = run(&["scan", "--consistency", "eventual", "--endpoints", &cluster.clients[away]]);
    let first = held.out.lines().zip(records.lines()).position(|(held, record)| held != record);
    let counted = (held.out.lines().count(), records.lines().count(), first);
    assert!(
        held.out == records,
        "records held, imported, first that differs: {counted:?}; {status}"
    );
}

/// A stopped process still has a connection. `peer_timeout_ms` applies all the same, and when
/// the follower continues, the leader sends the snapshot again.
#[test]
fn a_follower_that_hangs_while_it_receives_is_served_when_it_goes_on() {
    // More than the buffers of a connection hold, so that the leader has to wait in the middle of a
    // write.
    let settings = format!("{NO_TAIL}send_bytes_per_second = 5000000\npeer_timeout_ms = 1000\n");
    let mut cluster = Cluster::start_with(&settings);
    let away = (cluster.leader() + 1) % 3;
    cluster.nodes[away].take().unwrap().kill();
    let others: Vec<usize> = (0..3).filter(|i| *i != away).collect();
    let endpoints: Vec<String> = others.iter().map(|i| cluster.clients[*i].clone()).collect();
    let records = import(&cluster, &endpoints.join(","), 30_000);
    for other in &others {
        wait_until(TIMEOUT, || cluster.status(*other).filter(|row| row["records"] == 30_000));
    }
    let told = run(&["snapshot", "--endpoints", &endpoints.join(",")]);
    assert!(told.out.matches("a snapshot up to entry ").count() == 2, "{}{}", told.out, told.err);
    cluster.start_node(away);
    let received = |row: &serde_json::Value| row["snapshots"]["receiving"]["received"].as_u64();
    wait_until(TIMEOUT, || cluster.status(away).filter(|row| received(row) > Some(500_000)));
    cluster.nodes[away].as_ref().unwrap().signal("STOP");
    // Without a setting, a single write may wait for thirty seconds.
    wait_until(Duration::from_secs(25), || {
        let mut rows = others.iter().filter_map(|other| cluster.status(*other));
        let failed =
            |row: serde_json::Value| row["snapshots"]["sending"][0]["failures"].as_u64() > Some(0);
        rows.any(failed).then_some(())
    });
    cluster.nodes[away].as_ref().unwrap().signal("CONT");
    cluster.wait_ready(&[0, 1, 2]);
    let held = run(&["scan", "--consistency", "eventual", "--endpoints", &cluster.clients[away]]);
    assert!(held.out == records, "{} of {} bytes", held.out.len(), records.len());
}
