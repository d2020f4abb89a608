//! `log dump` and `snapshot inspect`: the files of real nodes, whole, damaged, and in use.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::{Cluster, Finished, Process, TIMEOUT, d_engine, run, serve, wait_until};

fn dump(dir: &Path, more: &[&str]) -> Finished {
    let dir = dir.to_str().unwrap();
    run(&[&["log", "dump", "--data-dir", dir], more].concat())
}

fn json_lines(ended: &Finished) -> Vec<Value> {
    ended.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines of entries and of damage, without the header.
fn body(ended: &Finished) -> Vec<&str> {
    let lines = ended.out.lines().skip_while(|line| !line.contains("INDEX"));
    lines.skip(1).collect()
}

/// A cluster that has taken these records; node 1's data directory.
fn cluster(records: usize) -> (Cluster, PathBuf) {
    let cluster = Cluster::start();
    let file = cluster.dir.path().join("records.tsv");
    let lines: Vec<String> = (0..records).map(|n| format!("key-{n:05}\tvalue-{n:05}\n")).collect();
    fs::write(&file, lines.concat()).unwrap();
    let (file, endpoints) = (file.to_str().unwrap(), cluster.endpoints());
    let imported = run(&["import", "--endpoints", &endpoints, file]);
    assert_eq!(imported.code, Some(0), "{}{}", imported.out, imported.err);
    wait_until(TIMEOUT, || cluster.status(0).filter(|row| row["records"] == records));
    let dir = cluster.dir.path().join("data-1");
    (cluster, dir)
}

fn stop_all(cluster: &mut Cluster) {
    for node in &mut cluster.nodes {
        let node = node.take().unwrap();
        node.signal("TERM");
        assert_eq!(node.finish().code, Some(0));
    }
}

#[test]
fn the_log_of_a_node_is_printed_while_it_runs_and_after_it_was_stopped() {
    let (mut cluster, dir) = cluster(3_000);
    let all = cluster.endpoints();
    let taken = run(&["snapshot", "--json", "--node", "1", "--endpoints", &all]);
    assert_eq!(taken.code, Some(0), "{}", taken.err);
    let running = dump(&dir, &["--to", "3"]);
    assert_eq!(running.code, Some(0), "{}{}", running.out, running.err);
    assert!(running.err.contains(" open; the end of its log may change"), "{}", running.err);
    stop_all(&mut cluster);

    let whole = dump(&dir, &[]);
    assert_eq!((whole.code, whole.err.as_str()), (Some(0), ""), "{}", whole.out);
    assert!(whole.out.contains(&format!("data directory {}\n", dir.display())));
    assert!(whole.out.contains("  a start      reads the whole log\n"), "{}", &whole.out[..2_000]);
    let puts = body(&whole).into_iter().filter(|line| line.contains("command")).count();
    assert_eq!(puts, 3_000);
    let line = body(&whole).into_iter().find(|line| line.contains("key-00017")).unwrap();
    assert!(line.contains("value-00017") || line.ends_with("...\""), "{line}");
    assert!(line.contains("  command     20") && line.contains("Z  "), "{line}");

    let json = dump(&dir, &["--json", "--bytes", "200"]);
    let lines = json_lines(&json);
    let head = &lines[0]["directory"];
    assert_eq!((&head["node"], &head["start"]["outcome"]), (&1.into(), &"starts".into()));
    assert_eq!(lines.len() - 1, body(&whole).len());
    let indexes: Vec<u64> = lines[1..].iter().map(|it| it["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, (1..=indexes.len() as u64).collect::<Vec<_>>());
    let kinds: Vec<&Value> = lines[1..].iter().map(|line| &line["kind"]).collect();
    assert!(kinds.contains(&&"no-op".into()), "{kinds:?}");
    assert!(lines.iter().any(|it| it["preview"].as_str().unwrap_or("").contains("value-00017")));
    let some = dump(&dir, &["--from", "10", "--to", "12", "--json"]);
    let indexes: Vec<u64> =
        json_lines(&some)[1..].iter().map(|it| it["index"].as_u64().unwrap()).collect();
    assert_eq!(indexes, [10, 11, 12]);

    snapshot_of(&dir, &taken, head);
    closed_pipe(&dir);
    interrupted(&dir);
}

/// The snapshot has the checksum that the node has reported.
fn snapshot_of(dir: &Path, taken: &Finished, head: &Value) {
    let reported: Value = serde_json::from_str(&taken.out).unwrap();
    let name = head["snapshots"][0]["file"].as_str().unwrap();
    let file = dir.join("snapshots").join(name);
    let file = file.to_str().unwrap();
    let whole = run(&["snapshot", "inspect", file, "--json"]);
    assert_eq!((whole.code, whole.err.as_str()), (Some(0), ""), "{}", whole.out);
    let found: Value = serde_json::from_str(&whole.out).unwrap();
    assert_eq!(found["sha256"], reported[0]["sha256"]);
    assert_eq!(found["header"]["last_included"]["index"], reported[0]["index"]);
    assert_eq!(found["header"]["members"]["members"].as_array().unwrap().len(), 3);
    let text = run(&["snapshot", "inspect", file]);
    assert!(text.out.contains(found["sha256"].as_str().unwrap()), "{}", text.out);
    assert!(text.out.contains("machine        d-engine/key-value"), "{}", text.out);

    let mut content = fs::read(file).unwrap();
    let at = content.len() - 60;
    content[at] ^= 1;
    let damaged = dir.with_file_name("damaged.snap");
    fs::write(&damaged, content).unwrap();
    let damaged = run(&["snapshot", "inspect", damaged.to_str().unwrap()]);
    assert_eq!(damaged.code, Some(1));
    assert!(damaged.out.contains("DAMAGE         chunk 0 at offset "), "{}", damaged.out);
    assert!(damaged.err.contains("is damaged; nothing was changed"), "{}", damaged.err);
}

/// `| head`.
fn closed_pipe(dir: &Path) {
    let mut process = Process::start(d_engine().args(["log", "dump", "--data-dir"]).arg(dir));
    let mut line = String::new();
    BufReader::new(process.stdout()).read_line(&mut line).unwrap();
    assert!(line.starts_with("data directory "));
    let ended = process.finish();
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

/// Nobody reads the pipe, so the command waits; Ctrl-C ends it.
fn interrupted(dir: &Path) {
    let mut process = Process::start(d_engine().args(["log", "dump", "--data-dir"]).arg(dir));
    let mut out = BufReader::new(process.stdout());
    out.read_line(&mut String::new()).unwrap();
    process.signal("INT");
    let ended = process.finish();
    assert_eq!(ended.code, Some(130), "{}", ended.err);
    assert!(ended.err.contains("interrupted by Ctrl-C"), "{}", ended.err);
}

/// The bytes of one record change on the disk: the dump names the place and what is lost, in the
/// words of the node that refuses to start, and changes nothing.
#[test]
fn a_directory_that_refuses_to_start_is_explained() {
    let (mut cluster, dir) = cluster(200);
    stop_all(&mut cluster);
    let whole = json_lines(&dump(&dir, &["--json"]));
    let victim = whole.iter().find(|it| it["preview"].as_str().unwrap_or("").contains("key-00017"));
    let victim = victim.unwrap();
    let segment = format!("{:020}.seg", victim["segment"].as_u64().unwrap());
    let path = dir.join("log").join(&segment);
    let mut content = fs::read(&path).unwrap();
    content[victim["offset"].as_u64().unwrap() as usize + 50] ^= 1;
    fs::write(&path, &content).unwrap();

    let damaged = dump(&dir, &[]);
    assert_eq!(damaged.code, Some(1), "{}", damaged.out);
    assert!(damaged.err.contains("one place is damaged; nothing was changed"), "{}", damaged.err);
    let lines = body(&damaged);
    let at = lines.iter().position(|line| line.starts_with("DAMAGE  ")).unwrap();
    assert!(lines[at].contains(&segment) && lines[at].contains(" lost"), "{}", lines[at]);
    let index = |line: &str| line.split_whitespace().next().unwrap().parse::<u64>().unwrap();
    let (before, after) = (index(lines[at - 1]), index(lines[at + 1]));
    let lost = victim["index"].as_u64().unwrap();
    assert!(before < lost && lost < after, "{before} {lost} {after}");

    let json = dump(&dir, &["--json"]);
    assert_eq!(json.code, Some(1));
    let lines = json_lines(&json);
    let damage: Vec<&Value> = lines.iter().filter_map(|line| line.get("damage")).collect();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0]["first_lost"], before + 1);
    assert_eq!(damage[0]["last_lost"], after - 1);
    let head = &lines[0]["directory"];
    assert_eq!(head["start"]["outcome"], "refuses");
    assert!(!head["start"]["next"].as_array().unwrap().is_empty());

    let refused = serve(&cluster.config(0)).finish();
    assert_eq!(refused.code, Some(1));
    let log = fs::read_to_string(cluster.config(0).with_extension("log")).unwrap();
    let reason = head["start"]["reason"].as_str().unwrap();
    assert!(log.contains(reason), "{reason}\n{log}");
    assert_eq!(fs::read(&path).unwrap(), content, "the segment was changed");
}

#[test]
fn what_cannot_be_inspected_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dump(&dir.path().join("missing"), &[]);
    assert_eq!(missing.code, Some(2));
    assert!(
        missing.err.contains("missing") && missing.err.contains("No such file"),
        "{}",
        missing.err
    );
    let empty = dump(dir.path(), &[]);
    assert_eq!(empty.code, Some(2));
    assert!(empty.err.contains("is not the data directory of a node"), "{}", empty.err);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "it was changed");
    let exchanged = dump(dir.path(), &["--from", "9", "--to", "3"]);
    assert_eq!(exchanged.code, Some(2));
    let file = dir.path().join("none.snap");
    assert_eq!(run(&["snapshot", "inspect", file.to_str().unwrap()]).code, Some(2));
    let both = run(&["snapshot", "--node", "2", "inspect", file.to_str().unwrap()]);
    assert_eq!(both.code, Some(2));
}
