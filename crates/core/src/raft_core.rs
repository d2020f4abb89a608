//! The core's state, its one entrance, and the term rule.

use alloc::vec::Vec;

use crate::effects::{Appended, Effects, PersistOrder, Send};
use crate::forward::Forwarded;
use crate::held::{AwaitedOrders, Held};
use crate::input::{Input, Rejected};
use crate::leader::HeartbeatAnswer;
use crate::log_clock::PeerClocks;
use crate::log_view::{InitialLog, LogView};
use crate::prng::Prng;
use crate::role::{Follower, Role};
use crate::status::{CoreStatus, FollowerStatus};
use crate::{
    CoreConfig, FollowerReport, HardState, Instant, LogIndex, MAX_ACCEPTED_TIME_MS, Message, NodeId,
    PersistId, RoleKind, Term,
};

/// What a core starts from.
#[derive(Clone, Debug)]
pub struct Initial {
    /// This node.
    pub node: NodeId,
    /// The settings; see [`CoreConfig::validate`].
    pub config: CoreConfig,
    /// The hard state that was stored last.
    pub hard_state: HardState,
    /// The log that was stored.
    pub log: InitialLog,
    /// For election timeouts; different on every node and at every start.
    pub seed: u64,
    /// The time now.
    pub now: Instant,
    /// Believe the wall clock of a node that is alone however far it is from its log; see
    /// [`crate::ClockState::Held`].
    pub accepts_clock: bool,
    /// The highest version of a command that this node's program decodes.
    pub command_version_max: u32,
}

/// The Raft algorithm of one node in one group.
#[derive(Clone, Debug)]
pub struct RaftCore {
    pub(crate) node: NodeId,
    pub(crate) config: CoreConfig,
    pub(crate) prng: Prng,
    pub(crate) hard_state: HardState,
    pub(crate) role: Role,
    pub(crate) log: LogView,
    /// When this node campaigns if it hears no leader.
    pub(crate) election_at: Instant,
    /// Until then this node votes for nobody: it has heard a leader, or it has just started and may
    /// have promised one its loyalty before (Raft thesis, sections 4.2.3 and 6.4.1).
    pub(crate) loyal_until: Instant,
    // What was ordered from the disk, and what of it is durable.
    stored_hard_state: HardState,
    last_order: PersistId,
    durable_order: PersistId,
    hard_state_order: PersistId,
    /// Up to here terms and votes are durable, entries perhaps not; at least `durable_order`.
    durable_hard_state: PersistId,
    apply_ordered: LogIndex,
    pub(crate) held: Held,
    /// Reads of a follower that its leader is asked about.
    pub(crate) forwarded: Forwarded,
    // Filled during a step, emptied by `finish`.
    pub(crate) appended: Appended,
    outbox: Vec<(Needs, Send)>,
    /// The wall clock at this step, in UNIX milliseconds.
    pub(crate) wall_ms: u64,
    /// The wall clocks of the others, as far as their answers told.
    pub(crate) clocks: PeerClocks,
    /// When votes and pre-votes were last asked for.
    pub(crate) votes_asked: Instant,
    pub(crate) pre_votes_asked: Instant,
    /// A single voter believes its wall clock however far it is from its log.
    pub(crate) accepts_clock: bool,
    /// The own disk does not answer.
    pub(crate) disk_hangs: bool,
    /// The own disk has too little room for a leader's.
    pub(crate) short_of_room: bool,
    /// Where the own state machine stops.
    pub(crate) stands_at: Option<crate::LogId>,
    /// Until then a vote promise of an earlier run of this node may hold.
    pub(crate) promised_before: Instant,
    /// The highest version of a command that this node's program decodes.
    pub(crate) command_version_max: u32,
}

/// What must be durable before a message may leave, beside term and vote, which always must.
#[derive(Clone, Copy, Debug)]
enum Needs {
    TermAndVote,
    LogUpTo(LogIndex),
}

impl RaftCore {
    /// A node that has just started, as a follower.
    ///
    /// Step once with [`Input::Deadline`] right after: it hands out what is committed already.
    #[must_use]
    pub fn new(initial: Initial) -> Self {
        let mut log = initial.log;
        log.commit = log.commit.max(initial.hard_state.commit);
        let log = LogView::new(log);
        let mut prng = Prng::new(initial.seed);
        let forwarded = Forwarded::new(&mut prng);
        let mut core = Self {
            node: initial.node,
            config: initial.config,
            prng,
            forwarded,
            hard_state: initial.hard_state,
            role: Role::Follower(Follower::default()),
            election_at: initial.now,
            loyal_until: initial.now,
            stored_hard_state: initial.hard_state,
            last_order: PersistId::ZERO,
            durable_order: PersistId::ZERO,
            hard_state_order: PersistId::ZERO,
            durable_hard_state: PersistId::ZERO,
            apply_ordered: log.applied(),
            log,
            held: Held::default(),
            appended: Appended::Nothing,
            outbox: Vec::new(),
            wall_ms: 0,
            clocks: PeerClocks::new(&initial.config),
            votes_asked: initial.now,
            pre_votes_asked: initial.now,
            accepts_clock: initial.accepts_clock,
            disk_hangs: false,
            short_of_room: false,
            stands_at: None,
            promised_before: initial.now,
            command_version_max: initial.command_version_max,
        };
        if initial.hard_state.term > Term::ZERO {
            let promised = initial.hard_state.stickiness.max(core.config.election_timeout_min);
            core.loyal_until = initial.now.plus(promised);
            core.promised_before = core.loyal_until;
        }
        // The only voter has nobody to wait for.
        if core.log.configuration().voters() != [core.node] {
            core.draw_election_timeout(initial.now);
        }
        core
    }

    /// Takes in one thing that happened at `now`, with the wall clock at `wall_ms` (UNIX
    /// milliseconds; only for the log time of entries that this step may create), and fills `out`.
    ///
    /// # Errors
    /// [`Rejected`] says why the input changed nothing. `out` is valid all the same.
    pub fn step(
        &mut self,
        now: Instant,
        wall_ms: u64,
        input: Input,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        out.clear();
        self.wall_ms = wall_ms.min(MAX_ACCEPTED_TIME_MS);
        let before = (self.role.kind(), self.hard_state.term, self.leader(), self.log.configuration_index());
        let result = match input {
            Input::Message { from, message } => self.on_message(now, from, message, out),
            Input::Propose { sizes } => self.on_propose(now, &sizes, out),
            Input::ProposeMembership { configuration, bytes } => {
                self.on_propose_membership(now, configuration, bytes, out)
            }
            Input::TransferLeadership { to } => self.on_transfer(now, to, out),
            Input::Tick => self.on_tick(now, out),
            Input::ProposeSkip { target, bytes } => self.on_propose_skip(now, target, bytes, out),
            Input::StandsAt(entry) => {
                self.stands_at = entry;
                Ok(())
            }
            Input::Read { ids, lease: false } => self.on_read(now, ids, out),
            Input::Read { ids, lease: true } => self.on_lease_read(now, ids, out),
            Input::Persisted(order) => self.on_persisted(now, order, out),
            Input::HardStateStored(order) => self.on_hard_state_stored(now, order, out),
            Input::Applied(index) => {
                if self.log.applied_to(index) {
                    Ok(())
                } else {
                    Err(Rejected::UnknownOrder)
                }
            }
            Input::InstallSnapshot { from, term, last, time_ms, configuration } => {
                let snapshot = crate::snapshot::Received { from, term, last, time_ms, configuration };
                self.on_install_snapshot(now, snapshot, out)
            }
            Input::SnapshotFailed(node) => {
                self.on_snapshot_failed(node);
                Ok(())
            }
            Input::Purged(through) => self.on_purged(through),
            Input::PeerLost(node) => {
                self.on_peer_lost(now, node, out);
                Ok(())
            }
            Input::AppendNotSent { to, term, prev } => {
                self.on_append_not_sent(to, term, prev);
                Ok(())
            }
            Input::ShortOfRoom(short) => {
                self.short_of_room = short;
                Ok(())
            }
            Input::DiskHangs(hangs) => {
                self.on_disk_hangs(now, hangs, out);
                Ok(())
            }
            Input::Deadline => {
                self.on_deadline(now, out);
                Ok(())
            }
        };
        self.finish(out);
        let after = (self.role.kind(), self.hard_state.term, self.leader(), self.log.configuration_index());
        out.status_changed = before != after;
        self.check_invariants(before.1);
        result
    }

    /// When [`Input::Deadline`] is due; `None` when nothing will ever be.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match &self.role {
            Role::Leader(leader) => Some(leader.heartbeat_at.min(self.quorum_lost_at(leader))),
            _ => {
                let is_voter = self.log.configuration().is_voter(self.node);
                let election = is_voter.then_some(self.election_at);
                let clock = match &self.role {
                    Role::Candidate(candidate) => candidate.clock_wait_until,
                    _ => None,
                };
                [election, self.forwarded.deadline(), clock].into_iter().flatten().min()
            }
        }
    }

    /// The leader of the current term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match &self.role {
            Role::Follower(follower) => follower.leader,
            Role::Leader(_) => Some(self.node),
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// This node's part in the term.
    #[must_use]
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The vote given in the current term.
    #[must_use]
    pub fn vote(&self) -> Option<NodeId> {
        self.hard_state.vote
    }

    /// The log's watermarks.
    #[must_use]
    pub fn log(&self) -> crate::LogSummary {
        self.log.summary()
    }

    /// The term of the entry at `index`, if the log holds it.
    #[must_use]
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The configuration in force: the last one appended.
    #[must_use]
    pub fn configuration(&self) -> &crate::Configuration {
        self.log.configuration()
    }

    /// Whether an entry of the current term is committed and this node leads: reads and membership
    /// entries are possible.
    #[must_use]
    pub fn leads_with_commit(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.first_of_term <= self.log.committed())
    }

    /// How many messages wait for the disk.
    #[must_use]
    pub fn held_messages(&self) -> usize {
        self.held.len()
    }

    /// Whether this node leads and is handing leadership over.
    #[must_use]
    pub fn is_handing_over(&self) -> bool {
        matches!(&self.role, Role::Leader(leader) if leader.transfer.is_some())
    }

    /// Whom this node is handing leadership over to.
    #[must_use]
    pub fn handing_over_to(&self) -> Option<NodeId> {
        match &self.role {
            Role::Leader(leader) => leader.transfer.map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// Whether this node knows of everything that was committed before the last word of its leader. That
    /// takes an entry of the leader's own term, on the leader as on a follower: before it a new leader may know of
    /// less than an earlier one had committed (Raft thesis, section 6.4, step 1). A follower also has to know as
    /// much to be committed as the leader has told it.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        match &self.role {
            Role::Leader(_) => self.leads_with_commit(),
            Role::Follower(follower) => {
                let committed = self.log.committed();
                follower.leader_commit.is_some_and(|told| told <= committed)
                    && self.log.term_at(committed) == Some(self.hard_state.term)
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// A picture of the core.
    #[must_use]
    pub fn status(&self) -> CoreStatus {
        let followers = match &self.role {
            Role::Leader(leader) => leader
                .followers
                .iter()
                .map(|(node, progress)| FollowerStatus {
                    node: *node,
                    matched: progress.matched,
                    next: progress.next,
                    last_contact: progress.last_contact,
                    applied: progress.report.applied,
                    log_lost: progress.report.log_lost,
                    stands_at: progress.report.stands_at,
                    command_version_max: progress.command_version_max,
                })
                .collect(),
            _ => Vec::new(),
        };
        CoreStatus {
            node: self.node,
            role: self.role.kind(),
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            leader: self.leader(),
            log: self.log.summary(),
            configuration: self.log.configuration().clone(),
            followers,
            held_messages: self.held.len(),
            clock: self.clock_state(),
            lease_revoked: matches!(&self.role, Role::Leader(leader) if leader.lease.is_revoked()),
        }
    }

    /// The term rule (Raft paper, section 5.1), then the message's own handler.
    fn on_message(
        &mut self,
        now: Instant,
        from: NodeId,
        message: Message,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if from == self.node {
            return Err(Rejected::FromSelf);
        }
        if !message.in_range() {
            return Err(Rejected::OutOfRange);
        }
        if message.term() < self.hard_state.term {
            return self.on_stale(now, from, &message, out);
        }
        if message.term() > self.hard_state.term {
            match &message {
                // Neither a question about a future term nor its positive answer raises the own one.
                Message::PreVote { .. } | Message::PreVoteReply { granted: true, .. } => {}
                // A node that cannot hear the leader must not depose it (thesis, section 4.2.3).
                Message::RequestVote { transfer: false, .. } if self.is_loyal(now) => return Ok(()),
                _ => self.become_follower(now, message.term(), out),
            }
        }
        match message {
            Message::PreVote { term, last } => self.on_pre_vote(now, from, term, last),
            Message::PreVoteReply { term, granted, wall_ms } => {
                self.clocks.heard(from, wall_ms, self.pre_votes_asked, now);
                self.on_pre_vote_reply(now, from, term, granted);
            }
            Message::RequestVote { last, transfer, .. } => self.on_request_vote(now, from, last, transfer),
            Message::VoteReply { granted, wall_ms, .. } => {
                self.clocks.heard(from, wall_ms, self.votes_asked, now);
                self.on_vote_reply(now, from, granted, out);
            }
            Message::TimeoutNow { .. } => self.on_timeout_now(now, from),
            Message::ReadRequest { token, .. } => self.on_read_request(now, from, token, out),
            Message::ReadReply { token, index, .. } => self.on_read_reply(now, token, index, out),
            Message::Append { prev, commit, entries, .. } => {
                return self.on_append(now, from, prev, commit, &entries, out);
            }
            Message::AppendReply { outcome, .. } => return self.on_append_reply(now, from, outcome, out),
            Message::Heartbeat { commit, round, matched, .. } => {
                return self.on_heartbeat(now, from, commit, round, matched, out);
            }
            Message::HeartbeatReply { round, received, stored, report, .. } => {
                let answer = HeartbeatAnswer { round, received, stored, report };
                return self.on_heartbeat_reply(now, from, answer, out);
            }
        }
        Ok(())
    }

    /// A message of an earlier term. Whoever asks is told the current term, so that a deposed leader
    /// or a candidate that fell behind catches up; answers to earlier questions mean nothing now.
    fn on_stale(
        &mut self,
        now: Instant,
        from: NodeId,
        message: &Message,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let term = self.hard_state.term;
        match message {
            Message::PreVote { .. } => {
                self.send(from, Message::PreVoteReply { term, granted: false, wall_ms: self.wall_ms });
            }
            Message::RequestVote { .. } => {
                self.send(from, Message::VoteReply { term, granted: false, wall_ms: self.wall_ms });
            }
            Message::Append { prev, .. } => {
                let outcome =
                    crate::AppendOutcome::Conflict { refused: prev.index, hint: crate::LogId::ZERO };
                self.send(from, Message::AppendReply { term, outcome });
            }
            Message::Heartbeat { round, .. } => {
                // Its round belongs to the earlier term: named here, it would be taken for one of the term in this answer,
                // should the same node lead that one by now.
                let round = if cfg!(mutant = "stale-round-in-new-term") { *round } else { 0 };
                let (received, stored) = (LogIndex::ZERO, LogIndex::ZERO);
                let report = FollowerReport::default();
                self.send(from, Message::HeartbeatReply { term, round, received, stored, report });
            }
            Message::ReadRequest { token, .. } => {
                self.send(from, Message::ReadReply { term, token: *token, index: None });
            }
            Message::AppendReply { outcome, .. } if cfg!(mutant = "stale-acks-over-re-election") => {
                return self.on_append_reply(now, from, *outcome, out);
            }
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendReply { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadReply { .. }
            | Message::TimeoutNow { .. } => {}
        }
        Ok(())
    }

    fn on_persisted(&mut self, now: Instant, order: PersistId, out: &mut Effects) -> Result<(), Rejected> {
        if order > self.last_order {
            return Err(Rejected::UnknownOrder);
        }
        self.durable_order = self.durable_order.max(order);
        self.log.persisted_by(order);
        self.on_hard_state_stored(now, order, out)?;
        if matches!(&self.role, Role::Leader(_)) {
            self.maybe_commit(now, out);
            self.maybe_tell_target();
        }
        Ok(())
    }

    fn on_hard_state_stored(
        &mut self,
        now: Instant,
        order: PersistId,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if order > self.last_order {
            return Err(Rejected::UnknownOrder);
        }
        let before = self.durable_hard_state;
        self.durable_hard_state = self.durable_hard_state.max(order);
        out.hard_state_saved = before < self.hard_state_order && self.hard_state_order <= order;
        let durable = (self.durable_hard_state, self.durable_order);
        self.held.release(durable, self.hard_state.term, &mut out.messages);
        if matches!(&self.role, Role::Candidate(candidate) if candidate.own_vote <= self.durable_hard_state) {
            self.on_vote_reply(now, self.node, true, out);
        }
        Ok(())
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Effects) {
        self.maybe_give_up_forwarded(now, out);
        match &self.role {
            Role::Leader(leader) if now >= self.quorum_lost_at(leader) => {
                self.become_follower(now, self.hard_state.term, out);
            }
            Role::Leader(leader) if now >= leader.heartbeat_at => self.beat(now, out),
            Role::Leader(_) => {}
            Role::Candidate(candidate) if candidate.clock_wait_until.is_some_and(|until| now >= until) => {
                self.become_leader(now, out);
            }
            _ if now >= self.election_at => self.on_election_timeout(now),
            _ => {}
        }
    }

    /// The order number that `finish` will give to this step's write.
    pub(crate) fn coming_order(&self) -> PersistId {
        PersistId::new(self.last_order.get().saturating_add(1))
    }

    /// Sends `message` once term and vote are durable.
    pub(crate) fn send(&mut self, to: NodeId, message: Message) {
        self.outbox.push((Needs::TermAndVote, Send { to, message }));
    }

    /// Sends `message` once the log is durable up to `index`, and term and vote are.
    pub(crate) fn send_once_stored(&mut self, to: NodeId, index: LogIndex, message: Message) {
        self.outbox.push((Needs::LogUpTo(index), Send { to, message }));
    }

    /// Turns what the step has changed into one order, and holds back what depends on it.
    fn finish(&mut self, out: &mut Effects) {
        self.drop_forwarded_of_others(out);
        self.hard_state.commit = self.log.committed();
        // A stickiness that is announced must be stored first; one that falls waits for another write.
        let vote_changed = (self.hard_state.term, self.hard_state.vote)
            != (self.stored_hard_state.term, self.stored_hard_state.vote)
            || self.hard_state.stickiness > self.stored_hard_state.stickiness;
        let appended = core::mem::replace(&mut self.appended, Appended::Nothing);
        if vote_changed || appended != Appended::Nothing {
            let id = self.coming_order();
            self.last_order = id;
            self.log.ordered(id);
            if vote_changed {
                self.hard_state_order = id;
            }
            let hard_state = (self.hard_state != self.stored_hard_state).then_some(self.hard_state);
            self.stored_hard_state = self.hard_state;
            let hard_state = if cfg!(mutant = "vote-forgotten") { None } else { hard_state };
            out.persist = Some(PersistOrder { id, hard_state, appended });
        }
        for (needs, send) in core::mem::take(&mut self.outbox) {
            match self.must_wait_for(needs, &send) {
                (None, None) => out.messages.push(send),
                orders => self.held.hold(orders, send),
            }
        }
        let apply_to = self.log.may_apply_to();
        if apply_to > self.apply_ordered {
            self.apply_ordered = apply_to;
            out.apply_to = Some(apply_to);
        }
    }

    /// The orders that must be durable before a message may leave: as far as term and vote go, and with
    /// their entries. `None` when nothing is missing.
    /// This is the line that keeps "durable before sent" (Raft paper, figure 2: "updated on stable
    /// storage before responding").
    fn must_wait_for(&self, needs: Needs, send: &Send) -> AwaitedOrders {
        let for_vote = Some(self.hard_state_order).filter(|order| *order > self.durable_hard_state);
        let for_log = match needs {
            Needs::TermAndVote => None,
            Needs::LogUpTo(index) => self.log.order_of(index),
        };
        if cfg!(mutant = "ack-before-sync") && matches!(send.message, Message::AppendReply { .. }) {
            return (None, None);
        }
        if cfg!(mutant = "vote-before-sync") && matches!(send.message, Message::VoteReply { .. }) {
            return (None, None);
        }
        (for_vote, for_log)
    }

    /// Follows whoever leads `term`, which is the current one or a later one. Term and vote change
    /// only for a later one: within a term the vote stays.
    pub(crate) fn become_follower(&mut self, now: Instant, term: Term, out: &mut Effects) {
        if term > self.hard_state.term {
            self.hard_state.term = term;
            self.hard_state.vote = None;
            if now >= self.promised_before {
                self.hard_state.stickiness = self.hard_state.stickiness.min(self.config.election_timeout_min);
            }
        }
        let before = core::mem::replace(&mut self.role, Role::Follower(Follower::default()));
        if let Role::Leader(leader) = before {
            out.lost_leadership = true;
            leader.reads.lose(&mut out.reads_lost);
            self.draw_election_timeout(now);
        }
    }

    pub(crate) fn draw_election_timeout(&mut self, now: Instant) {
        let (min, max) = (self.config.election_timeout_min, self.config.election_timeout_max);
        let drawn = now.plus(self.prng.duration_between(min, max));
        // The promise of before the start binds the own vote too.
        self.election_at = drawn.max(self.promised_before);
    }
}
