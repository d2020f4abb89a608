//! A node's process dies at its K-th write, sync or rename, for every K up to 100 and as far as its
//! boot reaches; everything that it has acknowledged is there after its restart.
//!
//! The process is this test's own executable, started again with a file system that aborts the
//! process at the chosen operation: real threads, real files, a real end. Segments are tiny and
//! snapshots are frequent, so that the boot rolls over many of both, and purges. Restarts use the
//! same code on the plain file system, and sometimes the `d-engine` binary. `crash_strace.rs` kills
//! the binary itself, where `strace` is installed.
//!
//! The page cache outlives a process. The effects of a power cut are covered by the simulated disk
//! (`crates/storage/tests/recycling.rs`, `crash_points.rs`) and by `.ci/power-cut`.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use d_engine_kv::KvCommand;
use d_engine_server::{Config, EmbeddedEngine, NodeBuilder, ReadConsistency};
use d_engine_storage::fs::{FileKind, LockAttempt, OpenMode};
use d_engine_storage::{
    Alignment, FileStorageEngine, FileStorageOptions, Fs, FsCounts, FsFile, RealFs,
};
use support::{TIMEOUT, free_address, run, serve};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// Number of puts of a boot that is not interrupted.
const PUTS: u64 = 110;
/// Names the operation at which the child dies: kind and number.
const DIES_AT: &str = "D_ENGINE_TEST_DIES_AT";
const DIRECTORY: &str = "D_ENGINE_TEST_DIRECTORY";

/// The kind of operation at which the process dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// In the middle of the write: half of the bytes are written.
    Write,
    /// Before the sync.
    Sync,
    /// Before the rename.
    Rename,
}

/// The real file system, up to the chosen operation.
#[derive(Clone, Debug)]
struct Deadly {
    kind: Kind,
    left: Arc<AtomicU64>,
    fs: Arc<RealFs>,
}

impl Deadly {
    /// Returns whether this is the operation at which the process dies.
    fn is_last(&self, kind: Kind) -> bool {
        kind == self.kind && self.left.fetch_sub(1, Ordering::SeqCst) == 1
    }

    fn die_before(&self, kind: Kind) {
        if self.is_last(kind) {
            std::process::abort();
        }
    }
}

impl Fs for Deadly {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.fs.create_dir(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn FsFile>> {
        Ok(Arc::new(DeadlyFile { fs: self.clone(), file: self.fs.open(path, mode)? }))
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.die_before(Kind::Rename);
        self.fs.rename(from, to)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.fs.remove_file(path)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.fs.list(dir)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.die_before(Kind::Sync);
        self.fs.sync_dir(dir)
    }
    fn try_lock(&self, path: &Path) -> io::Result<LockAttempt> {
        self.fs.try_lock(path)
    }
    fn kind(&self, path: &Path) -> io::Result<FileKind> {
        self.fs.kind(path)
    }
    fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        self.fs.remove_tree(dir)
    }
    fn free_bytes(&self, dir: &Path) -> io::Result<Option<u64>> {
        self.fs.free_bytes(dir)
    }
    fn counts(&self) -> FsCounts {
        self.fs.counts()
    }
}

#[derive(Debug)]
struct DeadlyFile {
    fs: Deadly,
    file: Arc<dyn FsFile>,
}

impl FsFile for DeadlyFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<usize> {
        if self.fs.is_last(Kind::Write) {
            self.file.write_at(offset, &bytes[..bytes.len() / 2]).ok();
            std::process::abort();
        }
        self.file.write_at(offset, bytes)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.fs.die_before(Kind::Sync);
        self.file.sync_data()
    }
    fn sync_all(&self) -> io::Result<()> {
        self.fs.die_before(Kind::Sync);
        self.file.sync_all()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

/// Starts a single node with tiny segments and short election timeouts.
async fn node(dir: &Path, fs: Arc<dyn Fs>, shutdown: watch::Receiver<()>) -> EmbeddedEngine {
    let mut config = Config {
        data_dir: dir.to_owned(),
        heartbeat_interval_ms: 5,
        election_timeout_min_ms: 15,
        election_timeout_max_ms: 30,
        ..Config::default()
    };
    (config.snapshots.after_entries, config.snapshots.tail_entries) = (12, 3);
    let options = FileStorageOptions {
        segment_bytes: 8192,
        alignment: Alignment::Sector,
        grow_bytes: 2048,
        prepare_bytes: 4096,
        ..FileStorageOptions::default()
    };
    let storage = Arc::new(FileStorageEngine::new(dir, options, fs.clone()));
    let node = NodeBuilder::new(config, shutdown).storage_engine(storage).file_system(fs);
    let node = node.build().unwrap();
    let engine = node.start().await.unwrap();
    engine.wait_ready(TIMEOUT).await.unwrap();
    engine
}

fn value(put: u64) -> String {
    format!("value of put {put}; {}", "x".repeat((put % 7 * 60) as usize))
}

/// The boot of the process that dies; the tests below start it as a process of its own. Without the
/// variable that names the operation, this test does nothing.
#[test]
fn a_life() {
    let Ok(dies_at) = std::env::var(DIES_AT) else { return };
    let dir = std::env::var_os(DIRECTORY).unwrap();
    let (kind, count) = dies_at.split_once(' ').unwrap();
    let kind = match kind {
        "Write" => Kind::Write,
        "Sync" => Kind::Sync,
        _ => Kind::Rename,
    };
    let left = Arc::new(AtomicU64::new(count.parse().unwrap()));
    let fs = Deadly { kind, left, fs: Arc::new(RealFs::new()) };
    Runtime::new().unwrap().block_on(async {
        let (_running, shutdown) = watch::channel(());
        let engine = node(dir.as_ref(), Arc::new(fs), shutdown).await;
        for put in 0..PUTS {
            engine.propose(KvCommand::put(format!("k{put}"), value(put)).encode()).await.unwrap();
            let mut out = io::stdout();
            writeln!(out, "\nacknowledged {put}").and_then(|()| out.flush()).unwrap();
            if put % 8 == 7 {
                // In addition to those of the policy, of which a busy machine takes fewer.
                engine.take_snapshot().await.unwrap();
            }
        }
        engine.stop().await;
    });
    println!("\nthe end");
}

/// Starts a boot; returns how many puts it acknowledged, and whether it ran to its end.
fn boot(dir: &Path, kind: Kind, at: u64) -> (u64, bool) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_life", "--nocapture", "--test-threads=1"])
        .env(DIES_AT, format!("{kind:?} {at}"))
        .env(DIRECTORY, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: Vec<String> =
        BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok).collect();
    let exit = child.wait().unwrap();
    let acknowledged = lines.iter().filter(|line| line.starts_with("acknowledged ")).count() as u64;
    let ended = lines.iter().any(|line| line == "the end");
    assert!(ended == exit.success(), "{kind:?} {at}: {exit}\n{}", lines.join("\n"));
    (acknowledged, ended)
}

/// Checks that everything acknowledged is there, that the put in progress is there or not, and that
/// the node accepts puts.
fn assert_comes_back(runtime: &Runtime, dir: &Path, acknowledged: u64, context: &str) {
    runtime.block_on(async {
        let (_running, shutdown) = watch::channel(());
        let engine = node(dir, Arc::new(RealFs::new()), shutdown).await;
        for put in 0..=acknowledged {
            let key = format!("k{put}");
            let found = engine.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
            let under_way = put == acknowledged;
            let is_right =
                found.as_deref() == Some(value(put).as_bytes()) || (under_way && found.is_none());
            assert!(is_right, "{context}: put {put} of {acknowledged} acknowledged is {found:?}");
        }
        engine.propose(KvCommand::put("after", "wards").encode()).await.unwrap();
        engine.stop().await;
    });
}

/// The same with the binary.
fn assert_serves(dir: &Path, acknowledged: u64, context: &str) {
    let address = free_address();
    let config = dir.join("node.toml");
    std::fs::write(&config, format!("data_dir = \".\"\nclient_listen = \"{address}\"\n")).unwrap();
    let mut process = serve(&config);
    let mut ready = String::new();
    BufReader::new(process.stdout()).read_line(&mut ready).unwrap();
    assert!(ready.contains("is ready"), "{context}: {ready:?}");
    for put in [0, acknowledged / 2, acknowledged.saturating_sub(1)] {
        if put < acknowledged {
            let get = run(&["get", "--endpoints", &address, &format!("k{put}")]);
            assert_eq!(get.out, value(put), "{context}: put {put}: {}", get.err);
        }
    }
}

/// Dies at every operation of a kind up to the 100th. Returns how many boots were interrupted.
fn every_death(kind: Kind) -> u64 {
    let runtime = Runtime::new().unwrap();
    for at in 1..=100 {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        let (acknowledged, ended) = boot(&dir, kind, at);
        let context = format!("{kind:?} {at}");
        if ended {
            assert_eq!(acknowledged, PUTS, "{context}");
            return at - 1;
        }
        if at % 10 == 0 {
            assert_serves(&dir, acknowledged, &context);
        }
        assert_comes_back(&runtime, &dir, acknowledged, &context);
    }
    100
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_dies_in_its_kth_write() {
    assert_eq!(every_death(Kind::Write), 100);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_dies_before_its_kth_sync() {
    assert_eq!(every_death(Kind::Sync), 100);
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_dies_before_its_kth_rename() {
    let boots = every_death(Kind::Rename);
    assert!(boots >= 20, "the boot has only {boots} renames");
}
