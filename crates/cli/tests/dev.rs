//! `dev`, from outside: what it prints, and which files and processes it leaves.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::TcpListener;

use support::{Dev, Process, TIMEOUT, d_engine, processes_of, run, serve, wait_until};

#[test]
fn ctrl_c_and_sigterm_stop_every_node_in_order() {
    for signal in ["INT", "TERM"] {
        let dev = Dev::start();
        dev.ok(&["put", "k", "v"]);
        // A terminal sends Ctrl-C to a whole process group: the nodes are in groups of their own,
        // and `dev` stops them.
        for id in 1..=3 {
            assert_ne!(process_group(dev.node_process(id)), process_group(dev.process.id()));
        }
        dev.process.signal(signal);
        let dir = dev.dir.to_str().unwrap().to_owned();
        let ended = dev.process.finish();
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert_eq!(processes_of(&dir), Vec::<u32>::new(), "a process is left");
        // An orderly stop: each node has logged it.
        for id in 1..=3 {
            let log = fs::read_to_string(dev.dir.join(format!("node-{id}.log"))).unwrap();
            assert!(log.contains("stopped"), "node {id}:\n{log}");
        }
    }
}

#[test]
fn when_dev_itself_is_killed_no_node_is_left() {
    let mut dev = Dev::start();
    let dir = dev.dir.to_str().unwrap().to_owned();
    assert_eq!(processes_of(&dir).len(), 4);
    dev.process.kill();
    wait_until(TIMEOUT, || processes_of(&dir).is_empty().then_some(()));
}

#[test]
fn a_temporary_directory_is_removed_at_a_clean_end() {
    let mut dev = Process::start(d_engine().args(["dev", "--ephemeral", "--nodes", "1"]));
    let mut lines = dev.lines();
    let data = lines.wait_for("  data ");
    let dir = data.split_whitespace().nth(1).unwrap();
    let _strays = support::Strays(dir.to_owned());
    lines.wait_for("  ready ");
    assert!(fs::exists(dir).unwrap());
    dev.signal("INT");
    assert_eq!(dev.finish().code, Some(0));
    assert!(!fs::exists(dir).unwrap(), "{dir} was not removed");
}

#[test]
fn a_node_killed_by_hand_is_told_and_comes_back_by_the_command_that_is_printed() {
    let mut dev = Dev::start();
    dev.ok(&["put", "before", "1"]);
    let leader = dev.leader();
    support::send("KILL", dev.node_process(leader));
    let told = dev.lines.wait_for("has ended");
    assert!(told.contains(&format!("node {leader}")) && told.contains("signal: 9"), "{told}");
    let told = dev.lines.wait_for("start it again with: d-engine serve --config ");
    let config = told.rsplit(' ').next().unwrap().to_owned();
    dev.lines.wait_for("  leader    node ");
    dev.ok(&["put", "meanwhile", "2"]);

    let node = serve(config.as_ref());
    dev.lines.wait_for("was started by hand, and is ready");
    let endpoints: Vec<String> = dev.endpoints.split(',').map(str::to_owned).collect();
    let address = &endpoints[leader as usize - 1];
    wait_until(TIMEOUT, || {
        let args =
            ["get", "--consistency", "eventual", "--endpoints", address, "before", "meanwhile"];
        (dev.run(&args).out == "before\t1\nmeanwhile\t2\n").then_some(())
    });
    dev.process.signal("INT");
    dev.lines.wait_for(&format!("node {leader}    was started by hand and keeps running"));
    assert_eq!(dev.process.finish().code, Some(0));
    drop(node);
}

#[test]
fn the_data_in_a_directory_of_ones_own_are_there_the_next_time() {
    let dev = Dev::start();
    dev.ok(&["put", "k", "v"]);
    dev.process.signal("TERM");
    assert_eq!(dev.process.finish().code, Some(0));
    let dir = dev.dir.to_str().unwrap();

    let other = run(&["dev", "--dir", dir, "--nodes", "5"]);
    assert_eq!(other.code, Some(2), "{}", other.err);
    assert!(other.err.contains("has 3 nodes"), "{}", other.err);

    let mut again = Process::start(d_engine().args(["dev", "--dir", dir]));
    again.lines().wait_for("  ready ");
    assert_eq!(run(&["get", "--endpoints", &dev.endpoints, "k"]).out, "v");
    again.signal("INT");
    assert_eq!(again.finish().code, Some(0));

    // A member without its config is refused; the others are not started without it.
    fs::remove_file(dev.dir.join("node-2.toml")).unwrap();
    let partial = run(&["dev", "--dir", dir]);
    assert_eq!(partial.code, Some(2), "{}", partial.err);
    assert!(partial.err.contains("node-2.toml is missing"), "{}", partial.err);
}

/// If a node cannot start, `dev` prints the end of its log and stops the others.
#[test]
fn a_node_that_cannot_start_ends_it_all() {
    let dev = Dev::start();
    dev.process.signal("TERM");
    assert_eq!(dev.process.finish().code, Some(0));
    let taken = TcpListener::bind(dev.endpoints.split(',').next().unwrap()).unwrap();
    let dir = dev.dir.to_str().unwrap();
    let ended = run(&["dev", "--dir", dir]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(
        ended.err.contains("node 1 has ended") && ended.err.contains("its log"),
        "{}",
        ended.err
    );
    wait_until(TIMEOUT, || processes_of(dir).is_empty().then_some(()));
    drop(taken);
}

/// The default ports serve one cluster: a second one is refused before anything is started.
#[test]
fn a_port_that_is_taken_is_named() {
    // The port is in use either way: by this test, or by another process on the machine.
    let _taken = TcpListener::bind("127.0.0.1:7009");
    let dir = tempfile::tempdir().unwrap();
    let ended = run(&["dev", "--nodes", "9", "--dir", dir.path().to_str().unwrap()]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(
        ended.err.contains("cannot be used") && ended.err.contains("--ephemeral"),
        "{}",
        ended.err
    );
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// Returns the process group of a process: the third field after the name in parentheses.
fn process_group(process: u32) -> String {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let behind_name = stat.rsplit_once(')').unwrap().1;
    behind_name.split_whitespace().nth(2).unwrap().to_owned()
}
