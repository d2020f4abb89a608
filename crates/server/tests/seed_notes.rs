//! What a state machine must provide beside its methods (atomic, idempotent, isolated, checksummed,
//! concurrent), and what the engine does with one that does not: one test for each. Real nodes,
//! real files.
#![allow(clippy::unwrap_used)]

mod alone;
#[path = "../../replica/tests/recording/machine.rs"]
mod recording;
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use alone::{Alone, hold, three_without_a_tail, until};
use bytes::Bytes;
use d_engine_replica::ProposeError;
use d_engine_server::{Config, EmbeddedEngine, ReadConsistency};
use recording::{Manner, Recording};
use support::TIMEOUT;

/// "Either fully applies or fails the entire batch": a machine that cannot continue is halted
/// there, its node reports why, and no caller receives a reply to a command of the chunk.
#[tokio::test(flavor = "multi_thread")]
async fn notes_atomic_operations() {
    let node =
        Alone::start(Recording::with(Manner { chokes_on: Some(13), ..Manner::default() })).await;
    node.propose(1).await;
    let told = node.engine.propose(vec![13]).await.unwrap_err();
    assert!(
        matches!(told, ProposeError::OutcomeUnknown { .. } | ProposeError::Stopped { .. }),
        "{told}"
    );
    let stands = async {
        loop {
            match node.engine.status().await.apply_stopped {
                Some(reason) => return reason,
                None => tokio::task::yield_now().await,
            }
        }
    };
    let reason = tokio::time::timeout(TIMEOUT, stands).await.unwrap();
    assert!(reason.contains("the backend is gone"), "{reason}");
    assert_eq!(node.machine.held().numbers.len(), 1);
    node.stop().await;
}

/// "Handle duplicate entries safely": the engine delivers no applied entry again, and a machine
/// whose position is ahead of what the engine knows receives the entries after the position that it
/// reports.
#[tokio::test(flavor = "multi_thread")]
async fn notes_idempotency() {
    let node = Alone::start(Recording::durable()).await;
    for number in 1..=3 {
        node.propose(number).await;
    }
    let (calls, held) = (node.calls.clone(), node.machine.held().clone());
    let (config, machine, _dir) = node.stop().await;
    calls.clear();
    let node = Alone::with(machine.again(), config).await;
    node.propose(4).await;
    assert_eq!(calls.applied().len(), 1, "{:?}", calls.all());
    assert!(
        held.numbers.iter().all(|(index, number)| node.machine.held().numbers[index] == *number)
    );
    node.stop().await;
}

/// Reads a node's sum repeatedly until `ends` is set. Every sum must be that of a prefix of the
/// commands, and none may be older than the one before it.
async fn reads_whole_states(engine: EmbeddedEngine, sums: Vec<u64>, ends: Arc<AtomicBool>) -> u64 {
    let (mut at, mut reads) = (0, 0);
    while !ends.load(Ordering::Acquire) {
        let read = engine.get(b"sum", ReadConsistency::Eventual).await.unwrap().unwrap();
        let sum = std::str::from_utf8(&read).unwrap().parse().unwrap();
        at = sums
            .iter()
            .position(|known| *known == sum)
            .filter(|found| *found >= at)
            .unwrap_or_else(|| {
                panic!("{sum} was read after {}, of {sums:?}", sums[at]);
            });
        reads += 1;
        tokio::task::yield_now().await;
    }
    reads
}

/// Returns the sums after each of these commands.
fn sums(numbers: impl IntoIterator<Item = u8>) -> Vec<u64> {
    let mut sum = 0;
    let after = numbers.into_iter().map(|number| {
        sum += u64::from(number);
        sum
    });
    [0].into_iter().chain(after).collect()
}

/// "Must atomically replace state": a read at a follower during the install of a snapshot sees the
/// old state or the new one.
#[tokio::test(flavor = "multi_thread")]
async fn notes_snapshot_isolation() {
    let dir = tempfile::tempdir().unwrap();
    let (configs, machines, mut engines) = three_without_a_tail(dir.path()).await;
    let propose = async |engines: &[EmbeddedEngine], number: u8| {
        support::propose(engines, vec![number].into()).await;
    };
    for number in 1..=5 {
        propose(&engines, number).await;
    }
    engines.remove(0).stop().await;
    for number in 6..=15 {
        propose(&engines, number).await;
    }
    for engine in &engines {
        let last_included = engine.take_snapshot().await.unwrap().last_included();
        until(async || engine.replica_status().await.unwrap().core.log.base == last_included).await;
    }
    propose(&engines, 16).await;
    until(async || machines[1..].iter().all(|machine| machine.numbers().last() == Some(&16))).await;
    let numbers = machines[1].numbers();

    machines[0].calls.clear();
    let back = EmbeddedEngine::start_custom(Arc::new(machines[0].again()), configs[0].clone())
        .await
        .unwrap();
    let ends = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn(reads_whole_states(back.clone(), sums(numbers), ends.clone()));
    back.wait_ready(TIMEOUT).await.unwrap();
    ends.store(true, Ordering::Release);
    assert!(reader.await.unwrap() > 0);
    assert_eq!(
        machines[0].calls.count("apply_snapshot_from_file"),
        1,
        "{:?}",
        machines[0].calls.all()
    );
    engines.push(back);
    for engine in &engines {
        engine.stop().await;
    }
}

/// "Appropriate locking": the engine applies, reads and freezes the state at the same time.
#[tokio::test(flavor = "multi_thread")]
async fn notes_concurrency_control() {
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let node = Alone::start(machine).await;
    let ends = Arc::new(AtomicBool::new(false));
    let read =
        || tokio::spawn(reads_whole_states(node.engine.clone(), sums(1..=200), ends.clone()));
    let readers = [read(), read()];
    for number in 1..=200 {
        node.propose(number).await;
        if number % 50 == 0 {
            node.engine.take_snapshot().await.unwrap();
        }
    }
    ends.store(true, Ordering::Release);
    for reader in readers {
        assert!(reader.await.unwrap() > 0);
    }
    assert_eq!(node.calls.count("write"), 4);
    node.stop().await;
}

/// A state machine that never finishes its snapshot: apply continues without one, and the status
/// reports why.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_for_a_snapshot_is_seen_and_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    (config.snapshots.pause_max_ms, config.snapshots.reserve_bytes) = (1_000, 0);
    let node =
        Alone::with(Recording::with(Manner { writes_for_ever: true, ..Manner::default() }), config)
            .await;
    node.propose(1).await;
    let engine = node.engine.clone();
    let asked = tokio::spawn(async move { engine.take_snapshot().await });
    until(async || {
        let snapshots = node.engine.status().await.snapshots;
        snapshots.building == Some(0) && !snapshots.pause.is_zero()
    })
    .await;
    let refused = asked.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("1000 ms") && refused.contains("snapshots.pause_max_ms"), "{refused}");
    node.propose(2).await;
    let snapshots = node.engine.status().await.snapshots;
    assert_eq!((snapshots.building, snapshots.failed), (None, 1));
    assert!(snapshots.pause >= std::time::Duration::from_secs(1), "{:?}", snapshots.pause);
    assert!(std::fs::read_dir(node.config.data_dir.join("snapshots")).unwrap().next().is_none());
    node.stop().await;
}

/// "Checksum validation": the engine compares the checksum that the machine returned, and refuses a
/// snapshot that does not match it.
#[tokio::test(flavor = "multi_thread")]
async fn notes_checksum_validation() {
    let node = Alone::start(Recording::default()).await;
    for number in 1..=3 {
        node.propose(number).await;
    }
    node.engine.take_snapshot().await.unwrap();
    node.propose(4).await;
    let last_included = node.engine.take_snapshot().await.unwrap().last_included();
    until(async || node.engine.replica_status().await.unwrap().core.log.base == last_included)
        .await;
    let (config, machine, _dir) = node.stop().await;
    // A bit of the newest snapshot flips on the disk; the one before it and the log are intact.
    let newest = newest_file(&config);
    let mut bytes = std::fs::read(&newest).unwrap();
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    machine.calls.clear();
    // The log begins after the damaged snapshot, so the one before it does not help: the start is
    // refused, and no snapshot reaches the machine. The test below covers a log that reaches
    // further back.
    let refused = EmbeddedEngine::start_custom(Arc::new(machine.again()), config)
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        refused.to_string().contains(newest.file_name().unwrap().to_str().unwrap()),
        "{refused}"
    );
    assert!(refused.to_string().contains("d-engine repair --data-dir DIR --from"), "{refused}");
    assert_eq!(machine.calls.count("apply_snapshot_from_file"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_snapshot_falls_back_to_the_one_before_it_where_the_log_reaches() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    config.snapshots.reserve_bytes = 0;
    let node = Alone::with(Recording::default(), config).await;
    node.propose(1).await;
    let first = node.engine.take_snapshot().await.unwrap();
    node.propose(2).await;
    node.engine.take_snapshot().await.unwrap();
    node.propose(4).await;
    let (config, machine, _) = node.stop().await;
    let newest = newest_file(&config);
    let mut bytes = std::fs::read(&newest).unwrap();
    // In the content, not in a part that is read at the start.
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    machine.calls.clear();
    let node = Alone::with(machine.again(), config).await;
    assert_eq!(
        node.calls.with("apply_snapshot_from_file"),
        [first.last_included().index.get().to_string()]
    );
    let read = node.engine.get(b"sum", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(read, Some(Bytes::from_static(b"7")));
    node.stop().await;
}

fn newest_file(config: &Config) -> std::path::PathBuf {
    let files = std::fs::read_dir(config.data_dir.join("snapshots")).unwrap().flatten();
    files.map(|entry| entry.path()).filter(|path| path.is_file()).max().unwrap()
}

/// A request for a snapshot while one is being built gets a later one, if more has been applied.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_asked_for_holds_everything_that_was_applied_before() {
    let machine = Recording::with(Manner { view_ahead_by: Some(0), ..Manner::default() });
    let (let_go, holder) = hold(machine.pen.clone());
    let node = Alone::start(machine).await;
    node.propose(1).await;
    let asks =
        |engine: EmbeddedEngine| tokio::spawn(async move { engine.take_snapshot().await.unwrap() });
    let first = asks(node.engine.clone());
    until(async || node.calls.count("snapshot_view") == 1).await;
    node.propose(2).await;
    let index = *node.calls.applied().last().unwrap();
    let second = asks(node.engine.clone());
    drop(let_go);
    let (first, second) = (
        first.await.unwrap().last_included().index.get(),
        second.await.unwrap().last_included().index.get(),
    );
    assert!(first < index && second >= index, "{first}, {second}: {index}");
    node.stop().await;
    holder.join().unwrap();
}

/// A machine that cannot continue: callers that wait for entries after the failed chunk receive the
/// reason too.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_ever_behind_a_chunk_that_failed() {
    let machine = Recording::with(Manner { chokes_on: Some(13), ..Manner::default() });
    let (let_go, holder) = hold(machine.pen.clone());
    let node = Alone::start(machine).await;
    node.settle().await;
    let committed = async || node.engine.replica_status().await.unwrap().core.log.committed.get();
    let mut calls = tokio::task::JoinSet::new();
    for number in [13, 1] {
        let (engine, before) = (node.engine.clone(), committed().await);
        calls.spawn(async move { engine.propose(vec![number]).await.is_ok() });
        until(async || committed().await > before && node.calls.count("apply_chunk") == 1).await;
    }
    let engine = node.engine.clone();
    calls.spawn(async move { engine.take_snapshot().await.is_ok() });
    drop(let_go);
    let told = tokio::time::timeout(TIMEOUT, calls.join_all()).await.unwrap();
    assert_eq!(told, [false, false, false]);
    node.stop().await;
    holder.join().unwrap();
}
