//! Nodes whose log lines cannot be written, or are not read.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{PipeReader, Write as _, pipe};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use support::{Cluster, TIMEOUT, run, wait_until};

/// The leader dies, which every node logs; the others continue, and stop in an orderly way.
fn a_leader_dies_and_the_others_go_on(stderr: impl Fn() -> Stdio + 'static) {
    let mut cluster = Cluster::prepare("", &[]);
    cluster.stderr = Some(Box::new(stderr));
    cluster.start_all();
    let leader = cluster.leader();
    cluster.nodes[leader].take().unwrap().kill();
    let put = || run(&["put", "--endpoints", &cluster.endpoints(), "key", "value"]);
    wait_until(TIMEOUT, || (put().code == Some(0)).then_some(()));
    for node in cluster.nodes.iter_mut().filter_map(Option::take) {
        node.signal("TERM");
        let ended = node.finish();
        assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    }
}

/// A collector that has stopped reading: the pipe is full, and a write to it would never return.
#[test]
fn nodes_go_on_while_their_stderr_is_a_full_pipe_that_nobody_reads() {
    let kept: Arc<Mutex<Vec<PipeReader>>> = Arc::default();
    a_leader_dies_and_the_others_go_on(move || {
        let (reader, writer) = pipe().unwrap();
        let mut fills = writer.try_clone().unwrap();
        // Fills the pipe and waits; it ends together with the reader.
        std::thread::spawn(move || fills.write_all(&[b'x'; 1 << 20]).ok());
        kept.lock().unwrap().push(reader);
        writer.into()
    });
}

#[test]
fn nodes_go_on_while_the_reader_of_their_stderr_is_gone() {
    a_leader_dies_and_the_others_go_on(|| pipe().unwrap().1.into());
}

#[test]
fn nodes_go_on_while_their_stderr_is_on_a_full_disk() {
    a_leader_dies_and_the_others_go_on(|| {
        File::options().write(true).open("/dev/full").unwrap().into()
    });
}
