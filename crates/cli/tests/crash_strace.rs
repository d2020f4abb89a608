//! The `d-engine` binary itself is killed by `strace` at its K-th write, sync and rename. Where
//! `strace` is not installed, or may not trace, the test reports that and proves nothing;
//! `crash_points.rs` needs no such tool.
//!
//! `strace` counts the calls of each thread separately: the K-th call is that of the first thread
//! that reaches the count, which is the one that opens the log or the one that writes it.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use d_engine_client::{Client, ClientOptions};
use d_engine_kv::KvCommand;
use support::{TIMEOUT, free_address, run, serve, wait_until};
use tokio::runtime::Runtime;

/// Large enough that a few puts fill a segment of the smallest size that a config may set.
const VALUE_BYTES: usize = 200_000;
const PUTS: u64 = 14;

fn value(put: u64) -> Vec<u8> {
    vec![b'a' + put as u8; VALUE_BYTES]
}

/// Kills its process when the test ends, however it ends. The stdin of the traced node comes from
/// here; the node stops when it is closed, so that no orphan is left.
struct Traced(Child);

impl Drop for Traced {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        wait_until(TIMEOUT, || self.0.try_wait().unwrap());
    }
}

fn may_trace() -> bool {
    let mut command = Command::new("strace");
    command.args([
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        "inject=fdatasync:signal=SIGKILL:when=1",
        "true",
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn config(dir: &Path) -> (PathBuf, String) {
    let address = free_address();
    let text = format!(
        "data_dir = \"data\"\nclient_listen = \"{address}\"\nheartbeat_interval_ms = 10\n\
         election_timeout_min_ms = 40\nelection_timeout_max_ms = 80\n\
         [limits]\nmax_command_bytes = 262144\nsegment_bytes = 1048576\n"
    );
    let config = dir.join("node.toml");
    fs::write(&config, text).unwrap();
    (config, address)
}

/// Puts until the process has died or has accepted all puts; returns how many were acknowledged.
fn put_until_dead(traced: &mut Traced, address: &str, runtime: &Runtime) -> u64 {
    let mut acknowledged = 0;
    let mut dead = || traced.0.try_wait().unwrap().is_some();
    runtime.block_on(async {
        let client =
            Client::new([address], ClientOptions::default().timeout(Duration::from_millis(500)))
                .unwrap();
        while acknowledged < PUTS && !dead() {
            let command = KvCommand::put(format!("k{acknowledged}"), value(acknowledged)).encode();
            if client.propose(command).await.is_ok() {
                acknowledged += 1;
            }
        }
    });
    acknowledged
}

#[test]
fn nothing_acknowledged_is_lost_when_the_binary_is_killed_in_a_system_call() {
    if !may_trace() {
        // Written past the test harness, which would capture it.
        let said = writeln!(std::io::stderr(), "SKIPPED: strace is not there or may not trace");
        return said.unwrap();
    }
    let runtime = Runtime::new().unwrap();
    let mut killed = 0;
    for (call, last) in [("pwrite64", 14), ("fdatasync", 10), ("fsync", 12), ("/^rename", 5)] {
        for at in 1..=last {
            let context = format!("{call} {at}");
            let dir = tempfile::tempdir().unwrap();
            let (config, address) = config(dir.path());
            let log = fs::File::create(dir.path().join("traced.log")).unwrap();
            let inject = format!("inject={call}:signal=SIGKILL:when={at}");
            let traced = Command::new("strace")
                .args([
                    "-f",
                    "-qq",
                    "-o",
                    "/dev/null",
                    "-e",
                    &format!("trace={call}"),
                    "-e",
                    &inject,
                ])
                .arg(env!("CARGO_BIN_EXE_d-engine"))
                .args(["serve", "--stop-on-stdin-close", "--config"])
                .arg(&config)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .unwrap();
            let mut traced = Traced(traced);
            let acknowledged = put_until_dead(&mut traced, &address, &runtime);
            killed += u64::from(acknowledged < PUTS);
            drop(traced);
            let _node = serve(&config);
            wait_until(TIMEOUT, || {
                (run(&["get", "--endpoints", &address, "-"]).code == Some(3)).then_some(())
            });
            for put in 0..acknowledged {
                let get = run(&["get", "--endpoints", &address, &format!("k{put}")]);
                assert_eq!(
                    get.code,
                    Some(0),
                    "{context}: put {put} of {acknowledged}: {}",
                    get.err
                );
                assert_eq!(
                    get.out.as_bytes(),
                    value(put),
                    "{context}: put {put} of {acknowledged}"
                );
            }
        }
    }
    assert!(killed > 30, "only {killed} boots were cut short");
}
