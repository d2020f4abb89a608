//! Snapshots on real nodes: taken, sent, installed, and what a restart makes of them.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv::KvStateMachine;
use d_engine_replica::{ReadConsistency, StateMachine as _};
use d_engine_server::{Config, EmbeddedEngine, NodeStatus, SnapshotCompression};
use support::{PATIENCE, cluster, put, start};

/// Snapshots come often, the log keeps nothing behind them, and one is kept: the log is purged to the newest. The first one of each node comes later by its place
/// among the three: at 100, 134 and 167 entries.
fn eager(mut config: Config) -> Config {
    config.snapshots.after_entries = 100;
    config.snapshots.tail_entries = 0;
    config.snapshots.retained = 1;
    config
}

/// Waits until a node's status is as wanted.
async fn until(engine: &EmbeddedEngine, what: &str, is: impl Fn(&NodeStatus) -> bool) -> NodeStatus {
    let found = async {
        loop {
            let status = engine.status().await;
            if is(&status) {
                return status;
            }
            tokio::task::yield_now().await;
        }
    };
    match tokio::time::timeout(PATIENCE, found).await {
        Ok(status) => status,
        Err(_) => panic!("{what}: {:#?}", engine.status().await),
    }
}

fn base(status: &NodeStatus) -> u64 {
    status.replica.as_ref().map_or(0, |replica| replica.core.log.base.index.get())
}

/// Waits until a node that nobody writes to has applied all that it has written of its own accord: a new cluster binds
/// its members in an entry of its own.
async fn settled(engine: &EmbeddedEngine) {
    until(engine, "nothing is on its way", |status| {
        status.replica.as_ref().is_some_and(|replica| {
            let bound = replica.membership.members().iter().all(|member| member.incarnation.is_some());
            bound && replica.applied == replica.core.log.last.index.get()
        })
    })
    .await;
}

/// A cluster that is ready.
async fn start_all(configs: &[Config]) -> Vec<EmbeddedEngine> {
    let mut engines = Vec::new();
    for config in configs {
        engines.push(start(config).await);
    }
    for engine in &engines {
        engine.wait_ready(PATIENCE).await.unwrap();
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
    let status = until(&engine, "the log is purged", |status| base(status) >= 200).await;
    assert!(status.snapshots.newest.unwrap().index >= 200);
    assert!(status.snapshots.count <= 2, "{:?}", status.snapshots);
    let taken = engine.take_snapshot().await.unwrap();
    put(std::slice::from_ref(&engine), "last", "w").await;
    engine.stop().await;

    let engine = start(&config).await;
    engine.wait_ready(PATIENCE).await.unwrap();
    let status = engine.status().await;
    assert!(base(&status) >= 200 && base(&status) <= taken.label().index.get());
    for n in 0..250 {
        let value = engine.get(format!("k{n}").as_bytes(), ReadConsistency::Linearizable).await.unwrap();
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
    assert_eq!((first.label(), first.sha256), (second.label(), second.sha256));
    engine.stop().await;
    let refused = engine.take_snapshot().await.unwrap_err();
    assert!(refused.to_string().contains("stopped"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_behind_the_purged_log_gets_a_snapshot_and_goes_on_with_entries() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    // Each node by its own setting, and every one reads all.
    configs[1].snapshots.compression = SnapshotCompression::Zstd;
    configs[2].snapshots.compression = SnapshotCompression::Zstd;
    let (mut engines, mut machines) = (Vec::new(), Vec::new());
    for config in &configs {
        let (engine, machine) = start_with_machine(config).await;
        engines.push(engine);
        machines.push(machine);
    }
    for engine in &engines {
        engine.wait_ready(PATIENCE).await.unwrap();
    }
    put(&engines, "before", "v").await;
    engines.remove(0).stop().await;
    for n in 0..350 {
        put(&engines, &format!("k{n}"), "v").await;
    }
    for engine in &engines {
        until(engine, "the log is purged", |status| base(status) >= 250).await;
    }
    let (back, machine) = start_with_machine(&configs[0]).await;
    back.wait_ready(PATIENCE).await.unwrap();
    until(&back, "it goes on behind a snapshot", |status| {
        base(status) >= 250 && status.snapshots.receiving.is_none()
    })
    .await;
    engines.push(back);
    put(&engines, "after", "w").await;
    let mut last = 0;
    for engine in &engines {
        last = last.max(engine.status().await.replica.unwrap().core.log.last.index.get());
    }
    for engine in &engines {
        until(engine, "everything is applied", |status| {
            status.replica.as_ref().is_some_and(|replica| replica.applied >= last)
        })
        .await;
    }
    let expected = machines[1].position_and_hash();
    assert_eq!(machine.position_and_hash(), expected, "equal state at equal position");
    // The leader knows: nothing is on its way any more.
    for engine in &engines {
        until(engine, "no transfer is left", |status| status.snapshots.sending.is_empty()).await;
    }
    for engine in &engines {
        engine.stop().await;
    }

    // All of it again after a restart of everybody.
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

/// A cluster whose first node stops before the others write 7 MB and purge what it would need. Returns these, and the value
/// under each of the keys `k0` to `k69`.
async fn go_on_without_the_first(configs: &[Config]) -> (Vec<EmbeddedEngine>, String) {
    let mut engines = start_all(configs).await;
    engines.remove(0).stop().await;
    let value = "x".repeat(100_000);
    for n in 0..70 {
        put(&engines, &format!("k{n}"), &value).await;
    }
    for engine in &engines {
        until(engine, "the log is purged", |status| base(status) >= 40).await;
    }
    (engines, value)
}

/// The leader stays on the log that a follower needs, and the follower is slow: it resumes where it was cut.
#[tokio::test(flavor = "multi_thread")]
async fn a_transfer_that_is_cut_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let mut configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    for config in &mut configs {
        config.snapshots.send_bytes_per_second = 1 << 20;
        config.snapshots.after_entries = 40;
        // One is retained: only that it is on its way keeps an archive when there is a newer one.
    }
    let (mut engines, _) = go_on_without_the_first(&configs).await;
    let back = start(&configs[0]).await;
    let status = until(&back, "a part is there", |status| {
        status.snapshots.receiving.as_ref().is_some_and(|receiving| receiving.received > 1_000_000)
    })
    .await;
    let cut = status.snapshots.receiving.unwrap().label;
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
                if sending.iter().any(|sending| sending.label == cut && sending.resumed_at > 0) {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, resumed).await.unwrap();
    engines[2].wait_ready(PATIENCE).await.unwrap();
    let found = engines[2].get(b"k69", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(found.map(|value| value.len()), Some(100_000));
    for engine in &engines {
        engine.stop().await;
    }
}

/// FINDINGS S3: while a snapshot travels, more is written than `max_log_bytes` would keep of the log; the follower goes on
/// behind that snapshot all the same, and needs no second one.
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
                sent.extend(sending.iter().map(|sending| sending.label).filter(|label| *label > 0));
            }
        }
    };
    tokio::time::timeout(PATIENCE, writes).await.unwrap();
    assert!(written * 100_000 > 8 << 20, "{written} were written: less than the log keeps in any case");
    assert_eq!(sent.len(), 1, "{sent:?}");
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// The file of a node's newest snapshot.
fn newest_file(config: &Config) -> PathBuf {
    let files = std::fs::read_dir(config.data_dir.join("snapshots")).unwrap().flatten();
    let index = |path: &PathBuf| -> u64 {
        let name = path.file_stem().unwrap().to_str().unwrap();
        name.rsplit('-').next().unwrap().parse().unwrap()
    };
    let archives =
        files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|it| it == "snap"));
    archives.max_by_key(index).unwrap()
}

fn flip_a_bit(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

/// What docs/snapshots.md tells an operator to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_another_node_brings_back_one_whose_own_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let configs: Vec<Config> = cluster(dir.path(), 3).into_iter().map(eager).collect();
    let mut engines = start_all(&configs).await;
    for n in 0..250 {
        put(&engines, &format!("k{n}"), "v").await;
    }
    let broken = engines.remove(0);
    let taken = broken.take_snapshot().await.unwrap().label().index.get();
    until(&broken, "the log is purged", |status| base(status) == taken).await;
    broken.stop().await;
    flip_a_bit(&newest_file(&configs[0]));
    let machine = Arc::new(KvStateMachine::new());
    let refused =
        EmbeddedEngine::start_custom(machine, configs[0].clone()).await.map(drop).unwrap_err().to_string();
    assert!(refused.contains("copy the newest snap-*.snap of another node"), "{refused}");

    put(&engines, "behind", "w").await;
    engines[0].take_snapshot().await.unwrap();
    let source = newest_file(&configs[1]);
    std::fs::copy(&source, configs[0].data_dir.join("snapshots").join(source.file_name().unwrap())).unwrap();
    let (back, machine) = start_with_machine(&configs[0]).await;
    back.wait_ready(PATIENCE).await.unwrap();
    for (key, value) in [("k0", "v"), ("k249", "v"), ("behind", "w")] {
        let found = back.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(found, Some(Bytes::copy_from_slice(value.as_bytes())), "{key}");
    }
    engines.push(back);
    put(&engines, "again", "x").await;
    until(&engines[2], "it takes part", |_| machine.get(b"again").unwrap().is_some()).await;
    for engine in &engines {
        engine.stop().await;
    }
}

/// The archive was whole when it was written, and rots on the leader's disk before anybody needs it: the follower refuses
/// it, the leader reads it again, and sends another one.
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
        let newest = engine.take_snapshot().await.unwrap().label();
        until(engine, "the log is purged", |status| base(status) == newest.index.get()).await;
        rotten = rotten.max(newest.index.get());
        flip_a_bit(&newest_file(config));
    }
    put(&engines, "behind", "w").await;
    let back = start(&configs[0]).await;
    back.wait_ready(PATIENCE).await.unwrap();
    let status = back.status().await;
    assert!(status.snapshots.newest.is_some_and(|label| label.index > rotten), "{:?}", status.snapshots);
    for (key, value) in [("k249", "v"), ("behind", "w")] {
        let found = back.get(key.as_bytes(), ReadConsistency::Linearizable).await.unwrap();
        assert_eq!(found, Some(Bytes::copy_from_slice(value.as_bytes())), "{key}");
    }
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// One caller after the other: each put is a group of its own, padded to a sector, many times as long as what it carries.
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
    until(&engine, "the log is purged", |status| base(status) > 0).await;
    engine.stop().await;
}

/// A bit turns in an old part of the log. The node's own snapshot holds what was there: it starts, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_log_that_a_snapshot_holds_does_not_keep_a_node_from_starting() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let engine = start(&config).await;
    for n in 0..20 {
        put(std::slice::from_ref(&engine), &format!("k{n}"), "v").await;
    }
    let label = engine.take_snapshot().await.unwrap().label();
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
        engine.wait_ready(PATIENCE).await.unwrap();
        assert_eq!(base(&engine.status().await), label.index.get());
        for n in 0..30 {
            let value = engine.get(format!("k{n}").as_bytes(), ReadConsistency::Linearizable).await.unwrap();
            assert_eq!(value, Some(Bytes::from_static(b"v")), "k{n}");
        }
        put(std::slice::from_ref(&engine), "again", "w").await;
        engine.stop().await;
    }
}
