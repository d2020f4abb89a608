//! Snapshots, as far as the algorithm is concerned (Raft paper, section 7): the log begins later, and a
//! follower that is too far behind gets a snapshot in the place of entries. Building, sending and
//! verifying are the driver's.

use alloc::boxed::Box;

use crate::effects::{Appended, Effects};
use crate::input::Rejected;
use crate::raft_core::RaftCore;
use crate::role::Role;
use crate::{Configuration, Instant, LogId, NodeId, Term};

/// A snapshot that was received.
pub(crate) struct Received {
    pub(crate) from: NodeId,
    pub(crate) term: Term,
    pub(crate) last: LogId,
    pub(crate) time_ms: u64,
    pub(crate) configuration: Box<Configuration>,
}

impl RaftCore {
    /// How far the log may be purged when everything up to `covered` is in a snapshot and a tail of at most
    /// `entries` entries with at most `bytes` of payload stays for followers that are a little behind.
    #[must_use]
    pub fn tail_behind(&self, covered: crate::LogIndex, entries: u64, bytes: u64) -> LogId {
        self.log.tail_behind(covered.min(self.log.applied()), entries, bytes)
    }

    /// Whether a follower, as far as this leader knows, lacks entries that are no longer in the log.
    #[must_use]
    pub fn lacks_purged_entries(&self, follower: NodeId) -> bool {
        let Role::Leader(leader) = &self.role else { return false };
        let base = self.log.summary().base.index;
        leader.followers.get(&follower).is_some_and(|progress| progress.matched < base)
    }

    /// How far a follower's log is known to match this leader's.
    #[must_use]
    pub fn matched(&self, follower: NodeId) -> Option<crate::LogIndex> {
        let Role::Leader(leader) = &self.role else { return None };
        leader.followers.get(&follower).map(|progress| progress.matched)
    }

    /// The log begins after `through`: what is before it was applied, and is in a snapshot.
    pub(crate) fn on_purged(&mut self, through: LogId) -> Result<(), Rejected> {
        if through.index > self.log.applied() || !self.log.holds(through) {
            return Err(Rejected::UnknownOrder);
        }
        self.log.purge_to(through);
        Ok(())
    }

    /// What is in a leader's snapshot is committed, so it may take the place of a log that is behind it,
    /// whatever that holds (Raft paper, figure 13).
    ///
    /// The paper refuses a snapshot of an earlier term. Its sender is no leader any more, so nothing is believed of it but
    /// that it led that term: the term, the known leader and the election timeout stay as they are. What it has sent is
    /// still committed. Every leader of this node's term holds the snapshot's last entry and all before it (Leader
    /// Completeness), so the argument of figure 13 holds in every later term too:
    ///
    /// - A log that holds the last entry agrees with the snapshot up to there (Log Matching). What lies behind it stays,
    ///   and is as far acknowledged as before.
    /// - In a log that does not hold it, everything behind that place contradicts it and is committed in no term. What
    ///   this node has acknowledged up to there is in the snapshot, so its acknowledgement stays true.
    ///
    /// A node that campaigns has told others where its log ends, and a leader holds the entries already: both refuse.
    pub(crate) fn on_install_snapshot(
        &mut self,
        now: Instant,
        snapshot: Received,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let Received { from, term, last, time_ms, configuration } = snapshot;
        let in_range = term <= Term::MAX_ACCEPTED && last.index <= crate::LogIndex::MAX_ACCEPTED;
        if !in_range || last.term > term || last.term == Term::ZERO {
            return Err(Rejected::OutOfRange);
        }
        let is_deposed = term < self.hard_state.term;
        if is_deposed && !matches!(self.role, Role::Follower(_)) {
            return Err(Rejected::SnapshotStale);
        }
        if term > self.hard_state.term {
            self.become_follower(now, term, out);
        }
        if !is_deposed || cfg!(mutant = "deposed-sender-leads") {
            self.accept_leader(now, from)?;
        }
        if last.index <= self.log.committed() {
            // The next heartbeat's answer tells the leader that it may go on with entries.
            return Err(Rejected::SnapshotStale);
        }
        let keeps_suffix = self.log.install(last, configuration, time_ms);
        if !keeps_suffix {
            out.superseded_from = Some(last.index.next());
        }
        self.installed(last, keeps_suffix);
        self.appended = Appended::Snapshot { last, keeps_suffix };
        Ok(())
    }
}
