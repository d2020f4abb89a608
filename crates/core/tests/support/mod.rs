//! One node of a cluster, driven by the test: the test gives every input and inspects every effect.
//! Helpers return plain values and never assert.
#![allow(dead_code, clippy::unwrap_used)]

mod inspect;
pub(crate) mod network;

use std::time::Duration;

use d_engine_core::{
    AppendOutcome, AppendPlan, Configuration, CoreConfig, Effects, EntryKind, EntryMeta,
    FollowerReport, HardState, Initial, InitialLog, Input, Instant, LogId, LogIndex, Message,
    NodeId, Now, PersistId, PersistRequest, QuorumRisk, RaftCore, ReadMode, Rejected, Term,
};

/// The report of a follower with the default settings that has applied up to `applied`.
pub(crate) fn reports(applied: u64) -> FollowerReport {
    let stickiness = CoreConfig::default().election_timeout_min;
    FollowerReport {
        applied: i(applied),
        stickiness,
        command_version_max: 2,
        ..FollowerReport::default()
    }
}

pub(crate) fn n(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn t(term: u64) -> Term {
    Term::new(term)
}

pub(crate) fn i(index: u64) -> LogIndex {
    LogIndex::new(index)
}

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(t(term), i(index))
}

/// An entry of `term` with ten bytes of payload.
pub(crate) fn entry(term: u64) -> EntryMeta {
    EntryMeta {
        term: t(term),
        kind: EntryKind::Command,
        time_ms: 0,
        bytes: 10,
        configuration: None,
    }
}

pub(crate) fn entries(terms: &[u64]) -> Vec<EntryMeta> {
    terms.iter().map(|term| entry(*term)).collect()
}

/// A membership entry of `term`.
pub(crate) fn membership(term: u64, configuration: &Configuration) -> EntryMeta {
    EntryMeta {
        kind: EntryKind::Membership,
        configuration: Some(Box::new(configuration.clone())),
        ..entry(term)
    }
}

/// Nodes 1 to `voters` vote; the `learners` after them do not.
pub(crate) fn cluster(voters: u64, learners: u64) -> Configuration {
    Configuration::new((1..=voters).map(n), (voters + 1..=voters + learners).map(n))
}

pub(crate) fn persisted(index: u64) -> AppendOutcome {
    AppendOutcome::Persisted(i(index))
}

pub(crate) fn conflict(refused: u64, hint: LogId) -> AppendOutcome {
    AppendOutcome::Conflict { refused: i(refused), hint }
}

/// A follower of node 2 in term `term` whose log has these terms, all persisted, none verified.
pub(crate) fn follower(term: u64, log: &[u64]) -> Node {
    Node::new(3, term, log)
}

/// The state from which node 1 starts.
pub(crate) struct Setup {
    pub(crate) configuration: Configuration,
    pub(crate) hard_state: HardState,
    pub(crate) log: Vec<EntryMeta>,
    pub(crate) config: CoreConfig,
    pub(crate) promised: LogId,
    pub(crate) seed: u64,
}

impl Setup {
    /// One of `voters`, with a log of these terms.
    pub(crate) fn of(voters: u64, term: u64, log: &[u64]) -> Self {
        Self {
            configuration: cluster(voters, 0),
            hard_state: HardState { term: t(term), ..HardState::default() },
            log: entries(log),
            config: CoreConfig::default(),
            promised: LogId::ZERO,
            seed: 7,
        }
    }
}

/// A node and all effects since the test last took them.
pub(crate) struct Node {
    pub(crate) core: RaftCore,
    pub(crate) now: Instant,
    pub(crate) wall_ms: u64,
    pub(crate) sent: Vec<(u64, Message)>,
    pub(crate) appends: Vec<AppendPlan>,
    pub(crate) orders: Vec<PersistRequest>,
    pub(crate) apply_to: Option<u64>,
    pub(crate) confirmed: Vec<(u64, u64)>,
    pub(crate) lost_reads: Vec<u64>,
    pub(crate) snapshots: Vec<u64>,
    pub(crate) superseded_from: Option<u64>,
    pub(crate) lost_leadership: bool,
    pub(crate) hard_state_saved: bool,
    pub(crate) log_lost: Option<u64>,
    /// The nodes to which the leader no longer sends.
    pub(crate) dropped: Vec<u64>,
    /// Whether the last step changed role, term, leader or configuration.
    pub(crate) status_changed: bool,
}

impl Node {
    /// Starts node 1 with everything in `setup` and, unless it is the only voter and has followed
    /// nobody, with its vote stickiness persisted.
    pub(crate) fn start(mut setup: Setup) -> Self {
        let stickiness = setup.hard_state.stickiness.max(setup.config.election_timeout_min);
        let is_alone = setup.log.iter().all(|entry| entry.configuration.is_none());
        if !is_alone || !setup.configuration.is_sole_voter(n(1)) {
            setup.hard_state.stickiness = stickiness;
        }
        Self::start_with(setup, false)
    }

    /// Starts node 1 with the stickiness in `setup`.
    pub(crate) fn start_as_stored(setup: Setup) -> Self {
        Self::start_with(setup, false)
    }

    pub(crate) fn start_accepting_the_clock(setup: Setup) -> Self {
        Self::start_with(setup, true)
    }

    fn start_with(setup: Setup, accepts_clock: bool) -> Self {
        let now = Instant::from_nanos(1_000_000_000);
        let core = RaftCore::new(Initial {
            node: n(1),
            config: setup.config,
            hard_state: setup.hard_state,
            accepts_clock,
            promised: setup.promised,
            command_version_max: 2,
            log: InitialLog {
                configuration: setup.configuration,
                entries: setup.log,
                ..InitialLog::default()
            },
            seed: setup.seed,
            now,
        });
        Self {
            core,
            now,
            wall_ms: 0,
            sent: Vec::new(),
            appends: Vec::new(),
            orders: Vec::new(),
            apply_to: None,
            confirmed: Vec::new(),
            lost_reads: Vec::new(),
            snapshots: Vec::new(),
            superseded_from: None,
            lost_leadership: false,
            hard_state_saved: false,
            log_lost: None,
            dropped: Vec::new(),
            status_changed: false,
        }
    }

    /// Node 1 of a cluster of `voters`, with a log of these terms, all persisted.
    pub(crate) fn new(voters: u64, term: u64, log: &[u64]) -> Self {
        Self::start(Setup::of(voters, term, log))
    }

    /// The same, long enough after its start that vote stickiness has ended.
    pub(crate) fn rested(voters: u64, term: u64, log: &[u64]) -> Self {
        let mut node = Self::new(voters, term, log);
        node.pass(500);
        node
    }

    pub(crate) fn with_vote(voters: u64, term: u64, vote: Option<u64>, log: &[u64]) -> Self {
        let mut setup = Setup::of(voters, term, log);
        setup.hard_state.vote = vote.map(n);
        Self::start(setup)
    }

    /// A node that leads `voters` in `term + 1`; only it has persisted its no-op.
    pub(crate) fn leader(voters: u64, term: u64, log: &[u64]) -> Self {
        Self::leader_of(Setup::of(voters, term, log))
    }

    /// The same with other settings.
    pub(crate) fn leader_of(setup: Setup) -> Self {
        let mut node = Self::start(setup);
        node.campaign();
        node.store();
        let voters = node.core.configuration().voters().len() as u64;
        for voter in 2..=voters / 2 + 1 {
            node.vote_from(voter).unwrap();
        }
        node.store();
        node
    }

    /// A node that leads `voters` in `term + 1`; every voter has persisted its no-op.
    pub(crate) fn settled(voters: u64, term: u64, log: &[u64]) -> Self {
        let mut node = Self::leader(voters, term, log);
        node.settle();
        node
    }

    /// Every other voter acknowledges all of this leader's log; all effects so far are dropped.
    pub(crate) fn settle(&mut self) {
        self.store();
        let last = self.core.log().last.index.get();
        for voter in 2..=self.core.configuration().voters().len() as u64 {
            self.stored_by(voter, last).unwrap();
        }
        self.sent.clear();
        self.appends.clear();
        self.orders.clear();
    }

    /// Lets the election timeout pass and wins the pre-vote: a candidate whose own vote is not
    /// persisted.
    pub(crate) fn campaign(&mut self) {
        self.pre_campaign();
        let asked = t(self.core.term().get() + 1);
        let voters = self.core.configuration().voters().len() as u64;
        for voter in 2..=voters / 2 + 1 {
            self.receive(
                voter,
                Message::PreVoteReply { term: asked, granted: true, wall_ms: self.wall_ms },
            )
            .unwrap();
        }
    }

    /// Lets the election timeout pass.
    pub(crate) fn pre_campaign(&mut self) {
        self.pass(2_000);
        self.step(Input::Deadline).unwrap();
    }

    /// A node that campaigns in `term + 1`; its own vote is persisted.
    pub(crate) fn candidate(voters: u64, term: u64, log: &[u64]) -> Self {
        let mut node = Self::new(voters, term, log);
        node.campaign();
        node.store();
        node
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
    }

    pub(crate) fn time(&self) -> Now {
        Now { monotonic: self.now, wall_ms: self.wall_ms }
    }

    pub(crate) fn step(&mut self, input: Input) -> Result<(), Rejected> {
        let mut out = Effects::default();
        let result = self.core.step(self.time(), input, &mut out);
        self.orders.extend(out.persist);
        self.sent
            .extend(out.messages.into_iter().map(|send| (send.to.get(), send.message.received())));
        self.appends.extend(out.appends);
        self.apply_to = out.apply_to.map(LogIndex::get).or(self.apply_to);
        self.confirmed.extend(out.reads_confirmed.iter().map(|(read, index)| (*read, index.get())));
        self.lost_reads.extend(out.reads_lost);
        self.snapshots.extend(out.snapshots.iter().map(|node| node.get()));
        self.superseded_from = out.superseded_from.map(LogIndex::get).or(self.superseded_from);
        self.lost_leadership |= out.lost_leadership;
        self.hard_state_saved |= out.hard_state_saved;
        self.dropped.extend(out.dropped.iter().map(|node| node.get()));
        self.status_changed = out.status_changed;
        self.log_lost = out.log_lost.map(LogIndex::get).or(self.log_lost);
        result
    }

    pub(crate) fn receive(&mut self, from: u64, message: Message) -> Result<(), Rejected> {
        self.step(Input::Message { from: n(from), message })
    }

    /// Reports all requested writes as persisted.
    pub(crate) fn store(&mut self) {
        if let Some(last) = self.orders.last().map(|order| order.id) {
            self.step(Input::Persisted(last)).unwrap();
        }
    }

    /// Reports the requested writes up to this number as persisted.
    pub(crate) fn store_order(&mut self, order: u64) -> Result<(), Rejected> {
        self.step(Input::Persisted(PersistId::new(order)))
    }

    /// An append from `from` of `term`: entries of these terms after `prev`.
    pub(crate) fn append(
        &mut self,
        from: u64,
        term: u64,
        prev: LogId,
        terms: &[u64],
        commit: u64,
    ) -> Result<(), Rejected> {
        self.append_of(from, term, prev, entries(terms), commit)
    }

    pub(crate) fn append_of(
        &mut self,
        from: u64,
        term: u64,
        prev: LogId,
        entries: Vec<EntryMeta>,
        commit: u64,
    ) -> Result<(), Rejected> {
        self.receive(from, Message::Append { term: t(term), prev, commit: i(commit), entries })
    }

    pub(crate) fn heartbeat(&mut self, from: u64, term: u64, commit: u64) -> Result<(), Rejected> {
        self.receive(
            from,
            Message::Heartbeat {
                term: t(term),
                commit: i(commit),
                round: 1,
                matched: LogIndex::ZERO,
            },
        )
    }

    pub(crate) fn ask_vote(&mut self, from: u64, term: u64, last: LogId) -> Result<(), Rejected> {
        self.receive(from, Message::RequestVote { term: t(term), last, transfer: false })
    }

    pub(crate) fn ask_pre_vote(
        &mut self,
        from: u64,
        term: u64,
        last: LogId,
    ) -> Result<(), Rejected> {
        self.receive(from, Message::PreVote { term: t(term), last })
    }

    /// `from` votes for this node in its current term.
    pub(crate) fn vote_from(&mut self, from: u64) -> Result<(), Rejected> {
        self.receive(
            from,
            Message::VoteReply { term: self.core.term(), granted: true, wall_ms: self.wall_ms },
        )
    }

    /// Follower `from` has persisted everything up to `index`.
    pub(crate) fn stored_by(&mut self, from: u64, index: u64) -> Result<(), Rejected> {
        let outcome = AppendOutcome::Persisted(i(index));
        self.receive(from, Message::AppendReply { term: self.core.term(), outcome })
    }

    /// Follower `from` lacks the entry at `index`; its hint is where its log may match.
    pub(crate) fn refused_by(
        &mut self,
        from: u64,
        index: u64,
        hint: LogId,
    ) -> Result<(), Rejected> {
        let outcome = AppendOutcome::Conflict { refused: i(index), hint };
        self.receive(from, Message::AppendReply { term: self.core.term(), outcome })
    }

    /// A message of `term` arrives, which deposes a leader of an earlier term.
    pub(crate) fn deposed_by(&mut self, from: u64, term: u64) {
        let outcome = AppendOutcome::Conflict { refused: i(1), hint: LogId::ZERO };
        self.receive(from, Message::AppendReply { term: t(term), outcome }).unwrap();
    }

    pub(crate) fn propose(&mut self, count: usize) -> Result<(), Rejected> {
        self.step(Input::Propose { sizes: vec![10; count] })
    }

    pub(crate) fn read(&mut self, read: u64) -> Result<(), Rejected> {
        self.step(Input::Read { ids: vec![read], mode: ReadMode::Round })
    }

    /// A read that the lease may confirm.
    pub(crate) fn lease_read(&mut self, read: u64) -> Result<(), Rejected> {
        self.step(Input::Read { ids: vec![read], mode: ReadMode::Lease })
    }

    pub(crate) fn propose_membership(
        &mut self,
        configuration: Configuration,
    ) -> Result<(), Rejected> {
        self.step(Input::ProposeMembership {
            configuration: Box::new(configuration),
            bytes: 10,
            risk: QuorumRisk::Refuse,
        })
    }

    /// `from` replies to heartbeat `round`; it has everything up to `index`.
    pub(crate) fn answers(&mut self, from: u64, round: u64, index: u64) -> Result<(), Rejected> {
        self.answers_holding(from, round, index, index)
    }

    /// `from` replies to heartbeat `round`; it has received more than it has persisted.
    pub(crate) fn answers_holding(
        &mut self,
        from: u64,
        round: u64,
        received: u64,
        persisted: u64,
    ) -> Result<(), Rejected> {
        let (received, persisted) = (i(received), i(persisted));
        self.receive(
            from,
            Message::HeartbeatReply {
                term: self.core.term(),
                round,
                received,
                persisted,
                report: self.report(),
            },
        )
    }

    /// `from` replies to heartbeat `round`; its wall clock shows `wall_ms`.
    pub(crate) fn heard_with_clock(&mut self, from: u64, round: u64, wall_ms: u64) {
        let report = FollowerReport { wall_ms, ..self.report() };
        let (received, persisted) = (i(1), i(1));
        let term = self.core.term();
        self.receive(from, Message::HeartbeatReply { term, round, received, persisted, report })
            .unwrap();
    }

    /// `from` replies to heartbeat `round`; it has persisted up to `index` and applied up to
    /// `applied`.
    pub(crate) fn answers_applied(&mut self, from: u64, round: u64, index: u64, applied: u64) {
        let report = FollowerReport { applied: i(applied), ..self.report() };
        let (received, persisted) = (i(index), i(index));
        let term = self.core.term();
        self.receive(from, Message::HeartbeatReply { term, round, received, persisted, report })
            .unwrap();
    }
}
