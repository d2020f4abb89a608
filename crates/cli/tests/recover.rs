//! `recover` beside nodes that live, beside nodes that do not, and what a start says afterwards.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{
    Cluster, Finished, Process, Strays, TIMEOUT, d_engine, free_address, run, serve, wait_until,
};

fn put(cluster: &Cluster, key: &str, value: &str) {
    let put = run(&["put", "--endpoints", &cluster.endpoints(), key, value]);
    assert_eq!(put.code, Some(0), "{}", put.err);
    // Every node has it before any is killed.
    for node in &cluster.clients {
        let got = run(&["get", "--endpoints", node, key]);
        assert_eq!(got.out.trim_end(), value, "{}", got.err);
    }
}

fn kill(cluster: &mut Cluster, nodes: &[usize]) {
    for node in nodes {
        cluster.nodes[*node].take().unwrap().kill();
    }
}

/// The data directory of node 3.
fn third(cluster: &Cluster) -> PathBuf {
    cluster.dir.path().join("data-3")
}

fn recover(dir: &Path, more: &[&str]) -> Finished {
    let dir = dir.to_str().unwrap();
    run(&[&["recover", "--force-new-cluster", "--data-dir", dir], more].concat())
}

/// Everything beside the data directories.
fn beside(cluster: &Cluster) -> Vec<String> {
    let listed = fs::read_dir(cluster.dir.path()).unwrap();
    let names = listed.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains("recover")).collect();
    names.sort();
    names
}

/// Two clusters would answer clients.
#[test]
fn beside_a_majority_that_answers_nothing_is_done() {
    let mut cluster = Cluster::start();
    put(&cluster, "a", "one");
    let running = recover(&third(&cluster), &[]);
    assert_eq!(running.code, Some(1), "{}", running.err);
    assert!(running.err.contains("is in use by process"), "{}", running.err);
    kill(&mut cluster, &[2]);
    let refused = recover(&third(&cluster), &[]);
    assert_eq!(refused.code, Some(1), "{}{}", refused.out, refused.err);
    let said = "a majority of the voters answers: node 1 (127.0.0.1:";
    assert!(refused.err.contains(said) && refused.err.contains("node 2 ("), "{}", refused.err);
    // One that answers is a majority together with this one.
    let (leader, other) = if cluster.leader() == 0 { (0, 1) } else { (1, 0) };
    kill(&mut cluster, &[leader]);
    let refused = recover(&third(&cluster), &[]);
    assert_eq!(refused.code, Some(1), "{}{}", refused.out, refused.err);
    let said = "with node 3, those that answer are a majority of the voters: node";
    assert!(refused.err.contains(said), "{}", refused.err);
    assert!(refused.err.contains("start node 3 on this directory"), "{}", refused.err);
    assert_eq!(beside(&cluster), [""; 0], "nothing was changed");
    cluster.start_node(2);
    cluster.wait_ready(&[other, 2]);
    let got = run(&["get", "--endpoints", &cluster.endpoints(), "a"]);
    assert_eq!(got.out.trim_end(), "one", "{}", got.err);
}

/// One of four that still runs is no majority together with this one. A warning names it.
#[test]
fn an_old_voter_that_still_runs_without_a_majority_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let _strays = Strays(dir.path().to_str().unwrap().to_owned());
    let mut command = d_engine();
    command.args(["dev", "--nodes", "4", "--ephemeral", "--dir"]).arg(dir.path());
    let mut dev = Process::start(&mut command);
    let mut lines = dev.lines();
    lines.wait_for("  ready ");
    dev.signal("TERM");
    assert_eq!(dev.finish().code, Some(0));
    let config = dir.path().join("node-2.toml");
    let text = fs::read_to_string(&config).unwrap();
    let address = text.lines().find_map(|line| line.strip_prefix("peer_listen = ")).unwrap();
    let _node = serve(&config);
    wait_until(TIMEOUT, || std::net::TcpStream::connect(address.trim_matches('"')).ok());
    let done = recover(&dir.path().join("node-1"), &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    assert!(done.out.contains("asked, without an answer: node 3 ("), "{}", done.out);
    assert!(!done.out.contains("node 2 ("), "{}", done.out);
    assert!(done.err.contains("node 2 (127.0.0.1:"), "{}", done.err);
    assert!(done.err.contains("of the old cluster still runs"), "{}", done.err);
}

/// Inspects, recovers node 3, and starts it with a new configuration.
fn recovered(cluster: &mut Cluster) -> PathBuf {
    kill(cluster, &[0, 1, 2]);
    let (peer, client) = (free_address(), cluster.clients[2].clone());
    let done = recover(&third(cluster), &["--peer", &peer, "--client", &client]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    let again = recover(&third(cluster), &[]);
    assert_eq!(again.code, Some(2), "{}{}", again.out, again.err);
    assert!(again.err.contains("node 3 is the only voter of its cluster"), "{}", again.err);
    let names = beside(cluster);
    let [old] = names.as_slice() else { panic!("{names:?}") };
    assert!(done.out.contains(&format!("{old} (retired)")), "{}", done.out);
    assert!(done.out.contains(&format!("join = [\"{peer}\"]")), "{}", done.out);
    let config =
        format!("data_dir = \"data-3\"\npeer_listen = \"{peer}\"\nclient_listen = \"{client}\"\n");
    fs::write(cluster.config(2), config).unwrap();
    cluster.dir.path().join(old)
}

fn writes_and_reads(cluster: &mut Cluster) {
    cluster.start_node(2);
    cluster.wait_ready(&[2]);
    let client = cluster.clients[2].clone();
    let got = run(&["get", "--endpoints", &client, "a"]);
    assert_eq!(got.out.trim_end(), "one", "{}", got.err);
    let put = run(&["put", "--endpoints", &client, "b", "two"]);
    assert_eq!(put.code, Some(0), "{}", put.err);
}

#[test]
fn a_retired_directory_does_not_start_and_says_where_its_log_continues() {
    let mut cluster = Cluster::start();
    put(&cluster, "a", "one");
    kill(&mut cluster, &[0, 1, 2]);
    let dirs = ["data-1", "data-2", "data-3"].map(|name| cluster.dir.path().join(name));
    let dirs = dirs.map(|dir| dir.to_str().unwrap().to_owned());
    let all = run(&["recover", "--inspect", &dirs[0], &dirs[1], &dirs[2]]);
    assert_eq!(all.code, Some(0), "{}{}", all.out, all.err);
    assert!(all.out.contains("that is a majority, so start these nodes"), "{}", all.out);
    assert_eq!(all.out.matches("<- take this one").count(), 1, "{}", all.out);
    cluster.start_all();
    // The old configuration, for its old directory under its new name and for the new one.
    let old_config = fs::read_to_string(cluster.config(2)).unwrap();
    let old = recovered(&mut cluster);
    let serve_with = |name: &str, config: &str| {
        let path = cluster.dir.path().join(name);
        fs::write(&path, config).unwrap();
        let ended = serve(&path).finish();
        (ended.code, fs::read_to_string(path.with_extension("log")).unwrap_or_default())
    };
    let renamed = old.file_name().unwrap().to_str().unwrap();
    let (code, log) = serve_with("retired.toml", &old_config.replace("data-3", renamed));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("was retired by `recover` on ") && log.contains("/data-3"), "{log}");
    let (code, log) = serve_with("stale.toml", &old_config);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("belongs to cluster ") && log.contains("001122"), "{log}");
    let inspected = run(&["recover", "--inspect", old.to_str().unwrap()]);
    assert_eq!(inspected.code, Some(1), "{}{}", inspected.out, inspected.err);
    assert!(inspected.out.contains("is not taken: it was retired by"), "{}", inspected.out);
    let dumped = run(&["log", "dump", "--data-dir", old.to_str().unwrap()]);
    assert_eq!(dumped.code, Some(0), "{}{}", dumped.out, dumped.err);
    assert!(
        dumped.out.contains("refuses: ") && dumped.out.contains("retired by"),
        "{}",
        dumped.out
    );
    writes_and_reads(&mut cluster);
}

/// The machine's own files stay in the old directory: the state comes from snapshot and log.
#[test]
fn a_state_machine_with_files_in_the_directory_is_rebuilt() {
    let mut cluster = Cluster::start_with_args("", &["--state-machine", "disk"]);
    put(&cluster, "a", "one");
    let snapshot = run(&["snapshot", "--endpoints", &cluster.endpoints()]);
    assert_eq!(snapshot.code, Some(0), "{}", snapshot.err);
    let old = recovered(&mut cluster);
    assert!(old.join("kv-disk").exists() && !third(&cluster).join("kv-disk").exists());
    writes_and_reads(&mut cluster);
}

/// Files that are not in the directory are still bound to the old one, and are rebound.
#[test]
fn a_state_machine_with_files_elsewhere_keeps_them() {
    let mut cluster = Cluster::start_with_args("", &["--state-machine", "disk"]);
    put(&cluster, "a", "one");
    let old = recovered(&mut cluster);
    let (from, to) = (old.join("kv-disk"), third(&cluster).join("kv-disk"));
    assert!(Command::new("cp").arg("-r").args([&from, &to]).status().unwrap().success());
    writes_and_reads(&mut cluster);
    // It is bound to the new directory now.
    kill(&mut cluster, &[2]);
    fs::remove_dir_all(&from).unwrap();
    fs::remove_file(old.join("retired.meta")).unwrap();
    assert!(Command::new("cp").arg("-r").args([&to, &from]).status().unwrap().success());
    let path = cluster.dir.path().join("back.toml");
    let name = old.file_name().unwrap().to_str().unwrap();
    let config = fs::read_to_string(cluster.config(2)).unwrap().replace("data-3", name);
    fs::write(&path, config).unwrap();
    let mut command = d_engine();
    command.args(["serve", "--state-machine", "disk", "--config"]).arg(&path);
    let back = Process::start(&mut command).finish();
    assert_eq!(back.code, Some(1), "{}{}", back.out, back.err);
    assert!(back.err.contains("the state machine's files belong to cluster"), "{}", back.err);
}

/// Two of three old nodes come back on their directories, beside the new cluster of the third.
#[test]
fn an_old_majority_that_comes_back_elects_no_leader() {
    let mut cluster = Cluster::start();
    put(&cluster, "a", "one");
    kill(&mut cluster, &[0, 1, 2]);
    let done = recover(&third(&cluster), &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    // At the address at which the old nodes look for node 3.
    let before = fs::read_to_string(cluster.config(2)).unwrap();
    let peer = before.lines().rfind(|line| line.starts_with("peer_addr")).unwrap();
    let peer = peer.replace("peer_addr", "peer_listen");
    let client = &cluster.clients[2];
    let config = format!("data_dir = \"data-3\"\n{peer}\nclient_listen = \"{client}\"\n");
    fs::write(cluster.config(2), config).unwrap();
    cluster.start_node(2);
    cluster.wait_ready(&[2]);
    let abstains = "this node neither votes nor campaigns";
    for node in [0, 1] {
        cluster.start_node(node);
    }
    for node in [0, 1] {
        wait_until(TIMEOUT, || {
            let row = cluster.status(node)?;
            let alarms = row["alarms"].to_string();
            (alarms.contains(abstains) && row["leader"].is_null()).then_some(())
        });
    }
    // The new cluster names them.
    wait_until(TIMEOUT, || {
        let alarms = cluster.status(2)?["alarms"].to_string();
        alarms.contains("still runs on a directory of the cluster that this one").then_some(())
    });
    let put = ["put", "--timeout", "1s", "--endpoints", &cluster.clients[0], "b", "two"];
    assert_ne!(run(&put).code, Some(0));

    // The mistake was the recovery.
    kill(&mut cluster, &[0, 1, 2]);
    let nodes = [0, 1].map(|node| {
        let config = cluster.config(node);
        let args = ["serve", "--ignore-superseded", "--config", config.to_str().unwrap()];
        Process::start(d_engine().args(args))
    });
    cluster.wait_ready(&[0, 1]);
    let got = run(&["get", "--endpoints", &cluster.clients[0], "a"]);
    assert_eq!(got.out.trim_end(), "one", "{}", got.err);
    drop(nodes);
}

/// Two recovered directories would be two clusters.
#[test]
fn a_second_recovery_is_refused_while_the_first_one_answers_at_its_members_address() {
    let mut cluster = Cluster::start();
    put(&cluster, "a", "one");
    kill(&mut cluster, &[0, 1, 2]);
    let config = fs::read_to_string(cluster.config(2)).unwrap();
    let peers: Vec<&str> =
        config.lines().filter_map(|line| line.strip_prefix("peer_addr = ")).collect();
    let done = recover(&third(&cluster), &[]);
    assert_eq!(done.code, Some(0), "{}{}", done.out, done.err);
    let config = format!(
        "data_dir = \"data-3\"\npeer_listen = {}\nclient_listen = {:?}\n",
        peers[2], cluster.clients[2]
    );
    fs::write(cluster.config(2), config).unwrap();
    cluster.start_node(2);
    cluster.wait_ready(&[2]);
    let refused = recover(&cluster.dir.path().join("data-1"), &[]);
    assert_eq!(refused.code, Some(1), "{}{}", refused.out, refused.err);
    assert!(refused.err.contains("a cluster answers that was made from this one already"));
}
