//! Snapshots on real nodes: taken, sent, installed, and used after a restart.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_replica::StateMachine as _;
use d_engine_server::{Config, EmbeddedEngine, NodeStatus, ReadConsistency, SnapshotCompression};
use support::{TIMEOUT, cluster, put, start};

/// Snapshots are frequent, the log keeps no entries before them, and one snapshot is retained: the
/// log is purged up to the newest. The first snapshot of each node is staggered by its position
/// among the three: at 100, 134 and 167 entries.
fn eager(mut config: Config) -> Config {
    config.snapshots.after_entries = 100;
    config.snapshots.tail_entries = 0;
    config.snapshots.retained = 1;
    config
}

/// Waits until the status of a node satisfies `is`.
async fn until(
    engine: &EmbeddedEngine,
    what: &str,
    is: impl Fn(&NodeStatus) -> bool,
) -> NodeStatus {
    let found = async {
        loop {
            let status = engine.status().await;
            if is(&status) {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(TIMEOUT, found).await {
        Ok(status) => status,
        Err(_) => panic!("{what}: {:#?}", engine.status().await),
    }
}

/// Returns the last index that is purged from the node's log.
async fn base(engine: &EmbeddedEngine) -> u64 {
    engine.replica_status().await.map_or(0, |replica| replica.core.log.base.index.get())
}

/// Waits until the log is purged as wanted.
async fn purged(engine: &EmbeddedEngine, is: impl Fn(u64) -> bool) {
    let waits = async {
        while !is(base(engine).await) {
            tokio::task::yield_now().await;
        }
    };
    let purged = tokio::time::timeout(TIMEOUT, waits).await.is_ok();
    assert!(purged, "the log is not purged: {:#?}", engine.status().await);
}

/// Waits until an idle node has applied all entries that it wrote itself: a new cluster binds its
/// members in an entry of its own.
async fn settled(engine: &EmbeddedEngine) {
    let settles = async {
        loop {
            let replica = engine.replica_status().await.unwrap();
            let mut members = replica.membership.members().iter();
            let bound = members.all(|member| member.incarnation.is_some());
            if bound && replica.applied == replica.core.log.last.index.get() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(TIMEOUT, settles).await.is_ok();
    assert!(settled, "the log is not applied: {:#?}", engine.status().await);
}

/// Starts a cluster and waits until it is ready.
async fn start_all(configs: &[Config]) -> Vec<EmbeddedEngine> {
    let mut engines = Vec::new();
    for config in configs {
        engines.push(start(config).await);
    }
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    engines
}

/// A node and its state machine.
async fn start_with_machine(config: &Config) -> (EmbeddedEngine, Arc<KvStateMachine>) {
    let machine = Arc::new(KvStateMachine::new());
    let engine = EmbeddedEngine::start_custom(machine.clone(), config.clone()).await.unwrap();
    (engine, machine)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_restarts_from_its_snapshot_when_the_log_before_it_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let config = eager(Config { data_dir: dir.path().to_owned(), ..Config::default() });
    let engine = start(&config).await;
    for n in 0..250 {
        put(std::slice::from_ref(&engine), &format!("k{n}"), "v").await;
    }
    purged(&engine, |base| base >= 200).await;
    let status = engine.status().await;
    assert!(status.snapshots.newest.unwrap().index >= 200);
    assert!(status.snapshots.count <= 2, "{:?}", status.snapshots);
    let taken = engine.take_snapshot().await.unwrap();
    put(std::slice::from_ref(&engine), "last", "w").await;
    engine.stop().await;

    let engine = start(&config).await;
    engine.wait_ready(TIMEOUT).await.unwrap();
    let base = base(&engine).await;
    assert!(base >= 200 && base <= taken.last_included().index.get());
    for n in 0..250 {
        let value =
            engine.get(format!("k{n}").as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(value, Some(Bytes::from_static(b"v")), "k{n}");
    }
    assert_eq!(
        engine.get(b"last", ReadConsistency::Linearizable).await.unwrap(),
        Some(Bytes::from_static(b"w"))
    );
    engine.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_nothing_is_refused_and_two_of_the_same_state_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let engine = start(&config).await;
    put(std::slice::from_ref(&engine), "k", "v").await;
    settled(&engine).await;
    let first = engine.take_snapshot().await.unwrap();
    let second = engine.take_snapshot().await.unwrap();
    assert_eq!((first.last_included(), first.sha256), (second.last_included(), second.sha256));
    engine.stop().await;
    let refused = engine.take_snapshot().await.unwrap_err();
    assert!(refused.to_string().contains("stopped"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log_gets_a_snapshot_and_goes_on_with_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    // Each node writes its snapshots by its own setting, and every node reads both kinds.
    configs[1].snapshots.compression = SnapshotCompression::Zstd;
    configs[2].snapshots.compression = SnapshotCompression::Zstd;
    let (mut engines, mut machines) = (Vec::new(), Vec::new());
    for config in &configs {
        let (engine, machine) = start_with_machine(config).await;
        engines.push(engine);
        machines.push(machine);
    }
    for engine in &engines {
        engine.wait_ready(TIMEOUT).await.unwrap();
    }
    put(&engines, "before", "v").await;
    engines.remove(0).stop().await;
    for n in 0..350 {
        put(&engines, &format!("k{n}"), "v").await;
    }
    for engine in &engines {
        purged(engine, |base| base >= 250).await;
    }
    let (back, machine) = start_with_machine(&configs[0]).await;
    back.wait_ready(TIMEOUT).await.unwrap();
    purged(&back, |base| base >= 250).await;
    until(&back, "the snapshot is received", |status| status.snapshots.receiving.is_none()).await;
    engines.push(back);
    put(&engines, "after", "w").await;
    let mut last = 0;
    for engine in &engines {
        last = last.max(engine.status().await.last_index);
    }
    for engine in &engines {
        until(engine, "everything is applied", |status| status.applied_index >= last).await;
    }
    let expected = machines[1].position_and_hash();
    assert_eq!(machine.position_and_hash(), expected, "equal state at equal position");
    // The leader knows that no snapshot is being sent any more.
    for engine in &engines {
        until(engine, "no snapshot is being sent", |status| status.snapshots.sending.is_empty())
            .await;
    }
    for engine in &engines {
        engine.stop().await;
    }

    // The same values are read after a restart of all nodes.
    let again = start_all(&configs).await;
    for engine in &again {
        for (key, value) in [("before", "v"), ("k349", "v"), ("after", "w")] {
            let found = engine.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
            assert_eq!(found, Some(Bytes::copy_from_slice(value.as_bytes())), "{key}");
        }
    }
    for engine in &again {
        engine.stop().await;
    }
}

/// Starts a cluster whose first node stops before the others write 7 MB and purge the entries that
/// it needs. Returns the others, and the value under each of the keys `k0` to `k69`.
async fn go_on_without_the_first(configs: &[Config]) -> (Vec<EmbeddedEngine>, String) {
    let mut engines = start_all(configs).await;
    engines.remove(0).stop().await;
    let value = "x".repeat(100_000);
    for n in 0..70 {
        put(&engines, &format!("k{n}"), &value).await;
    }
    for engine in &engines {
        purged(engine, |base| base >= 40).await;
    }
    (engines, value)
}

/// The follower is slow: it resumes the snapshot where the connection broke, although the leader
/// has newer ones.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_cut_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    for config in &mut configs {
        config.snapshots.send_bytes_per_second = 1 << 20;
        config.snapshots.after_entries = 40;
        // One is retained: an archive older than the newest is kept only while it is being sent.
    }
    let (mut engines, _) = go_on_without_the_first(&configs).await;
    let back = start(&configs[0]).await;
    let status = until(&back, "a part has been received", |status| {
        status.snapshots.receiving.as_ref().is_some_and(|receiving| receiving.received > 1_000_000)
    })
    .await;
    let cut = status.snapshots.receiving.unwrap().index;
    back.stop().await;
    put(&engines, "newer", "v").await;
    for engine in &engines {
        engine.take_snapshot().await.unwrap();
    }
    let back = start(&configs[0]).await;
    engines.push(back);
    let resumed = async {
        loop {
            tokio::task::yield_now().await;
            for engine in &engines {
                let sending = engine.status().await.snapshots.sending;
                if sending
                    .iter()
                    .any(|sending| sending.index == Some(cut) && sending.resumed_at > 0)
                {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, resumed).await.unwrap();
    engines[2].wait_ready(TIMEOUT).await.unwrap();
    let found = engines[2].get(b"k69", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(found.map(|value| value.len()), Some(100_000));
    for engine in &engines {
        engine.stop().await;
    }
}

/// FINDINGS S3: while a snapshot is being sent, more is written than `max_log_bytes` would keep of
/// the log. The follower still continues with entries after that snapshot, and needs no second one.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_catches_up_behind_its_first_snapshot_however_much_is_written_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    for config in &mut configs {
        config.snapshots.send_bytes_per_second = 1 << 20;
        config.snapshots.after_entries = 40;
        config.snapshots.after_log_bytes = 0;
        config.snapshots.tail_bytes = 1 << 20;
        config.snapshots.max_log_bytes = 16 << 20;
    }
    let (mut engines, value) = go_on_without_the_first(&configs).await;
    let back = start(&configs[0]).await;
    let (mut sent, mut written) = (std::collections::BTreeSet::new(), 0_u64);
    let writes = async {
        while back.wait_ready(Duration::ZERO).await.is_err() {
            put(&engines, &format!("k{}", written % 70), &value).await;
            written += 1;
            for engine in &engines {
                let sending = engine.status().await.snapshots.sending;
                sent.extend(sending.iter().filter_map(|sending| sending.index));
            }
        }
    };
    tokio::time::timeout(TIMEOUT, writes).await.unwrap();
    assert!(
        written * 100_000 > 8 << 20,
        "{written} were written: less than the log keeps in any case"
    );
    assert_eq!(sent.len(), 1, "{sent:?}");
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// Returns the file of a node's newest snapshot.
fn newest_file(config: &Config) -> PathBuf {
    let files = std::fs::read_dir(config.data_dir.join("snapshots")).unwrap().flatten();
    let index = |path: &PathBuf| -> u64 {
        let name = path.file_stem().unwrap().to_str().unwrap();
        name.rsplit('-').next().unwrap().parse().unwrap()
    };
    let archives = files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|it| it == "snap"));
    archives.max_by_key(index).unwrap()
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// The repair that docs/snapshots.md recommends to an operator.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_node_brings_back_one_whose_own_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    let mut engines = start_all(&configs).await;
    for n in 0..250 {
        put(&engines, &format!("k{n}"), "v").await;
    }
    let broken = engines.remove(0);
    let taken = broken.take_snapshot().await.unwrap().last_included().index.get();
    purged(&broken, |base| base == taken).await;
    broken.stop().await;
    flip_a_bit(&newest_file(&configs[0]));
    let machine = Arc::new(KvStateMachine::new());
    let refused = EmbeddedEngine::start_custom(machine, configs[0].clone())
        .await
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(refused.contains("copy the newest snap-*.snap of another node"), "{refused}");

    put(&engines, "behind", "w").await;
    engines[0].take_snapshot().await.unwrap();
    let source = newest_file(&configs[1]);
    std::fs::copy(&source, configs[0].data_dir.join("snapshots").join(source.file_name().unwrap()))
        .unwrap();
    let (back, machine) = start_with_machine(&configs[0]).await;
    back.wait_ready(TIMEOUT).await.unwrap();
    for (key, value) in [("k0", "v"), ("k249", "v"), ("behind", "w")] {
        let found = back.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(found, Some(Bytes::copy_from_slice(value.as_bytes())), "{key}");
    }
    engines.push(back);
    put(&engines, "again", "x").await;
    until(&engines[2], "it applies new commands", |_| machine.get(b"again").unwrap().is_some())
        .await;
    for engine in &engines {
        engine.stop().await;
    }
}

/// The archive was intact when it was written, and is damaged on the leader's disk before it is
/// sent: the follower refuses it, the leader reads it again, and sends another one.
#[tokio::test(flavor = "multi_thread")]
async fn an_archive_that_has_rotted_is_found_out_and_another_one_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    let configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    let mut engines = start_all(&configs).await;
    engines.remove(0).stop().await;
    for n in 0..250 {
        put(&engines, &format!("k{n}"), "v").await;
    }
    let mut rotten = 0;
    for (engine, config) in engines.iter().zip(&configs[1..]) {
        let newest = engine.take_snapshot().await.unwrap().last_included();
        purged(engine, |base| base == newest.index.get()).await;
        rotten = rotten.max(newest.index.get());
        flip_a_bit(&newest_file(config));
    }
    put(&engines, "behind", "w").await;
    let back = start(&configs[0]).await;
    back.wait_ready(TIMEOUT).await.unwrap();
    let status = back.status().await;
    assert!(
        status.snapshots.newest.is_some_and(|last_included| last_included.index > rotten),
        "{:?}",
        status.snapshots
    );
    for (key, value) in [("k249", "v"), ("behind", "w")] {
        let found = back.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(found, Some(Bytes::copy_from_slice(value.as_bytes())), "{key}");
    }
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// Puts one value after the other: each is a write group of its own, padded to a sector, and many
/// times longer than its content.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_measured_as_it_lies_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    config.limits.max_command_bytes = 64 << 10;
    config.limits.segment_bytes = 1 << 20;
    config.snapshots.after_log_bytes = 1 << 20;
    config.snapshots.tail_entries = 0;
    let engine = start(&config).await;
    let mut carried = 0;
    while engine.status().await.snapshots.built == 0 {
        put(std::slice::from_ref(&engine), "key", "value").await;
        carried += 100;
        assert!(carried < 1 << 20, "{:?}", engine.status().await.snapshots);
    }
    purged(&engine, |base| base > 0).await;
    engine.stop().await;
}

/// A bit flips in an old part of the log. The node's own snapshot contains what was there: the node
/// starts and reports the damage.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_log_that_a_snapshot_holds_does_not_keep_a_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let engine = start(&config).await;
    for n in 0..20 {
        put(std::slice::from_ref(&engine), &format!("k{n}"), "v").await;
    }
    let last_included = engine.take_snapshot().await.unwrap().last_included();
    for n in 20..30 {
        put(std::slice::from_ref(&engine), &format!("k{n}"), "v").await;
    }
    engine.stop().await;
    let segment = config.data_dir.join("log/00000000000000000001.seg");
    let mut content = std::fs::read(&segment).unwrap();
    content[4 * 4096 + 100] ^= 1;
    std::fs::write(&segment, content).unwrap();
    for _ in 0..2 {
        let engine = start(&config).await;
        engine.wait_ready(TIMEOUT).await.unwrap();
        assert_eq!(base(&engine).await, last_included.index.get());
        for n in 0..30 {
            let value = engine
                .get(format!("k{n}").as_bytes(), ReadConsistency::Linearizable)
                .await
                .unwrap();
            assert_eq!(value, Some(Bytes::from_static(b"v")), "k{n}");
        }
        put(std::slice::from_ref(&engine), "again", "w").await;
        engine.stop().await;
    }
}
