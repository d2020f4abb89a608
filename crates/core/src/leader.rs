//! What a leader does: append, replicate, commit, keep its leadership, confirm reads
//! (Raft paper, sections 5.3, 5.4.2 and 8; thesis, sections 6.2, 6.4 and 10.2).

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::effects::{AppendPlan, Appended, Effects};
use crate::input::{EntryMeta, ReadId, Rejected};
use crate::lease::Lease;
use crate::log_clock::LogClock;
use crate::log_view::cost;
use crate::progress::{Flow, PROBE_BYTES_MAX, Progress};
use crate::raft_core::RaftCore;
use crate::read::{ReadRounds, Reader};
use crate::role::{Leader, Role};
use crate::{
    AppendOutcome, Configuration, EntryKind, FollowerReport, Instant, LogId, LogIndex, Message, NodeId, Term,
};

/// After so many longest election timeouts without progress a follower is asked whether appends were
/// lost without a report of the transport.
const LAST_RESORT_TIMEOUTS: u64 = 3;

/// The answer to a heartbeat of the current term.
pub(crate) struct HeartbeatAnswer {
    pub(crate) round: u64,
    pub(crate) received: LogIndex,
    pub(crate) stored: LogIndex,
    pub(crate) report: FollowerReport,
}

impl RaftCore {
    /// Opens the term with a no-op: its commit tells what of the earlier terms is committed
    /// (Raft paper, section 8).
    pub(crate) fn become_leader(&mut self, now: Instant, out: &mut Effects) {
        let last = self.log.last_index();
        let mut followers = BTreeMap::new();
        for node in self.log.configuration().members() {
            if node != self.node {
                followers.insert(node, Progress::new(last, now));
            }
        }
        self.role = Role::Leader(Leader {
            followers,
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

    fn not_leader(&self) -> Rejected {
        Rejected::NotLeader { leader: self.leader() }
    }

    /// Only a leader that stays one creates entries.
    pub(crate) fn may_create(&self) -> Result<(), Rejected> {
        match &self.role {
            Role::Leader(leader) if leader.transfer.is_some() => Err(Rejected::TransferInProgress),
            Role::Leader(_) => Ok(()),
            _ => Err(self.not_leader()),
        }
    }

    /// How many of these commands, from the first on, [`crate::Input::Propose`] would take in together now,
    /// as far as the bytes that wait for commit are concerned.
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
        // One command is always let in when nothing waits, so that no size is refused for ever.
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

    /// An entry that only tells the log's time, for a state machine that waits for it.
    pub(crate) fn on_tick(&mut self, now: Instant, out: &mut Effects) -> Result<(), Rejected> {
        self.may_create()?;
        self.create(EntryKind::Tick, now, &[0], None);
        self.replicate(now, out);
        Ok(())
    }

    pub(crate) fn on_propose_membership(
        &mut self,
        now: Instant,
        configuration: Box<Configuration>,
        bytes: u32,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        self.may_create()?;
        // Not before an entry of the own term is committed, and one change at a time: otherwise two
        // leaders could commit with majorities that do not meet (raft-dev, "bug in single-server
        // membership changes", 2015).
        if !self.leads_with_commit() || self.log.configuration_index() > self.log.committed() {
            return Err(Rejected::MembershipBusy);
        }
        if *configuration != *self.log.configuration() {
            return Err(Rejected::MembershipUnsupported);
        }
        self.create(EntryKind::Membership, now, &[bytes], Some(configuration));
        self.replicate(now, out);
        Ok(())
    }

    /// Appends new entries of the own term to the own log.
    pub(crate) fn create(
        &mut self,
        kind: EntryKind,
        now: Instant,
        sizes: &[u32],
        configuration: Option<Box<Configuration>>,
    ) {
        let term = self.hard_state.term;
        let first = LogId::new(term, self.log.last_index().next());
        let Role::Leader(leader) = &mut self.role else { return };
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

    /// Sends every follower as much as its window allows.
    pub(crate) fn replicate(&mut self, now: Instant, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let config = &self.config;
        for (node, progress) in &mut leader.followers {
            while progress.may_send(config.inflight_appends_max, config.inflight_bytes_max) {
                let before = progress.next.previous();
                let Some(term) = self.log.term_at(before) else {
                    // Purged: only a snapshot brings this follower up to date.
                    progress.needs_snapshot();
                    out.snapshots.push(*node);
                    break;
                };
                let prev = LogId::new(term, before);
                let batch =
                    self.log.batch_from(progress.next, config.append_bytes_max, config.append_entries_max);
                let (last, bytes) = match (batch, &progress.flow) {
                    (Some((_, bytes)), Flow::Probe { again, .. }) if *again || bytes > PROBE_BYTES_MAX => {
                        (before, 0)
                    }
                    (Some(batch), _) => batch,
                    // A probe without entries still tells where the logs meet.
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

    /// The driver could not send an append: no connection, no room, or its entries could not be read.
    pub(crate) fn on_append_not_sent(&mut self, to: NodeId, term: Term, prev: LogIndex) {
        if let Role::Leader(leader) = &mut self.role
            && term == self.hard_state.term
            && let Some(progress) = leader.followers.get_mut(&to)
        {
            progress.not_sent(prev);
        }
    }

    /// Asks a follower with an empty append whether everything sent so far has arrived. When even the
    /// last entry sent is purged meanwhile, the follower is probed from its last ack, and gets a snapshot.
    fn ask_after_everything_sent(&mut self, to: NodeId, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.followers.get_mut(&to) else { return };
        let index = progress.next.previous();
        let Some(term) = self.log.term_at(index) else {
            progress.lost();
            return;
        };
        let prev = LogId::new(term, index);
        let plan =
            AppendPlan { to, term: self.hard_state.term, prev, last: prev, commit: self.log.committed() };
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
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
        progress.last_contact = now;
        match outcome {
            AppendOutcome::Stored(index) if index > last_index => return Err(Rejected::OutOfRange),
            AppendOutcome::Stored(index) => progress.stored_to(index),
            AppendOutcome::Conflict { refused, hint } => {
                let resume = self.log.last_possible_match(hint.index, hint.term).index;
                progress.refused(refused, resume.min(refused.previous()));
            }
        }
        self.maybe_commit(now, out);
        self.maybe_tell_target();
        self.replicate(now, out);
        Ok(())
    }

    /// Commits what a quorum has on stable storage, this node included only with what its own disk
    /// has confirmed. Only an entry of the own term is committed by counting; earlier ones come with
    /// it (Raft paper, section 5.4.2 and figure 8).
    pub(crate) fn maybe_commit(&mut self, now: Instant, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        let own = if cfg!(mutant = "leader-counts-unsynced") {
            self.log.last_index()
        } else {
            self.log.persisted()
        };
        let quorum = self.log.configuration().committed_index(|node| {
            if node == self.node {
                return own;
            }
            leader.followers.get(&node).map_or(LogIndex::ZERO, |progress| progress.matched)
        });
        let own_term = self.log.term_at(quorum) == Some(self.hard_state.term);
        if quorum > self.log.committed() && (own_term || cfg!(mutant = "commit-old-term")) {
            self.log.commit_to(quorum);
            self.maybe_begin_round(now, out);
        }
    }

    /// Reads of this node's callers: here they wait for a round, on a follower the leader is asked.
    pub(crate) fn on_read(
        &mut self,
        now: Instant,
        ids: Vec<ReadId>,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let committed = self.log.committed();
        let Role::Leader(leader) = &mut self.role else { return self.forward_reads(now, ids) };
        if leader.reads.len().saturating_add(ids.len()) > self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        if cfg!(mutant = "read-without-round") && leader.first_of_term <= committed {
            out.reads_confirmed.extend(ids.into_iter().map(|id| (id, committed)));
            return Ok(());
        }
        for id in ids {
            leader.reads.wait(Reader::Own(id));
        }
        self.maybe_begin_round(now, out);
        Ok(())
    }

    /// Puts one more reader in line for the next round.
    pub(crate) fn wait_for_round(&mut self, reader: Reader) -> Result<(), Rejected> {
        let Role::Leader(leader) = &mut self.role else { return Err(self.not_leader()) };
        if leader.reads.len() >= self.config.waiting_reads_max {
            return Err(Rejected::TooManyReads);
        }
        leader.reads.wait(reader);
        Ok(())
    }

    /// Begins a round for the waiting reads unless one is on its way already.
    pub(crate) fn maybe_begin_round(&mut self, now: Instant, out: &mut Effects) {
        let Role::Leader(leader) = &self.role else { return };
        if leader.reads.wants_round() && self.read_index().is_some() {
            self.begin_round(now, out);
        }
    }

    /// The index up to which a read that is confirmed from now on must be applied. Unknown before
    /// an entry of the own term is committed: an earlier leader may have committed more than this
    /// one knows of (Raft thesis, section 6.4, step 1).
    fn read_index(&self) -> Option<LogIndex> {
        (self.leads_with_commit() || cfg!(mutant = "read-before-first-commit")).then(|| self.log.committed())
    }

    /// Sends a numbered round of heartbeats; it takes all waiting reads along.
    fn begin_round(&mut self, now: Instant, out: &mut Effects) {
        let read_index = self.read_index();
        let committed = self.log.committed();
        let Role::Leader(leader) = &mut self.role else { return };
        let round = leader.reads.begin(read_index);
        leader.lease.sent(round, now);
        let term = self.hard_state.term;
        let followers: Vec<(NodeId, LogIndex)> =
            leader.followers.iter().map(|(node, progress)| (*node, progress.matched)).collect();
        for (node, matched) in followers {
            self.send(node, Message::Heartbeat { term, commit: committed, round, matched });
        }
        self.confirm_reads(out);
    }

    /// Confirms the rounds that a quorum has answered; this node answers every round by sending it.
    fn confirm_reads(&mut self, out: &mut Effects) {
        let Role::Leader(leader) = &mut self.role else { return };
        let (node, last_round) = (self.node, leader.reads.last_round());
        let followers = &leader.followers;
        let answered = self.log.configuration().reached_by_quorum(|voter| {
            if voter == node {
                return last_round;
            }
            followers.get(&voter).map_or(0, |progress| progress.round_answered)
        });
        let configuration = self.log.configuration();
        let promises = followers
            .iter()
            .filter(|(node, progress)| configuration.is_voter(**node) && progress.round_answered >= answered)
            .map(|(_, progress)| progress.report.stickiness);
        let own = self.config.election_timeout_min;
        leader.lease.answered(answered, promises.min().map_or(own, |least| least.min(own)));
        for (reader, index) in leader.reads.confirmed(answered) {
            match reader {
                Reader::Own(read) => out.reads_confirmed.push((read, index)),
                Reader::Follower { node, token } => {
                    let term = self.hard_state.term;
                    self.send(node, Message::ReadReply { term, token, index: Some(index) });
                }
            }
        }
    }

    pub(crate) fn on_heartbeat_reply(
        &mut self,
        now: Instant,
        from: NodeId,
        answer: HeartbeatAnswer,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let HeartbeatAnswer { round, received, stored, report } = answer;
        let probe_again = self.config.heartbeat_interval.times(2);
        let last_resort = self.config.election_timeout_max.times(LAST_RESORT_TIMEOUTS);
        let last_index = self.log.last_index();
        let Role::Leader(leader) = &mut self.role else { return Ok(()) };
        if round > leader.reads.last_round() || received > last_index || stored > last_index {
            return Err(Rejected::OutOfRange);
        }
        if round == 0 {
            // To a heartbeat of an earlier term: it says nothing but the term.
            return Ok(());
        }
        let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
        progress.last_contact = now;
        progress.answered(round, report);
        if stored > progress.matched {
            progress.stored_to(stored);
        }
        if received < progress.matched && matches!(progress.flow, Flow::Replicate { .. }) {
            // It has restarted and no longer knows what matches; an empty probe tells it.
            progress.lost();
        }
        if progress.heard(received, probe_again, last_resort, now) {
            self.ask_after_everything_sent(from, out);
        }
        self.clock_answer(now, from, round, report.wall_ms);
        self.maybe_commit(now, out);
        self.maybe_tell_target();
        self.confirm_reads(out);
        self.maybe_begin_round(now, out);
        self.replicate(now, out);
        Ok(())
    }

    pub(crate) fn on_snapshot_failed(&mut self, node: NodeId) {
        if let Role::Leader(leader) = &mut self.role
            && let Some(progress) = leader.followers.get_mut(&node)
        {
            progress.snapshot_failed();
        }
    }

    pub(crate) fn on_peer_lost(&mut self, now: Instant, node: NodeId, out: &mut Effects) {
        self.ask_leader_again(node);
        self.tell_target_again(node);
        let Role::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.followers.get_mut(&node) {
            progress.lost();
            progress.program_unknown(leader.reads.last_round());
            self.replicate(now, out);
        }
    }

    /// The heartbeat interval is over.
    pub(crate) fn beat(&mut self, now: Instant, out: &mut Effects) {
        if let Role::Leader(leader) = &mut self.role {
            leader.heartbeat_at = now.plus(self.config.heartbeat_interval);
        }
        self.maybe_give_up_transfer(now, out);
        if let Role::Leader(leader) = &mut self.role {
            let failed =
                leader.followers.iter_mut().filter_map(|(node, it)| it.retries_snapshot().then_some(*node));
            out.snapshots.extend(failed);
        }
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
        match &self.role {
            Role::Leader(leader) => Some((self.hard_state.term, leader.first_of_term)),
            _ => None,
        }
    }
}
