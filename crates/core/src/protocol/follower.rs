//! The follower: how it handles a leader's messages (Raft paper, section 5.3 and figure 2).

use crate::interface::effects::{Appended, Effects, LogSuffix};
use crate::interface::input::Rejected;
use crate::interface::message::EntryMeta;
use crate::protocol::role::Follower;
use crate::raft_core::RaftCore;
use crate::{
    AppendOutcome, EntryKind, FollowerReport, Instant, LogId, LogIndex, Message, NodeId, Term,
};

impl RaftCore {
    /// Accepts `from` as the leader of the current term.
    pub(crate) fn accept_leader(
        &mut self,
        now: Instant,
        from: NodeId,
    ) -> Result<&mut Follower, Rejected> {
        if self.role.is_leader() {
            // Two leaders in one term are impossible (Election Safety), so the message is ignored.
            return Err(Rejected::SecondLeader);
        }
        // A majority is at work, whatever continues this cluster elsewhere.
        self.abstains = false;
        let stickiness = self.config.election_timeout_min;
        self.hard_state.stickiness = self.hard_state.stickiness.max(stickiness);
        // A vote stickiness announced before the restart may reach further.
        self.sticky_until = self.promised_before.max(now.plus(stickiness));
        self.draw_election_timeout(now);
        Ok(self.follow(from))
    }

    pub(crate) fn on_append(
        &mut self,
        now: Instant,
        from: NodeId,
        prev: LogId,
        commit: LogIndex,
        entries: &[EntryMeta],
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        self.accept_leader(now, from)?;
        check_entries(prev, self.hard_state.term, entries)?;
        let known = prev.index < self.log.summary().base.index || self.log.holds(prev);
        if !known {
            if prev.index <= self.log.committed() {
                return Err(Rejected::ContradictsCommitted);
            }
            let hint = self.log.last_possible_match(prev.index.previous(), prev.term);
            let outcome = AppendOutcome::Conflict { refused: prev.index, hint };
            self.send(from, Message::AppendReply { term: self.hard_state.term, outcome });
            return Ok(());
        }
        self.take_entries(prev, entries, out)?;
        let end = prev.index.plus(entries.len() as u64);
        self.verified_to(end);
        self.follow_commit(commit);
        let message = Message::AppendReply {
            term: self.hard_state.term,
            outcome: AppendOutcome::Persisted(end),
        };
        self.send_once_persisted(from, end, message);
        Ok(())
    }

    /// Appends the new entries. An entry that is already in the log stays, with the entries after
    /// it: only an entry that conflicts (same index, other term) removes anything (Raft paper,
    /// figure 2, AppendEntries rule 3). A delayed message must not undo a later one.
    fn take_entries(
        &mut self,
        prev: LogId,
        entries: &[EntryMeta],
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let base = self.log.summary().base.index;
        let first_after = |skip: usize| prev.index.plus(skip as u64).next();
        let is_new = |(skip, entry): &(usize, &EntryMeta)| {
            let index = first_after(*skip);
            index > base && self.log.term_at(index) != Some(entry.term)
        };
        let Some((skip, _)) = entries.iter().enumerate().find(is_new) else {
            return Ok(());
        };
        let first = first_after(skip);
        if first <= self.log.committed() {
            return Err(Rejected::ContradictsCommitted);
        }
        if first <= self.log.last_index() {
            self.log.truncate_from(first);
            out.superseded_from = Some(first);
            if let Some(follower) = self.role.follower_mut() {
                follower.verified = follower.verified.min(first.previous());
            }
        }
        for entry in entries.iter().skip(skip) {
            self.log.push(entry);
        }
        self.appended = Appended::Received { skip, first };
        Ok(())
    }

    pub(crate) fn on_heartbeat(
        &mut self,
        now: Instant,
        from: NodeId,
        commit: LogIndex,
        round: u64,
        matched: LogIndex,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let received = self.accept_leader(now, from)?.verified;
        self.follow_commit(commit);
        // Committed entries are the same in the log of every later leader (Leader Completeness). A
        // leader that waits for this node to install a snapshot learns it from this value alone.
        let matches = received.max(self.log.committed());
        let persisted = matches.min(self.log.persisted());
        // What this node acknowledged in this term was on its disk, and only a leader of a later
        // term may have replaced it.
        let log_lost = matched > self.log.last_index();
        if log_lost {
            out.log_lost = Some(matched);
        }
        let report = FollowerReport {
            applied: self.log.applied(),
            stickiness: self.config.election_timeout_min,
            wall_ms: self.wall_ms,
            short_of_space: self.short_of_space,
            log_lost,
            halted_at: self.halted_at,
            command_version_max: self.command_version_max,
        };
        let term = self.hard_state.term;
        self.send(from, Message::HeartbeatReply { term, round, received, persisted, report });
        Ok(())
    }

    /// A snapshot of the leader has replaced the log up to here: the log matches that far, and no
    /// further if the entries after it were dropped.
    pub(crate) fn installed(&mut self, last: LogId, suffix: LogSuffix) {
        if let Some(follower) = self.role.follower_mut() {
            let before = match suffix {
                LogSuffix::Keep => follower.verified,
                LogSuffix::Drop => LogIndex::ZERO,
            };
            follower.verified = before.max(last.index);
        }
    }

    fn verified_to(&mut self, index: LogIndex) {
        if let Some(follower) = self.role.follower_mut() {
            follower.verified = follower.verified.max(index);
        }
    }

    /// Commits what the leader has committed, but never beyond what is known to match the leader's
    /// log: entries after that may be left over from an earlier term and never committed.
    fn follow_commit(&mut self, commit: LogIndex) {
        let Some(follower) = self.role.follower_mut() else { return };
        follower.leader_commit = follower.leader_commit.max(Some(commit));
        let bound = follower.verified.min(self.log.last_index());
        self.log.commit_to(commit.min(bound));
    }
}

/// Terms never decrease along a log, and no entry is of a later term than its sender's.
fn check_entries(prev: LogId, term: Term, entries: &[EntryMeta]) -> Result<(), Rejected> {
    let mut before = prev.term;
    for entry in entries {
        let complete = entry.configuration.is_some() == (entry.kind == EntryKind::Membership);
        if entry.term < before || entry.term > term || entry.term == Term::ZERO || !complete {
            return Err(Rejected::MalformedAppend);
        }
        before = entry.term;
    }
    let room = LogIndex::MAX_ACCEPTED.since(prev.index);
    if entries.len() as u64 > room { Err(Rejected::OutOfRange) } else { Ok(()) }
}
