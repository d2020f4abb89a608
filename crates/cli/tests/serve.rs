//! `serve`, `put`, `get` and `status` as processes.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use support::{Cluster, Process, TIMEOUT, d_engine, free_address, run, serve, wait_until};

#[test]
fn a_refused_config_exits_2_and_names_file_field_value_and_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    let cases = [
        (
            "data_dir = \"d\"\nelection_timeout_min_ms = 7\n",
            vec!["`election_timeout_min_ms` is 7", "allowed"],
        ),
        ("data_dir = \"d\"\nnode_id = 0\n", vec!["`node_id` is 0", "ids start at 1"]),
        ("data_dir = \"d\"\nelektion = 7\n", vec!["there is no field `elektion`"]),
        ("node_id = 1\n", vec!["`data_dir` is not set"]),
        ("node_id = \"one\"\n", vec!["node_id"]),
    ];
    for (text, named) in cases {
        fs::write(&file, text).unwrap();
        let ended = run(&["serve", "--config", file.to_str().unwrap()]);
        assert_eq!(ended.code, Some(2), "{text}: {}", ended.err);
        for part in named.into_iter().chain([file.to_str().unwrap()]) {
            assert!(ended.err.contains(part), "{part:?} is missing in {:?}", ended.err);
        }
        assert!(!dir.path().join("d").exists(), "the data directory was created");
    }
    let ended = run(&["serve", "--config", "/nonexistent/node.toml"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.err.contains("/nonexistent/node.toml"), "{}", ended.err);
}

#[test]
fn a_put_at_a_follower_is_followed_to_the_leader_and_every_node_answers_gets() {
    let cluster = Cluster::start();
    let leader = cluster.leader();
    let follower = cluster.clients[(leader + 1) % 3].clone();
    let put = run(&["put", "--endpoints", &follower, "greeting", "hello, world"]);
    assert_eq!(put.code, Some(0), "{}", put.err);
    let get = run(&["get", "--endpoints", &follower, "greeting"]);
    assert_eq!((get.code, get.out.as_str()), (Some(0), "hello, world"), "{}", get.err);
    for node in &cluster.clients {
        wait_until(TIMEOUT, || {
            let get = run(&["get", "--consistency", "eventual", "--endpoints", node, "greeting"]);
            (get.out == "hello, world").then_some(())
        });
    }
    let missing = run(&["get", "--endpoints", &follower, "nothing"]);
    assert_eq!((missing.code, missing.out.as_str()), (Some(3), ""));
    assert!(missing.err.contains("\"nothing\" has no value"), "{}", missing.err);
}

#[test]
fn status_shows_every_member_and_fails_without_a_majority() {
    let mut cluster = Cluster::start();
    let leader = cluster.leader();
    // One endpoint is enough.
    let table = run(&["status", "--endpoints", &cluster.clients[0]]);
    assert_eq!(table.code, Some(0), "{}", table.err);
    assert_eq!(table.out.lines().count(), 4, "{}", table.out);
    for address in &cluster.clients {
        assert!(table.out.contains(address.as_str()), "{}", table.out);
    }
    assert_eq!(table.out.matches("leader").count(), 1, "{}", table.out);

    // A dead node has a row that says so; two of three nodes still have a leader.
    let (dead, other) = ((leader + 1) % 3, (leader + 2) % 3);
    cluster.nodes[dead].take().unwrap().kill();
    let table = run(&["status", "--endpoints", &cluster.endpoints()]);
    assert_eq!(table.code, Some(0), "{}", table.err);
    let row = table.out.lines().find(|row| row.contains(&cluster.clients[dead])).unwrap();
    assert!(row.starts_with(&(dead + 1).to_string()) && row.contains("unreachable"), "{row}");

    cluster.nodes[other].take().unwrap().kill();
    let json = run(&["status", "--json", "--endpoints", &cluster.endpoints()]);
    assert_eq!(json.code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&json.out).unwrap();
    assert_eq!(report["leader"], serde_json::Value::Null);
    assert_eq!(report["nodes"].as_array().unwrap().len(), 3);
}

#[test]
fn sigterm_and_ctrl_c_stop_a_node_in_order_and_free_its_directory() {
    let dir = tempfile::tempdir().unwrap();
    let config = lonely(dir.path());
    for signal in ["TERM", "INT"] {
        let mut node = ready(&config);
        // The directory is locked while the node runs.
        let second = run(&["serve", "--config", config.to_str().unwrap()]);
        assert_eq!(second.code, Some(1), "{}", second.err);
        assert!(second.err.contains("in use"), "{}", second.err);
        node.signal(signal);
        node.close_stdin();
        assert_eq!(node.finish().code, Some(0));
    }
    // The lock is free again.
    ready(&config);
}

#[test]
fn kill_9_and_a_restart_keep_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let config = lonely(dir.path());
    let address = address_of(&config);
    let mut node = ready(&config);
    for n in 0..20 {
        let put = run(&["put", "--endpoints", &address, &format!("k{n}"), "v"]);
        assert_eq!(put.code, Some(0), "{}", put.err);
    }
    node.kill();
    let _node = ready(&config);
    for n in 0..20 {
        let get = run(&["get", "--endpoints", &address, &format!("k{n}")]);
        assert_eq!((get.code, get.out.as_str()), (Some(0), "v"), "{}", get.err);
    }
}

#[test]
fn a_node_stops_when_the_parent_that_holds_its_stdin_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let config = lonely(dir.path());
    let mut command = d_engine();
    command.args(["serve", "--stop-on-stdin-close", "--config"]).arg(&config).stdin(Stdio::piped());
    let mut node = Process::start(&mut command);
    let address = address_of(&config);
    wait_until(TIMEOUT, || {
        let put = run(&["put", "--endpoints", &address, "k", "v"]);
        (put.code == Some(0)).then_some(())
    });
    node.close_stdin();
    assert_eq!(node.finish().code, Some(0));
}

#[test]
fn a_cluster_that_is_not_there_is_an_error_with_a_next_step() {
    let put = run(&["put", "--endpoints", "127.0.0.1:1", "--timeout", "200ms", "k", "v"]);
    // Not 4: the command certainly was not sent.
    assert_eq!(put.code, Some(1), "{}", put.err);
    assert!(put.err.contains("127.0.0.1:1 cannot be reached"), "{}", put.err);
    let wrong = run(&["get", "--endpoints", "not an address", "k"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
    let wrong = run(&["get", "--timeout", "soon", "k"]);
    assert_eq!(wrong.code, Some(2), "{}", wrong.err);
}

#[test]
fn help_of_every_verb_has_examples_and_the_exit_codes_are_told() {
    let help = run(&["--help"]);
    assert_eq!(help.code, Some(0));
    assert!(help.out.contains("Exit codes"), "{}", help.out);
    let verbs = [
        "dev",
        "serve",
        "put",
        "get",
        "delete",
        "cas",
        "scan",
        "import",
        "status",
        "snapshot",
        "transfer-leader",
        "skip-entry",
        "member",
        "demo",
    ];
    for verb in verbs {
        assert!(help.out.contains(verb), "{verb}");
        let help = run(&[verb, "--help"]);
        assert_eq!(help.code, Some(0));
        assert!(help.out.contains(&format!("    d-engine {verb}")), "{}", help.out);
    }
}

/// Writes the config of a single node.
fn lonely(dir: &std::path::Path) -> std::path::PathBuf {
    let (peers, clients) = (free_address(), free_address());
    let text =
        format!("data_dir = \"data\"\npeer_listen = \"{peers}\"\nclient_listen = \"{clients}\"\n");
    let config = dir.join("node.toml");
    fs::write(&config, text).unwrap();
    config
}

fn address_of(config: &std::path::Path) -> String {
    let text = fs::read_to_string(config).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("client_listen = ")).unwrap();
    line.trim_matches('"').to_owned()
}

/// Starts a node and waits for the line that reports that it is ready.
fn ready(config: &std::path::Path) -> Process {
    let mut node = serve(config);
    let mut line = String::new();
    BufReader::new(node.stdout()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("node 1 is ready, clients at {}\n", address_of(config)));
    node
}
