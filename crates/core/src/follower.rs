//! What a follower does with a leader's messages (Raft paper, section 5.3 and figure 2).

use crate::effects::{Appended, Effects};
use crate::input::{EntryMeta, Rejected};
use crate::raft_core::RaftCore;
use crate::role::{Follower, Role};
use crate::{AppendOutcome, EntryKind, FollowerReport, Instant, LogId, LogIndex, Message, NodeId, Term};

impl RaftCore {
    /// Takes `from` for the leader of the current term.
    pub(crate) fn accept_leader(&mut self, now: Instant, from: NodeId) -> Result<&mut Follower, Rejected> {
        if matches!(self.role, Role::Leader(_)) {
            // Two leaders in one term cannot be (Election Safety); nothing it says is believed.
            return Err(Rejected::SecondLeader);
        }
        let stickiness = self.config.election_timeout_min;
        self.hard_state.stickiness = self.hard_state.stickiness.max(stickiness);
        // A promise of an earlier run may reach further.
        self.loyal_until = self.promised_before.max(now.plus(stickiness));
        self.draw_election_timeout(now);
        if !matches!(&self.role, Role::Follower(follower) if follower.leader == Some(from)) {
            self.role = Role::Follower(Follower { leader: Some(from), ..Follower::default() });
        }
        match &mut self.role {
            Role::Follower(follower) => Ok(follower),
            _ => Err(Rejected::SecondLeader),
        }
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
        let message =
            Message::AppendReply { term: self.hard_state.term, outcome: AppendOutcome::Stored(end) };
        self.send_once_stored(from, end, message);
        Ok(())
    }

    /// Appends what is new. An entry that is there already is left alone, and what lies behind it
    /// too: only an entry that conflicts (same index, other term) removes anything (Raft paper,
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
            if cfg!(mutant = "truncate-on-any-append") {
                let end = prev.index.plus(entries.len() as u64).max(self.log.committed());
                if end < self.log.last_index() {
                    self.log.truncate_from(end.next());
                }
            }
            return Ok(());
        };
        let first = first_after(skip);
        if first <= self.log.committed() {
            return Err(Rejected::ContradictsCommitted);
        }
        if first <= self.log.last_index() {
            self.log.truncate_from(first);
            out.superseded_from = Some(first);
            if let Role::Follower(follower) = &mut self.role {
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
        // What is committed is the same in the log of every leader that may follow (Leader Completeness). Who is waiting
        // for this node to have installed a snapshot learns it from that alone.
        let forgets = cfg!(mutant = "committed-forgotten");
        let matches = if forgets { received } else { received.max(self.log.committed()) };
        let stored = matches.min(self.log.persisted());
        // What this node acknowledged in this term was on its disk, and only a leader of a later term
        // may have replaced it.
        let log_lost = matched > self.log.last_index();
        if log_lost {
            out.log_lost = Some(matched);
        }
        let report = FollowerReport {
            applied: self.log.applied(),
            stickiness: self.config.election_timeout_min,
            wall_ms: self.wall_ms,
            short_of_room: self.short_of_room,
            log_lost,
            stands_at: self.stands_at,
            command_version_max: self.command_version_max,
        };
        let term = self.hard_state.term;
        self.send(from, Message::HeartbeatReply { term, round, received, stored, report });
        Ok(())
    }

    /// A snapshot of the leader's stands in this log: it matches as far, and only as far when what was behind
    /// it is gone.
    pub(crate) fn installed(&mut self, last: LogId, keeps_suffix: bool) {
        if let Role::Follower(follower) = &mut self.role {
            let before = if keeps_suffix { follower.verified } else { LogIndex::ZERO };
            follower.verified = before.max(last.index);
        }
    }

    fn verified_to(&mut self, index: LogIndex) {
        if let Role::Follower(follower) = &mut self.role {
            follower.verified = follower.verified.max(index);
        }
    }

    /// Commits what the leader has committed, but never past what is known to match its log: what
    /// lies behind that may be a leftover that was never committed.
    fn follow_commit(&mut self, commit: LogIndex) {
        let Role::Follower(follower) = &mut self.role else { return };
        follower.leader_commit = follower.leader_commit.max(Some(commit));
        let bound = if cfg!(mutant = "commit-past-verified") {
            self.log.last_index()
        } else {
            follower.verified.min(self.log.last_index())
        };
        self.log.commit_to(commit.min(bound));
    }
}

/// Terms never fall along a log, and no entry is from the future of its sender.
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
