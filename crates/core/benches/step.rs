//! The cost of the algorithm itself: no disk, no network, no payload.
//!
//! ```text
//! cargo bench -p d-engine-core
//! ```
#![allow(clippy::unwrap_used, reason = "a benchmark may stop there")]
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use d_engine_core::{
    AppendOutcome, Configuration, CoreConfig, Effects, EntryKind, EntryMeta, FollowerReport,
    HardState, Initial, InitialLog, Input, Instant, LogId, LogIndex, Message, NodeId, Now,
    RaftCore, ReadMode, Term,
};

const COMMAND_BYTES: u32 = 256;
const TERM: Term = Term::new(1);

/// One of three nodes, and the effects of its steps.
struct Node {
    core: RaftCore,
    now: Instant,
    out: Effects,
}

impl Node {
    fn new() -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let configuration = Configuration::new((1..=3).map(node), []);
        let core = RaftCore::new(Initial {
            node: node(1),
            config: CoreConfig::default(),
            hard_state: HardState::default(),
            log: InitialLog { configuration, ..InitialLog::default() },
            seed: 7,
            now,
            accepts_clock: false,
            promised: d_engine_core::LogId::ZERO,
            command_version_max: 0,
        });
        Self { core, now, out: Effects::default() }
    }

    /// Returns a leader of term 1 whose no-op is committed.
    fn leader() -> Self {
        let mut leader = Self::new();
        leader.now = leader.now.plus(Duration::from_millis(2_000));
        leader.step(Input::Deadline);
        leader.receive(2, Message::PreVoteReply { term: TERM, granted: true, wall_ms: 0 });
        leader.store();
        leader.receive(2, Message::VoteReply { term: TERM, granted: true, wall_ms: 0 });
        leader.commit();
        leader
    }

    fn step(&mut self, input: Input) {
        self.core.step(Now { monotonic: self.now, wall_ms: 0 }, input, &mut self.out).unwrap();
    }

    fn receive(&mut self, from: u64, message: Message) {
        self.step(Input::Message { from: node(from), message });
    }

    /// Completes every write that the last step requested.
    fn store(&mut self) {
        if let Some(order) = self.out.persist.take() {
            self.step(Input::Persisted(order.id));
        }
    }

    /// Persists here and at both followers what the last step appended, and applies it.
    fn commit(&mut self) {
        self.store();
        let last = self.core.log().last.index;
        for from in [2, 3] {
            self.receive(
                from,
                Message::AppendReply { term: TERM, outcome: AppendOutcome::Persisted(last) },
            );
        }
        assert_eq!(self.core.log().committed, last);
        self.step(Input::Applied(last));
    }
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

fn leader(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("leader of three");
    for batch in [1, 128] {
        let mut leader = Node::leader();
        group.throughput(Throughput::Elements(batch));
        group.bench_function(format!("propose and commit, {batch} commands"), |bencher| {
            let sizes = vec![COMMAND_BYTES; usize::try_from(batch).unwrap()];
            bencher.iter_batched(
                || sizes.clone(),
                |sizes| {
                    leader.step(Input::Propose { sizes });
                    leader.commit();
                },
                BatchSize::SmallInput,
            );
        });
    }
    let mut leader = Node::leader();
    group.throughput(Throughput::Elements(64));
    group.bench_function("heartbeat round with 64 reads", |bencher| {
        let ids: Vec<u64> = (0..64).collect();
        bencher.iter_batched(
            || ids.clone(),
            |ids| {
                leader.step(Input::Read { ids, mode: ReadMode::Round });
                let sent = leader.out.messages.iter().find_map(|send| match send.message {
                    Message::Heartbeat { round, .. } => Some(round),
                    _ => None,
                });
                let (round, last) = (sent.unwrap(), leader.core.log().last.index);
                leader.receive(
                    2,
                    Message::HeartbeatReply {
                        term: TERM,
                        round,
                        received: last,
                        persisted: last,
                        report: FollowerReport::default(),
                    },
                );
                assert_eq!(leader.out.reads_confirmed.len(), 64);
                leader.receive(
                    3,
                    Message::HeartbeatReply {
                        term: TERM,
                        round,
                        received: last,
                        persisted: last,
                        report: FollowerReport::default(),
                    },
                );
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn follower(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("follower");
    let entry = EntryMeta {
        term: TERM,
        kind: EntryKind::Command,
        time_ms: 0,
        bytes: COMMAND_BYTES,
        configuration: None,
    };
    for batch in [1, 128] {
        let mut follower = Node::new();
        let entries = vec![entry.clone(); batch];
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_function(format!("append and store, {batch} entries"), |bencher| {
            bencher.iter_batched(
                || entries.clone(),
                |entries| {
                    let prev = follower.core.log().last;
                    // The one before is committed by now.
                    follower.receive(
                        2,
                        Message::Append { term: TERM, prev, commit: prev.index, entries },
                    );
                    let applied = follower.out.apply_to;
                    follower.store();
                    if let Some(applied) = applied {
                        follower.step(Input::Applied(applied));
                    }
                },
                BatchSize::SmallInput,
            );
        });
        assert!(follower.core.log().last > LogId::new(TERM, LogIndex::ZERO));
    }
    group.finish();
}

fn short() -> Criterion {
    let (warm_up, measured) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(measured)
}

criterion_group!(name = benches; config = short(); targets = leader, follower);
criterion_main!(benches);
