//! `demo`, from outside.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;

use support::{Process, Strays, TIMEOUT, d_engine, processes_of, run, wait_until};

#[test]
fn the_demo_loses_nothing_and_says_what_it_shows() {
    let demo = run(&["demo"]);
    assert_eq!(demo.code, Some(0), "{}{}", demo.out, demo.err);
    for part in [
        "kill -9   node",
        "failover  ",
        "restart   node",
        "node 1 separately (eventual reads): 8192 of 8192 records correct",
        "node 2 separately (eventual reads): 8192 of 8192 records correct",
        "node 3 separately (eventual reads): 8192 of 8192 records correct",
        "nothing acknowledged was lost",
        "does not show\npower loss",
    ] {
        assert!(demo.out.contains(part), "{part:?} is missing in\n{}", demo.out);
    }
    // The temporary directory is removed, and every process that had it open has ended.
    let dir = demo.out.lines().find_map(|line| line.strip_prefix("  data      ")).unwrap();
    let dir = dir.split(' ').next().unwrap();
    assert!(!std::path::Path::new(dir).exists(), "{dir} was not removed");
    assert_eq!(processes_of(dir), Vec::<u32>::new());
}

#[test]
fn a_small_file_and_a_directory_of_ones_own_will_do() {
    let dir = tempfile::tempdir().unwrap();
    let (input, data) = (dir.path().join("words.tsv"), dir.path().join("data"));
    fs::write(&input, "one\t1\ntwo\t2\none\tuno\n").unwrap();
    let args = ["demo", "--input", input.to_str().unwrap(), "--dir", data.to_str().unwrap()];
    let demo = run(&args);
    assert_eq!(demo.code, Some(0), "{}{}", demo.out, demo.err);
    assert!(demo.out.contains("2 records from") && demo.out.contains("1 replaced"), "{}", demo.out);
    // Data, configs and logs stay.
    for name in ["node-1", "node-1.toml", "node-1.log", "node-3"] {
        assert!(data.join(name).exists(), "{name}");
    }
    // They are not overwritten either.
    let again = run(&args);
    assert_eq!(again.code, Some(2), "{}", again.err);
    assert!(again.err.contains("it is not empty"), "{}", again.err);
}

#[test]
fn a_bad_line_is_refused_before_anything_is_started() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("words.tsv");
    fs::write(&input, "one\t1\nno tab here\n").unwrap();
    let demo = run(&["demo", "--input", input.to_str().unwrap()]);
    assert_eq!(demo.code, Some(2));
    assert!(demo.err.contains("words.tsv, line 2: there is no tab"), "{}", demo.err);
}

#[test]
fn an_interrupted_demo_leaves_no_process_behind() {
    for (signal, code) in [("INT", Some(130)), ("TERM", Some(130)), ("KILL", None)] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data").to_str().unwrap().to_owned();
        let _strays = Strays(data.clone());
        let demo = Process::start(d_engine().args(["demo", "--dir", &data]));
        wait_until(TIMEOUT, || (processes_of(&data).len() >= 4).then_some(()));
        demo.signal(signal);
        assert_eq!(demo.finish().code, code, "{signal}");
        wait_until(TIMEOUT, || processes_of(&data).is_empty().then_some(()));
    }
}

/// A node that hangs does not notice that its stdin is closed: the demo kills it.
#[test]
fn an_interrupted_demo_kills_even_a_node_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data").to_str().unwrap().to_owned();
    let _strays = Strays(data.clone());
    let demo = Process::start(d_engine().args(["demo", "--dir", &data]));
    let node = wait_until(TIMEOUT, || {
        let nodes = processes_of(&data).into_iter().filter(|id| *id != demo.id());
        nodes.max().filter(|_| processes_of(&data).len() >= 4)
    });
    support::send("STOP", node);
    demo.signal("INT");
    assert_eq!(demo.finish().code, Some(130));
    wait_until(TIMEOUT, || processes_of(&data).is_empty().then_some(()));
}
