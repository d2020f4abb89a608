//! A node of the check: the real core with its disk. Every write is complete at the end of the step
//! that requests it.

use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};

use d_engine_core::{
    AppendPlan, Appended, Configuration, CoreConfig, Effects, EntryKind, EntryMeta, HardState,
    Initial, InitialLog, Input, Instant, LogIndex, Message, Now, RaftCore, Rejected, RoleKind,
};

use crate::print::canonical;
use crate::support::n;

/// The time of almost every step. Time never passes: a timer fires because the check says so.
const NOW: Instant = Instant::from_nanos(1_000_000_000);
/// When votes are requested: vote stickiness, which is a nanosecond here, has ended.
const LATER: Instant = Instant::from_nanos(1_000_000_001);

/// A message in flight; two that are equal count once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Letter {
    pub(crate) from: u64,
    pub(crate) to: u64,
    pub(crate) message: Message,
}

/// What a step of a node has caused.
#[derive(Default)]
pub(crate) struct Caused {
    pub(crate) letters: Vec<Letter>,
    pub(crate) rejected: Option<Rejected>,
    /// The entries that were replaced by those of another leader.
    pub(crate) truncated: Vec<EntryMeta>,
}

#[derive(Clone)]
pub(crate) struct Station {
    pub(crate) node: u64,
    pub(crate) core: RaftCore,
    /// The configuration before the first entry.
    first: Configuration,
    pub(crate) log: Vec<EntryMeta>,
    hard_state: HardState,
    /// Whether single messages are in flight; else logs are exchanged.
    pub(crate) has_messages: bool,
    /// For each set of nodes (bit 0 is node 1) whether it is a quorum of the configuration in
    /// force.
    pub(crate) quorums: u16,
    /// Stands for everything on which the node's future depends.
    pub(crate) print: u64,
}

/// The shortest durations with which the core changes its members while no time passes: a follower
/// keeps up if its rounds take less than a nanosecond.
fn config() -> CoreConfig {
    let (zero, nano) = (std::time::Duration::ZERO, std::time::Duration::from_nanos(1));
    CoreConfig {
        heartbeat_interval: zero,
        election_timeout_min: nano,
        election_timeout_max: zero,
        ..CoreConfig::default()
    }
}

fn core_from(
    node: u64,
    first: &Configuration,
    hard_state: HardState,
    log: &[EntryMeta],
) -> RaftCore {
    let configuration = first.clone();
    RaftCore::new(Initial {
        node: n(node),
        config: config(),
        hard_state,
        log: InitialLog { configuration, entries: log.to_vec(), ..InitialLog::default() },
        seed: node,
        now: NOW,
        accepts_clock: false,
        promised: d_engine_core::LogId::ZERO,
        command_version_max: 0,
    })
}

impl Station {
    pub(crate) fn new(node: u64, first: &Configuration, has_messages: bool) -> Self {
        let (hard_state, log, first) = (HardState::default(), Vec::new(), first.clone());
        let core = core_from(node, &first, hard_state, &log);
        let (quorums, print) = (0, 0);
        let mut station = Self { node, core, first, log, hard_state, has_messages, quorums, print };
        station.finish();
        station
    }

    /// The same node after a crash: what is on its disk is left.
    pub(crate) fn restarted(&self) -> (Self, Caused) {
        let mut hard_state = self.hard_state;
        if !self.has_messages {
            hard_state.commit = LogIndex::ZERO;
        }
        let core = core_from(self.node, &self.first, hard_state, &self.log);
        let mut station = Self { core, ..self.clone() };
        let mut caused = Caused::default();
        station.one(NOW, Input::Persisted(d_engine_core::PersistId::ZERO), &mut caused);
        station.finish();
        (station, caused)
    }

    pub(crate) fn stepped(&self, input: Input) -> (Self, Caused) {
        self.stepped_at(NOW, input)
    }

    /// A vote is requested of this node.
    pub(crate) fn asked(&self, input: Input) -> (Self, Caused) {
        self.stepped_at(LATER, input)
    }

    fn stepped_at(&self, now: Instant, input: Input) -> (Self, Caused) {
        let (mut station, mut caused) = (self.clone(), Caused::default());
        station.one(now, input, &mut caused);
        station.finish();
        (station, caused)
    }

    /// The election timeout fires and every other voter grants its pre-vote, which binds nobody.
    pub(crate) fn campaigning(&self) -> (Self, Caused) {
        let (mut station, mut caused) = (self.clone(), Caused::default());
        let now = station.core.next_deadline().unwrap_or(NOW);
        station.one(now, Input::Deadline, &mut caused);
        let term = station.core.term().checked_next().unwrap_or_default();
        for voter in self.configuration().members() {
            if station.core.role() == RoleKind::PreCandidate && voter.get() != self.node {
                let message = Message::PreVoteReply { term, granted: true, wall_ms: 0 };
                station.one(NOW, Input::Message { from: voter, message }, &mut caused);
            }
        }
        station.finish();
        (station, caused)
    }

    pub(crate) fn configuration(&self) -> &Configuration {
        self.core.configuration()
    }

    pub(crate) fn first(&self) -> &Configuration {
        &self.first
    }

    pub(crate) fn term(&self) -> u64 {
        self.core.term().get()
    }

    pub(crate) fn committed(&self) -> usize {
        usize::try_from(self.core.log().committed.get()).unwrap_or(usize::MAX)
    }

    pub(crate) fn leads(&self) -> bool {
        self.core.role() == RoleKind::Leader
    }

    /// One input, then the completions of what it requests.
    fn one(&mut self, now: Instant, input: Input, caused: &mut Caused) {
        let received = match &input {
            Input::Message { message: Message::Append { entries, .. }, .. } => entries.clone(),
            _ => Vec::new(),
        };
        let mut out = Effects::default();
        let result = self.core.step(Now { monotonic: now, wall_ms: 0 }, input, &mut out);
        caused.rejected = caused.rejected.or(result.err());
        let persist = out.persist.take();
        if let Some(order) = &persist {
            self.hard_state = order.hard_state.unwrap_or(self.hard_state);
            self.write(&order.appended, &received, caused);
        }
        for plan in &out.appends {
            caused.letters.push(self.fill(plan));
        }
        for send in out.messages.drain(..) {
            let (from, to) = (self.node, send.to.get());
            caused.letters.push(Letter { from, to, message: send.message.received() });
        }
        if let Some(order) = persist {
            self.one(NOW, Input::Persisted(order.id), caused);
        }
        if let Some(index) = out.apply_to {
            self.one(NOW, Input::Applied(index), caused);
        }
    }

    fn write(&mut self, appended: &Appended, received: &[EntryMeta], caused: &mut Caused) {
        match appended {
            Appended::Nothing => {}
            Appended::Created { first, count, kind, time_ms } => {
                // Else the fingerprint would have to contain the clocks.
                assert_eq!(*time_ms, 0, "no time passes");
                let configuration = (*kind == EntryKind::Membership)
                    .then(|| Box::new(self.configuration().clone()));
                let bytes = if *kind == EntryKind::Noop { 0 } else { 10 };
                let (term, kind, time_ms) = (first.term, *kind, *time_ms);
                let entry = EntryMeta { term, kind, time_ms, bytes, configuration };
                self.log.extend((0..*count).map(|_| entry.clone()));
            }
            Appended::Received { skip, first } => {
                let kept = usize::try_from(first.get() - 1).unwrap_or(usize::MAX);
                caused.truncated.extend(self.log.drain(kept.min(self.log.len())..));
                self.log.extend(received.iter().skip(*skip).cloned());
            }
            Appended::Snapshot { .. } => panic!("the check sends no snapshots"),
        }
    }

    fn fill(&self, plan: &AppendPlan) -> Letter {
        let at = |index: u64| usize::try_from(index).unwrap_or(usize::MAX);
        let entries = self.log[at(plan.prev.index.get())..at(plan.last.index.get())].to_vec();
        let (term, prev, commit) = (plan.term, plan.prev, plan.commit);
        let message = Message::Append { term, prev, commit, entries };
        Letter { from: self.node, to: plan.to.get(), message }
    }

    /// Computes what is known of the node from its core and its disk.
    fn finish(&mut self) {
        let configuration = self.core.configuration();
        self.quorums = (0..16_u16)
            .filter(|set| configuration.has_quorum(|node| set & bit(node.get()) != 0))
            .fold(0, |quorums, set| quorums | 1 << set);
        let mut text = String::with_capacity(4_096);
        let written = write!(text, "{:?}", self.core);
        written.expect("a string takes everything");
        let mut hasher = DefaultHasher::new();
        canonical(&text, self.has_messages).hash(&mut hasher);
        for entry in &self.log {
            (entry.term, entry.kind, &entry.configuration).hash(&mut hasher);
        }
        if self.has_messages {
            let HardState { term, vote, commit, .. } = self.hard_state;
            (term, vote, commit).hash(&mut hasher);
        }
        self.print = hasher.finish();
    }
}

/// A set of nodes that holds this one alone.
pub(crate) fn bit(node: u64) -> u16 {
    1 << (node - 1)
}
