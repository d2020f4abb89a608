//! The leader: it appends, replicates, commits, checks its quorum and confirms reads (Raft paper,
//! sections 5.3, 5.4.2 and 8; thesis, sections 6.2, 6.4 and 10.2).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::interface::effects::{AppendPlan, Appended, Effects};
use crate::interface::input::Rejected;
use crate::interface::message::EntryMeta;
use crate::interface::message::HeartbeatReply;
use crate::protocol::role::Leader;
use crate::raft_core::RaftCore;
use crate::read::lease::Lease;
use crate::read::rounds::ReadRounds;
use crate::state::log_clock::LogClock;
use crate::state::log_view::cost;
use crate::state::progress::{Flow, PROBE_BYTES_MAX, Progress};
use crate::{AppendOutcome, Configuration, EntryKind, Instant, LogId, LogIndex, NodeId, Term};

/// After this many longest election timeouts without progress, the leader checks whether appends to
/// a follower were lost without a report from the transport.
const LAST_RESORT_TIMEOUTS: u32 = 3;

impl RaftCore {
    /// Opens the term with a no-op. Once the no-op is committed, the leader knows which entries of
    /// earlier terms are committed (Raft paper, section 8).
    pub(crate) fn become_leader(&mut self, now: Instant, out: &mut Effects) {
        let last = self.log.last_index();
        let mut followers = BTreeMap::new();
        for node in self.log.reach() {
            if node != self.node {
                followers.insert(node, Progress::new(last, now));
            }
        }
        self.enter_leadership(Leader {
            followers,
            departed: BTreeMap::new(),
            joint_since: None,
            first_of_term: last.next(),
            reads: ReadRounds::default(),
            lease: Lease::default(),
            heartbeat_at: now.plus(self.config.heartbeat_interval),
            clock: LogClock::new(self.log.time_ms(), now),
            clock_round: (0, Instant::ZERO),
            transfer: None,
        });
        self.start_clock(now);
        self.create(EntryKind::Noop, now, &[0], None);
        self.replicate(now, out);
    }

    pub(crate) fn not_leader(&self) -> Rejected {
        Rejected::NotLeader { leader: self.leader() }
    }

    /// A leader creates entries unless it is transferring its leadership.
    pub(crate) fn may_create(&self) -> Result<(), Rejected> {
        let Some(leader) = self.role.leader() else { return Err(self.not_leader()) };
        if leader.transfer.is_some() { Err(Rejected::TransferInProgress) } else { Ok(()) }
    }

    /// How many of these commands, counted from the first, [`crate::Input::Propose`] would accept
    /// now under the limit on uncommitted bytes.
    #[must_use]
    pub fn fitting(&self, sizes: &[u32]) -> usize {
        let mut waiting = self.log.uncommitted_bytes();
        let fits = |size: &&u32| {
            let before = waiting;
            waiting = waiting.saturating_add(cost(**size));
            before == 0 || waiting <= self.config.uncommitted_bytes_max
        };
        sizes.iter().take_while(fits).count()
    }

    pub(crate) fn on_propose(
        &mut self,
        now: Instant,
        sizes: &[u32],
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        self.may_create()?;
        let waiting = self.log.uncommitted_bytes();
        let new: u64 = sizes.iter().map(|size| cost(*size)).sum();
        // If nothing is uncommitted, one command is always accepted, so that no size is always
        // refused.
        let is_alone = waiting == 0 && sizes.len() == 1;
        if !is_alone && waiting.saturating_add(new) > self.config.uncommitted_bytes_max {
            return Err(Rejected::TooMuchUncommitted);
        }
        if !sizes.is_empty() {
            self.create(EntryKind::Command, now, sizes, None);
            self.replicate(now, out);
        }
        Ok(())
    }

    /// Appends an entry that only carries log time, for a state machine with an expiry that is due.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Effects) -> Result<(), Rejected> {
        self.may_create()?;
        self.create(EntryKind::Tick, now, &[0], None);
        self.replicate(now, out);
        Ok(())
    }

    /// Appends new entries of this leader's term to its own log.
    pub(crate) fn create(
        &mut self,
        kind: EntryKind,
        now: Instant,
        sizes: &[u32],
        configuration: Option<Box<Configuration>>,
    ) {
        let term = self.hard_state.term;
        let first = LogId::new(term, self.log.last_index().next());
        let Some(leader) = self.role.leader_mut() else { return };
        let time_ms = leader.clock.now_ms(now).max(self.log.time_ms());
        if kind == EntryKind::Command {
            leader.clock.command_stamped();
        }
        for bytes in sizes {
            let configuration = configuration.clone();
            self.log.push(&EntryMeta { term, kind, time_ms, bytes: *bytes, configuration });
        }
        self.appended = Appended::Created { first, count: sizes.len() as u64, kind, time_ms };
    }

    /// Plans appends for every follower, as far as its window allows.
    pub(crate) fn replicate(&mut self, now: Instant, out: &mut Effects) {
        let Some(leader) = self.role.leader_mut() else { return };
        let config = &self.config;
        for (node, progress) in &mut leader.followers {
            while progress.may_send(config.inflight_appends_max, config.inflight_bytes_max) {
                let before = progress.next.previous();
                let Some(term) = self.log.term_at(before) else {
                    // The entries are purged: this follower needs a snapshot.
                    progress.enter_snapshot_state();
                    out.snapshots.push(*node);
                    break;
                };
                let prev = LogId::new(term, before);
                let batch = self.log.batch_from(
                    progress.next,
                    config.append_bytes_max,
                    config.append_entries_max,
                );
                let (last, bytes) = match (batch, &progress.flow) {
                    (Some((_, bytes)), Flow::Probe { again, .. })
                        if *again || bytes > PROBE_BYTES_MAX =>
                    {
                        (before, 0)
                    }
                    (Some(batch), _) => batch,
                    // A probe without entries still finds where the logs match.
                    (None, Flow::Probe { .. }) => (before, 0),
                    (None, Flow::Replicate { .. } | Flow::Snapshot { .. }) => break,
                };
                let Some(last_term) = self.log.term_at(last) else { break };
                out.appends.push(AppendPlan {
                    to: *node,
                    term: self.hard_state.term,
                    prev,
                    last: LogId::new(last_term, last),
                    commit: self.log.committed(),
                });
                progress.sent(last, bytes, now);
            }
        }
    }

    /// The driver could not send an append: there is no connection, its queue is full, or the
    /// entries could not be read.
    pub(crate) fn on_append_not_sent(&mut self, to: NodeId, term: Term, prev: LogIndex) {
        if let Some(leader) = self.role.leader_mut()
            && term == self.hard_state.term
            && let Some(progress) = leader.followers.get_mut(&to)
        {
            progress.not_sent(prev);
        }
    }

    /// Sends an empty append after everything sent so far, to learn whether all of it has arrived.
    /// If the last entry sent has been purged meanwhile, the follower is probed from its last ack,
    /// and receives a snapshot.
    fn ask_after_everything_sent(&mut self, to: NodeId, out: &mut Effects) {
        let Some(leader) = self.role.leader_mut() else { return };
        let Some(progress) = leader.followers.get_mut(&to) else { return };
        let index = progress.next.previous();
        let Some(term) = self.log.term_at(index) else {
            progress.lost();
            return;
        };
        let prev = LogId::new(term, index);
        let plan = AppendPlan {
            to,
            term: self.hard_state.term,
            prev,
            last: prev,
            commit: self.log.committed(),
        };
        out.appends.push(plan);
    }

    pub(crate) fn on_append_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        outcome: AppendOutcome,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let last_index = self.log.last_index();
        let Some(leader) = self.role.leader_mut() else { return Ok(()) };
        let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
        progress.last_contact = now;
        match outcome {
            AppendOutcome::Persisted(index) if index > last_index => {
                return Err(Rejected::OutOfRange);
            }
            AppendOutcome::Persisted(index) => progress.persisted_to(index),
            AppendOutcome::Conflict { refused, hint } => {
                let resume = self.log.last_possible_match(hint.index, hint.term).index;
                progress.refused(refused, resume.min(refused.previous()));
            }
        }
        self.measure(now, from);
        self.maybe_commit(now, out);
        self.maybe_ask_target_to_campaign();
        self.replicate(now, out);
        Ok(())
    }

    /// Measures how well a follower keeps up.
    fn measure(&mut self, now: Instant, follower: NodeId) {
        let (last, round_max) = (self.log.last_index(), self.config.election_timeout_min);
        let leader = self.role.leader_mut();
        if let Some(progress) = leader.and_then(|it| it.followers.get_mut(&follower)) {
            progress.measure(now, last, round_max);
        }
    }

    /// Commits what a quorum has on stable storage. This node counts only with what its own disk
    /// has confirmed. Only an entry of the leader's own term is committed by counting; earlier
    /// entries are committed along with it (Raft paper, section 5.4.2 and figure 8).
    pub(crate) fn maybe_commit(&mut self, now: Instant, out: &mut Effects) {
        let Some(leader) = self.role.leader() else { return };
        let own = self.log.persisted();
        let quorum = self.log.configuration().committed_index(|node| {
            if node == self.node {
                return own;
            }
            leader.followers.get(&node).map_or(LogIndex::ZERO, |progress| progress.matched)
        });
        let own_term = self.log.term_at(quorum) == Some(self.hard_state.term);
        if quorum > self.log.committed() && own_term {
            let was_committed = self.log.is_configuration_committed();
            self.log.commit_to(quorum);
            if !was_committed && self.log.is_configuration_committed() {
                self.configuration_committed(now, out);
            }
            self.maybe_begin_round(now, out);
        }
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        reply: HeartbeatReply,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let HeartbeatReply { round, received, persisted, report } = reply;
        let probe_again = self.config.heartbeat_interval.saturating_mul(2);
        let last_resort = self.config.election_timeout_max.saturating_mul(LAST_RESORT_TIMEOUTS);
        let last_index = self.log.last_index();
        let Some(leader) = self.role.leader_mut() else { return Ok(()) };
        if round > leader.reads.last_round() || received > last_index || persisted > last_index {
            return Err(Rejected::OutOfRange);
        }
        if round == 0 {
            // To a heartbeat of an earlier term: it says nothing but the term.
            return Ok(());
        }
        let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
        progress.last_contact = now;
        progress.answered(round, report);
        if persisted > progress.matched {
            progress.persisted_to(persisted);
        }
        if received < progress.matched && matches!(progress.flow, Flow::Replicate { .. }) {
            // It has restarted and no longer knows what matches; an empty probe tells it.
            progress.lost();
        }
        if progress.heard(received, probe_again, last_resort, now) {
            self.ask_after_everything_sent(from, out);
        }
        self.clock_answer(now, from, round, report.wall_ms);
        self.measure(now, from);
        self.maybe_commit(now, out);
        self.maybe_drop_departed(now, out);
        self.maybe_ask_target_to_campaign();
        self.confirm_reads(out);
        self.maybe_begin_round(now, out);
        self.replicate(now, out);
        Ok(())
    }

    pub(crate) fn on_snapshot_failed(&mut self, node: NodeId) {
        if let Some(leader) = self.role.leader_mut()
            && let Some(progress) = leader.followers.get_mut(&node)
        {
            progress.snapshot_failed();
        }
    }

    pub(crate) fn on_peer_lost(&mut self, now: Instant, node: NodeId, out: &mut Effects) {
        self.repeat_read_request(node);
        self.ask_target_again(node);
        let Some(leader) = self.role.leader_mut() else { return };
        if let Some(progress) = leader.followers.get_mut(&node) {
            progress.lost();
            progress.program_unknown(leader.reads.last_round());
            self.replicate(now, out);
        }
    }

    /// Sends the heartbeats of an interval that is over, and what is due once in an interval.
    pub(crate) fn send_heartbeats(&mut self, now: Instant, out: &mut Effects) {
        if let Some(leader) = self.role.leader_mut() {
            leader.heartbeat_at = now.plus(self.config.heartbeat_interval);
        }
        self.maybe_abandon_transfer(now, out);
        if let Some(leader) = self.role.leader_mut() {
            let failed = leader
                .followers
                .iter_mut()
                .filter_map(|(node, it)| it.retries_snapshot().then_some(*node));
            out.snapshots.extend(failed);
        }
        self.reconcile_followers(now, out);
        self.begin_round(now, out);
        self.sample_clocks(now);
        self.replicate(now, out);
    }

    /// When this leader must step down if it hears nobody until then (check-quorum, Raft thesis,
    /// section 6.2): a leader without a quorum holds its clients up and cannot serve them.
    pub(crate) fn quorum_lost_at(&self, leader: &Leader) -> Instant {
        let never = Instant::from_nanos(u64::MAX);
        let heard = self.log.configuration().reached_by_quorum(|node| {
            if node == self.node {
                return never;
            }
            leader.followers.get(&node).map_or(Instant::ZERO, |progress| progress.last_contact)
        });
        heard.plus(self.config.election_timeout_max)
    }

    /// The first entry of the term that this node leads.
    pub(crate) fn led_term(&self) -> Option<(Term, LogIndex)> {
        self.role.leader().map(|leader| (self.hard_state.term, leader.first_of_term))
    }
}
