//! One node of a cluster under the test's hand: every input is given by the test, every effect is
//! looked at by the test. Helpers return plain values and never assert.
#![allow(dead_code, clippy::unwrap_used)]

use d_engine_core::{
    AppendOutcome, AppendPlan, Configuration, CoreConfig, Duration, Effects, EntryKind, EntryMeta, HardState,
    Initial, InitialLog, Input, Instant, LogId, LogIndex, Message, NodeId, PersistId, RaftCore, Rejected,
    RoleKind, Term,
};

pub(crate) fn n(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

/// An entry of `term` with ten bytes of payload.
pub(crate) fn entry(term: u64) -> EntryMeta {
    EntryMeta { term: Term::new(term), kind: EntryKind::Command, time_ms: 0, bytes: 10, configuration: None }
}

pub(crate) fn entries(terms: &[u64]) -> Vec<EntryMeta> {
    terms.iter().map(|term| entry(*term)).collect()
}

/// A node and everything it has given out since the test looked last.
pub(crate) struct Node {
    pub(crate) core: RaftCore,
    pub(crate) now: Instant,
    pub(crate) sent: Vec<(u64, Message)>,
    pub(crate) appends: Vec<AppendPlan>,
    pub(crate) orders: Vec<PersistId>,
    pub(crate) hard_states: Vec<HardState>,
    pub(crate) apply_to: Option<u64>,
    pub(crate) confirmed: Vec<(u64, u64)>,
    pub(crate) lost_reads: Vec<u64>,
    pub(crate) lost_leadership: bool,
}

impl Node {
    /// Node 1 of a cluster of `voters`, with a log of these terms, all of it stored.
    pub(crate) fn new(voters: u64, term: u64, log: &[u64]) -> Self {
        Self::with_vote(voters, term, None, log)
    }

    pub(crate) fn with_vote(voters: u64, term: u64, vote: Option<u64>, log: &[u64]) -> Self {
        let configuration = Configuration::new((1..=voters).map(n), None);
        let now = Instant::from_nanos(1_000_000_000);
        let core = RaftCore::new(Initial {
            node: n(1),
            config: CoreConfig::default(),
            hard_state: HardState { term: Term::new(term), vote: vote.map(n), commit: LogIndex::ZERO },
            log: InitialLog { configuration, entries: entries(log), ..InitialLog::default() },
            seed: 7,
            now,
        });
        Self {
            core,
            now,
            sent: Vec::new(),
            appends: Vec::new(),
            orders: Vec::new(),
            hard_states: Vec::new(),
            apply_to: None,
            confirmed: Vec::new(),
            lost_reads: Vec::new(),
            lost_leadership: false,
        }
    }

    /// A node that leads `term + 1` of `voters`, its no-op stored here and nowhere else.
    pub(crate) fn leader(voters: u64, term: u64, log: &[u64]) -> Self {
        let mut node = Self::new(voters, term, log);
        node.campaign();
        node.store();
        let won = voters / 2 + 1;
        for voter in 2..=won {
            node.receive(voter, Message::VoteReply { term: node.core.term(), granted: true }).unwrap();
        }
        node.store();
        node
    }

    /// Lets the election timeout pass and wins the pre-vote: a candidate whose vote is not stored.
    pub(crate) fn campaign(&mut self) {
        self.pass(2_000);
        self.step(Input::Deadline).unwrap();
        let asked = Term::new(self.core.term().get() + 1);
        let voters = self.core.configuration().voters().len() as u64;
        for voter in 2..=voters / 2 + 1 {
            self.receive(voter, Message::PreVoteReply { term: asked, granted: true }).unwrap();
        }
    }

    pub(crate) fn pass(&mut self, millis: u64) {
        self.now = self.now.plus(Duration::from_millis(millis));
    }

    pub(crate) fn step(&mut self, input: Input) -> Result<(), Rejected> {
        let mut out = Effects::default();
        let result = self.core.step(self.now, 0, input, &mut out);
        if let Some(order) = out.persist {
            self.orders.push(order.id);
            self.hard_states.extend(order.hard_state);
        }
        self.sent.extend(out.messages.into_iter().map(|send| (send.to.get(), send.message)));
        self.appends.extend(out.appends);
        self.apply_to = out.apply_to.map(LogIndex::get).or(self.apply_to);
        self.confirmed.extend(out.reads_confirmed.iter().map(|(read, index)| (*read, index.get())));
        self.lost_reads.extend(out.reads_lost);
        self.lost_leadership |= out.lost_leadership;
        result
    }

    pub(crate) fn receive(&mut self, from: u64, message: Message) -> Result<(), Rejected> {
        self.step(Input::Message { from: n(from), message })
    }

    /// Reports everything ordered so far as stored.
    pub(crate) fn store(&mut self) {
        if let Some(last) = self.orders.last().copied() {
            self.step(Input::Persisted(last)).unwrap();
        }
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
        let message = Message::Append {
            term: Term::new(term),
            prev,
            commit: LogIndex::new(commit),
            entries: entries(terms),
        };
        self.receive(from, message)
    }

    /// Follower `from` has stored everything up to `index`.
    pub(crate) fn stored_by(&mut self, from: u64, index: u64) -> Result<(), Rejected> {
        let outcome = AppendOutcome::Stored(LogIndex::new(index));
        self.receive(from, Message::AppendReply { term: self.core.term(), outcome })
    }

    pub(crate) fn propose(&mut self, count: usize) -> Result<(), Rejected> {
        self.step(Input::Propose { sizes: vec![10; count] })
    }

    pub(crate) fn read(&mut self, read: u64) -> Result<(), Rejected> {
        self.step(Input::Read { ids: vec![read] })
    }

    /// `from` answers heartbeat `round`, holding everything up to `index`.
    pub(crate) fn answers(&mut self, from: u64, round: u64, index: u64) -> Result<(), Rejected> {
        let (received, stored) = (LogIndex::new(index), LogIndex::new(index));
        self.receive(from, Message::HeartbeatReply { term: self.core.term(), round, received, stored })
    }

    pub(crate) fn commit(&self) -> u64 {
        self.core.log().committed.get()
    }

    pub(crate) fn role(&self) -> RoleKind {
        self.core.role()
    }

    /// What was sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Vec<(u64, Message)> {
        std::mem::take(&mut self.sent)
    }

    /// The terms of the log.
    pub(crate) fn log_terms(&self) -> Vec<u64> {
        let last = self.core.log().last.index.get();
        (1..=last).map(|index| self.core.term_at(LogIndex::new(index)).unwrap().get()).collect()
    }

    /// The last heartbeat round sent.
    pub(crate) fn last_round(&self) -> u64 {
        let round = self.sent.iter().rev().find_map(|(_, message)| match message {
            Message::Heartbeat { round, .. } => Some(*round),
            _ => None,
        });
        round.unwrap_or(0)
    }
}
