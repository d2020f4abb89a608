//! The core's state, its single entry point [`RaftCore::step`], and the term rule.

use alloc::vec::Vec;
use core::time::Duration;

use crate::interface::effects::{Appended, Effects, Envelope, PersistRequest};
use crate::interface::input::{Input, ReadMode, Rejected};
use crate::interface::message::HeartbeatReply;
use crate::prng::SplitMix64;
use crate::protocol::role::{CurrentRole, Role};
use crate::read::follower_reads::FollowerReads;
use crate::state::held::{AwaitedRequests, Held};
use crate::state::log_clock::PeerClocks;
use crate::state::log_view::{InitialLog, LogView};
use crate::{
    CoreConfig, FollowerReport, HardState, Instant, LogIndex, MAX_ACCEPTED_TIME_MS, Message,
    NodeId, Now, PersistId, SentMessage, Term,
};

/// What a core starts from.
#[derive(Clone, Debug)]
pub struct Initial {
    /// This node.
    pub node: NodeId,
    /// The settings, checked with [`CoreConfig::validate`].
    pub config: CoreConfig,
    /// The last persisted hard state.
    pub hard_state: HardState,
    /// The persisted log.
    pub log: InitialLog,
    /// After entries of the log were lost to damage: an upper bound of the last entry that the log
    /// may have had. Until the log has reached it, this node votes as if it still had that entry,
    /// and does not campaign (Alagappan et al., "Protocol-Aware Recovery for Consensus-Based
    /// Storage", FAST 2018). Otherwise
    /// [`crate::LogId::ZERO`].
    pub promised: crate::LogId,
    /// Seed of the election timeouts; must differ on every node and at every start.
    pub seed: u64,
    /// The time now.
    pub now: Instant,
    /// A single voter accepts its own wall clock even if it is far ahead of its log; see
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
    pub(crate) prng: SplitMix64,
    pub(crate) hard_state: HardState,
    pub(crate) role: CurrentRole,
    pub(crate) log: LogView,
    /// When this node campaigns if it hears no leader.
    pub(crate) election_at: Instant,
    /// Vote stickiness: no vote is granted before this time, because a leader was heard recently,
    /// or because this node has just restarted and may have acknowledged one (Raft thesis, sections
    /// 4.2.3 and 6.4.1).
    pub(crate) sticky_until: Instant,
    // What the log worker was asked to persist, and how much of it is durable.
    requested_hard_state: HardState,
    last_request: PersistId,
    durable_request: PersistId,
    hard_state_request: PersistId,
    /// Terms and votes are durable up to this request; entries perhaps only up to
    /// `durable_request`.
    durable_hard_state: PersistId,
    apply_requested: LogIndex,
    pub(crate) held: Held,
    /// Reads of this follower that wait for a read index from the leader.
    pub(crate) follower_reads: FollowerReads,
    // Filled during a step, emptied by `emit`.
    pub(crate) appended: Appended,
    outbox: Vec<(Needs, Envelope)>,
    /// The wall clock at this step, in UNIX milliseconds.
    pub(crate) wall_ms: u64,
    /// The wall clocks of the other nodes, as their replies reported them.
    pub(crate) clocks: PeerClocks,
    /// When votes and pre-votes were last requested.
    pub(crate) votes_requested: Instant,
    pub(crate) pre_votes_requested: Instant,
    /// A single voter accepts its wall clock even if it is far ahead of its log.
    pub(crate) accepts_clock: bool,
    /// This node's disk hangs.
    pub(crate) disk_hangs: bool,
    /// This node's disk has too little free space for a leader.
    pub(crate) short_of_space: bool,
    /// [`Initial::promised`]. Never reset: a log that has reached it has everything that was
    /// committed before it, and entries that replace others have later terms.
    pub(crate) promised: crate::LogId,
    /// This node neither votes nor campaigns, until it hears a leader.
    pub(crate) abstains: bool,
    /// The entry at which this node's state machine is halted.
    pub(crate) halted_at: Option<crate::LogId>,
    /// Until this time, a vote stickiness announced before the last restart may still bind this
    /// node.
    pub(crate) promised_before: Instant,
    /// The highest version of a command that this node's program decodes.
    pub(crate) command_version_max: u32,
}

/// What must be durable before a message is sent. Term and vote always must be.
#[derive(Clone, Copy, Debug)]
enum Needs {
    TermAndVote,
    LogUpTo(LogIndex),
}

impl RaftCore {
    /// A node that has just started, as a follower.
    ///
    /// Call [`RaftCore::step`] with [`Input::Deadline`] right afterwards: it releases the entries
    /// that are known to be committed.
    #[must_use]
    pub fn new(initial: Initial) -> Self {
        let mut log = initial.log;
        log.commit = log.commit.max(initial.hard_state.commit);
        let log = LogView::new(log);
        let mut prng = SplitMix64::new(initial.seed);
        let follower_reads = FollowerReads::new(&mut prng);
        let mut core = Self {
            node: initial.node,
            config: initial.config,
            prng,
            follower_reads,
            hard_state: initial.hard_state,
            role: CurrentRole::at_start(),
            election_at: initial.now,
            sticky_until: initial.now,
            requested_hard_state: initial.hard_state,
            last_request: PersistId::ZERO,
            durable_request: PersistId::ZERO,
            hard_state_request: PersistId::ZERO,
            durable_hard_state: PersistId::ZERO,
            apply_requested: log.applied(),
            log,
            held: Held::default(),
            appended: Appended::Nothing,
            outbox: Vec::new(),
            wall_ms: 0,
            clocks: PeerClocks::new(&initial.config),
            votes_requested: initial.now,
            pre_votes_requested: initial.now,
            accepts_clock: initial.accepts_clock,
            disk_hangs: false,
            short_of_space: false,
            promised: initial.promised,
            abstains: false,
            halted_at: None,
            promised_before: initial.now,
            command_version_max: initial.command_version_max,
        };
        if initial.hard_state.term > Term::ZERO {
            let promised = initial.hard_state.stickiness.max(core.config.election_timeout_min);
            core.sticky_until = initial.now.plus(promised);
            core.promised_before = core.sticky_until;
        }
        // A single voter waits for no leader, unless it may have acknowledged one: that leader may
        // still hold a lease, although this node has become the only voter since.
        let has_followed = initial.hard_state.stickiness > Duration::ZERO;
        if !core.log.configuration().is_sole_voter(core.node) || has_followed {
            core.draw_election_timeout(initial.now);
        }
        core
    }

    /// Handles one input that arrived at `now`, and fills `out` with the effects.
    ///
    /// # Errors
    /// [`Rejected`] says why the input changed nothing. `out` is valid nevertheless and must be
    /// acted on.
    pub fn step(&mut self, now: Now, input: Input, out: &mut Effects) -> Result<(), Rejected> {
        out.clear();
        let Now { monotonic: now, wall_ms } = now;
        self.wall_ms = wall_ms.min(MAX_ACCEPTED_TIME_MS);
        let before =
            (self.role.kind(), self.hard_state.term, self.leader(), self.log.configuration_id());
        let result = match input {
            Input::Message { from, message } => self.on_message(now, from, message, out),
            Input::Propose { sizes } => self.on_propose(now, &sizes, out),
            Input::ProposeMembership { configuration, bytes, risk } => {
                self.on_propose_membership(now, configuration, bytes, risk, out)
            }
            Input::TransferLeadership { to } => self.on_transfer(now, to, out),
            Input::Tick => self.on_tick(now, out),
            Input::Superseded => {
                self.on_superseded();
                Ok(())
            }
            Input::ProposeSkip { target, bytes } => self.on_propose_skip(now, target, bytes, out),
            Input::HaltedAt(entry) => {
                self.halted_at = entry;
                Ok(())
            }
            Input::Read { ids, mode: ReadMode::Round } => self.on_read(now, ids, out),
            Input::Read { ids, mode: ReadMode::Lease } => self.on_lease_read(now, ids, out),
            Input::Persisted(order) => self.on_persisted(now, order, out),
            Input::HardStatePersisted(order) => self.on_hard_state_persisted(now, order, out),
            Input::Applied(index) => {
                if self.log.applied_to(index) {
                    Ok(())
                } else {
                    Err(Rejected::OutOfSequence)
                }
            }
            Input::InstallSnapshot(snapshot) => self.on_install_snapshot(now, snapshot, out),
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
            Input::ShortOfSpace(short) => {
                self.short_of_space = short;
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
        self.emit(out);
        let after =
            (self.role.kind(), self.hard_state.term, self.leader(), self.log.configuration_id());
        out.status_changed = before != after;
        self.check_invariants(before.1);
        result
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
            self.on_stale(from, &message);
            return Ok(());
        }
        if message.term() > self.hard_state.term {
            match &message {
                // Neither a pre-vote for a future term nor a granted reply to it raises this node's
                // term.
                Message::PreVote { .. } | Message::PreVoteReply { granted: true, .. } => {}
                // A node that cannot hear the leader must not depose it (thesis, section 4.2.3).
                Message::RequestVote { transfer: false, .. } if self.is_sticky(now) => {
                    return Ok(());
                }
                _ => self.become_follower(now, message.term(), out),
            }
        }
        match message {
            Message::PreVote { term, last } => self.on_pre_vote(now, from, term, last),
            Message::PreVoteReply { term, granted, wall_ms } => {
                self.clocks.heard(from, wall_ms, self.pre_votes_requested, now);
                self.on_pre_vote_reply(now, from, term, granted);
            }
            Message::RequestVote { last, transfer, .. } => {
                self.on_request_vote(now, from, last, transfer)
            }
            Message::VoteReply { granted, wall_ms, .. } => {
                self.clocks.heard(from, wall_ms, self.votes_requested, now);
                self.on_vote_reply(now, from, granted, out);
            }
            Message::TimeoutNow { .. } => self.on_timeout_now(now, from),
            Message::ReadRequest { token, .. } => self.on_read_request(now, from, token, out),
            Message::ReadReply { token, index, .. } => self.on_read_reply(now, token, index, out),
            Message::Append { prev, commit, entries, .. } => {
                return self.on_append(now, from, prev, commit, &entries, out);
            }
            Message::AppendReply { outcome, .. } => {
                return self.on_append_reply(now, from, outcome, out);
            }
            Message::Heartbeat { commit, round, matched, .. } => {
                return self.on_heartbeat(now, from, commit, round, matched, out);
            }
            Message::HeartbeatReply { round, received, persisted, report, .. } => {
                let reply = HeartbeatReply { round, received, persisted, report };
                return self.on_heartbeat_reply(now, from, reply, out);
            }
        }
        Ok(())
    }

    /// Handles a message of an earlier term. Requests are refused with the current term, so that a
    /// deposed leader or an outdated candidate learns it; responses of earlier terms are ignored.
    fn on_stale(&mut self, from: NodeId, message: &Message) {
        let term = self.hard_state.term;
        match message {
            Message::PreVote { .. } => {
                self.send(
                    from,
                    Message::PreVoteReply { term, granted: false, wall_ms: self.wall_ms },
                );
            }
            Message::RequestVote { .. } => {
                self.send(from, Message::VoteReply { term, granted: false, wall_ms: self.wall_ms });
            }
            Message::Append { prev, .. } => {
                let outcome = crate::AppendOutcome::Conflict {
                    refused: prev.index,
                    hint: crate::LogId::ZERO,
                };
                self.send(from, Message::AppendReply { term, outcome });
            }
            Message::Heartbeat { .. } => {
                // Its round belongs to the earlier term: named here, it would be taken for one of
                // the term in this answer, should the same node lead that one by now.
                let round = 0;
                let (received, persisted) = (LogIndex::ZERO, LogIndex::ZERO);
                let report = FollowerReport::default();
                self.send(
                    from,
                    Message::HeartbeatReply { term, round, received, persisted, report },
                );
            }
            Message::ReadRequest { token, .. } => {
                self.send(from, Message::ReadReply { term, token: *token, index: None });
            }
            Message::PreVoteReply { .. }
            | Message::VoteReply { .. }
            | Message::AppendReply { .. }
            | Message::HeartbeatReply { .. }
            | Message::ReadReply { .. }
            | Message::TimeoutNow { .. } => {}
        }
    }

    fn on_persisted(
        &mut self,
        now: Instant,
        order: PersistId,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if order > self.last_request {
            return Err(Rejected::OutOfSequence);
        }
        self.durable_request = self.durable_request.max(order);
        self.log.persisted_by(order);
        self.on_hard_state_persisted(now, order, out)?;
        if self.role.is_leader() {
            self.maybe_commit(now, out);
            self.maybe_ask_target_to_campaign();
        }
        Ok(())
    }

    fn on_hard_state_persisted(
        &mut self,
        now: Instant,
        order: PersistId,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        if order > self.last_request {
            return Err(Rejected::OutOfSequence);
        }
        let before = self.durable_hard_state;
        self.durable_hard_state = self.durable_hard_state.max(order);
        out.hard_state_saved = before < self.hard_state_request && self.hard_state_request <= order;
        let durable = (self.durable_hard_state, self.durable_request);
        self.held.release(durable, self.hard_state.term, &mut out.messages);
        if self
            .role
            .candidate()
            .is_some_and(|candidate| candidate.own_vote <= self.durable_hard_state)
        {
            self.on_vote_reply(now, self.node, true, out);
        }
        Ok(())
    }

    fn on_deadline(&mut self, now: Instant, out: &mut Effects) {
        self.maybe_abandon_read_request(now, out);
        match self.role.get() {
            Role::Leader(leader) if now >= self.quorum_lost_at(leader) => {
                self.become_follower(now, self.hard_state.term, out);
            }
            Role::Leader(leader) if now >= leader.heartbeat_at => self.send_heartbeats(now, out),
            Role::Leader(_) => {}
            Role::Candidate(candidate)
                if candidate.clock_wait_until.is_some_and(|until| now >= until) =>
            {
                self.become_leader(now, out);
            }
            _ if now >= self.election_at => self.on_election_timeout(now),
            _ => {}
        }
    }

    /// The id that `emit` will give to this step's persist request.
    pub(crate) fn next_persist_id(&self) -> PersistId {
        PersistId::new(self.last_request.get().saturating_add(1))
    }

    /// Sends `message` once term and vote are durable.
    pub(crate) fn send(&mut self, to: NodeId, message: SentMessage) {
        self.outbox.push((Needs::TermAndVote, Envelope { to, message }));
    }

    /// Sends `message` once term and vote, and the log up to `index`, are durable.
    pub(crate) fn send_once_persisted(
        &mut self,
        to: NodeId,
        index: LogIndex,
        message: SentMessage,
    ) {
        self.outbox.push((Needs::LogUpTo(index), Envelope { to, message }));
    }

    /// Turns the changes of this step into one persist request, and holds back the messages that
    /// depend on it.
    fn emit(&mut self, out: &mut Effects) {
        self.drop_requests_to_former_leaders(out);
        // Only what this disk holds: a hard state may be stored without the entries of its step (a
        // full disk), and after a crash the hint would then commit what those entries replace.
        self.hard_state.commit = self.log.committed().min(self.log.persisted());
        // A longer stickiness must be durable before it is announced; a shorter one waits for the
        // next write.
        let vote_changed = (self.hard_state.term, self.hard_state.vote)
            != (self.requested_hard_state.term, self.requested_hard_state.vote)
            || self.hard_state.stickiness > self.requested_hard_state.stickiness;
        let appended = core::mem::replace(&mut self.appended, Appended::Nothing);
        if vote_changed || appended != Appended::Nothing {
            let id = self.next_persist_id();
            self.last_request = id;
            self.log.persist_requested(id);
            if vote_changed {
                self.hard_state_request = id;
            }
            let hard_state =
                (self.hard_state != self.requested_hard_state).then_some(self.hard_state);
            self.requested_hard_state = self.hard_state;
            out.persist = Some(PersistRequest { id, hard_state, appended });
        }
        for (needs, send) in core::mem::take(&mut self.outbox) {
            match self.must_wait_for(needs) {
                (None, None) => out.messages.push(send),
                orders => self.held.hold(orders, send),
            }
        }
        let apply_to = self.log.may_apply_to();
        if apply_to > self.apply_requested {
            self.apply_requested = apply_to;
            out.apply_to = Some(apply_to);
        }
    }

    /// The persist requests that must be durable before a message is sent: one for term and vote,
    /// one for entries. `None` if nothing is missing.
    ///
    /// This function enforces "durable before sent" (Raft paper, figure 2: "updated on stable
    /// storage before responding to RPCs").
    fn must_wait_for(&self, needs: Needs) -> AwaitedRequests {
        let for_vote =
            Some(self.hard_state_request).filter(|order| *order > self.durable_hard_state);
        let for_log = match needs {
            Needs::TermAndVote => None,
            Needs::LogUpTo(index) => self.log.request_of(index),
        };
        (for_vote, for_log)
    }

    pub(crate) fn draw_election_timeout(&mut self, now: Instant) {
        let (min, max) = (self.config.election_timeout_min, self.config.election_timeout_max);
        let drawn = now.plus(self.prng.duration_between(min, max));
        // The vote stickiness announced before the restart also forbids this node to vote for
        // itself.
        self.election_at = drawn.max(self.promised_before);
    }
}
