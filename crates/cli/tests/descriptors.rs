//! Nodes and the limit on file descriptors.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write as _;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use d_engine_client::{ClientOptions, KvClient};
use support::{Process, TIMEOUT, free_address, run};

/// The bytes with which every HTTP/2 connection begins, and an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Starts a single node under `ulimit` with these arguments.
fn limited(dir: &Path, ulimit: &str) -> (Process, String) {
    let (peers, clients) = (free_address(), free_address());
    let text = format!(
        "data_dir = \"data\"\npeer_listen = \"{peers}\"\nclient_listen = \"{clients}\"\n[limits]\n\
         segment_bytes = 1048576\nmax_command_bytes = 65536\nmax_append_bytes = 65536\n"
    );
    let config = dir.join("node.toml");
    fs::write(&config, text).unwrap();
    let script = format!("ulimit {ulimit}; exec \"$0\" serve --config \"$1\"");
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, env!("CARGO_BIN_EXE_d-engine")])
        .arg(&config)
        .env_remove("RUST_LOG");
    (Process::start(&mut command), clients)
}

/// As many clients as the process may have descriptors open a connection and send only the preface
/// of HTTP/2, while another client writes so much that the log needs new files.
#[test]
fn idle_clients_leave_the_node_its_own_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, address) = limited(dir.path(), "-n 256");
    node.lines().wait_for("is ready");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let kv = KvClient::connect([&address], ClientOptions::default().timeout(TIMEOUT)).unwrap();
        kv.put("first", "value").await.unwrap();
        // Connections that the node does not accept wait in the system's queue, which is short.
        let idle: Vec<TcpStream> = (0..245)
            .map(|_| {
                let mut client = TcpStream::connect(&address).unwrap();
                client.write_all(PREFACE).unwrap();
                client
            })
            .collect();
        for n in 0..40 {
            kv.put(format!("key {n}"), vec![7; 60_000]).await.unwrap();
        }
        drop(idle);
    });
    node.signal("TERM");
    let ended = node.finish();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let told = "fewer clients can be connected than limits.max_client_connections allows";
    assert!(ended.err.contains(told) && ended.err.contains("256"), "{}", ended.err);
}

#[test]
fn a_node_raises_its_soft_limit_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut node, _) = limited(dir.path(), "-S -n 256");
    node.lines().wait_for("is ready");
    let limits = fs::read_to_string(format!("/proc/{}/limits", node.id())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse::<u64>().ok());
    let (soft, hard) = (numbers.next().unwrap(), numbers.next().unwrap());
    assert_eq!(soft, hard.min(65_536), "{line}");
}

/// Without a handler of the signal the system ends the process, and the reason is not logged.
#[test]
fn a_limit_on_the_size_of_files_ends_the_node_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    // In blocks of 512 or 1,024 bytes: less than a segment of the log.
    let (node, address) = limited(dir.path(), "-f 400");
    let value = "x".repeat(60_000);
    for n in 0..10 {
        // The node may have ended already.
        run(&["put", "--timeout", "1s", "--endpoints", &address, &format!("key {n}"), &value]);
    }
    let ended = node.finish();
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    assert!(ended.err.contains("File too large"), "{}", ended.err);
}
