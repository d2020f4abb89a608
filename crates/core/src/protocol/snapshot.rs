//! Snapshots in the algorithm (Raft paper, section 7): the log begins after a snapshot, and a
//! follower that lacks purged entries receives a snapshot instead. The driver builds, sends and
//! verifies snapshots.

use crate::interface::effects::{Appended, Effects, LogSuffix};
use crate::interface::input::{Rejected, SnapshotToInstall};
use crate::protocol::role::RoleKind;
use crate::raft_core::RaftCore;
use crate::{Instant, LogId, NodeId, Term};

impl RaftCore {
    /// How far the log may be purged if a snapshot covers everything up to `covered`, and a tail of
    /// at most `entries` entries and `bytes` of payload is retained for followers that lag a
    /// little.
    #[must_use]
    pub fn retained_tail(&self, covered: crate::LogIndex, entries: u64, bytes: u64) -> LogId {
        self.log.retained_tail(covered.min(self.log.applied()), entries, bytes)
    }

    /// Whether a follower, as far as this leader knows, lacks entries that have been purged.
    #[must_use]
    pub fn lacks_purged_entries(&self, follower: NodeId) -> bool {
        let Some(leader) = self.role.leader() else { return false };
        let base = self.log.summary().base.index;
        leader.followers.get(&follower).is_some_and(|progress| progress.matched < base)
    }

    /// How far a follower's log is known to match this leader's.
    #[must_use]
    pub fn matched(&self, follower: NodeId) -> Option<crate::LogIndex> {
        let leader = self.role.leader()?;
        leader.followers.get(&follower).map(|progress| progress.matched)
    }

    /// Purges the log up to `through`, which is applied and covered by a snapshot.
    pub(crate) fn on_purged(&mut self, through: LogId) -> Result<(), Rejected> {
        if through.index > self.log.applied() || !self.log.holds(through) {
            return Err(Rejected::OutOfSequence);
        }
        self.log.purge_to(through);
        Ok(())
    }

    /// Installs a snapshot in place of the log. Its content is committed, so it may replace a log
    /// that ends before it or conflicts with it (Raft paper, figure 13).
    ///
    /// The paper refuses a snapshot of an earlier term. Here a follower installs it: the sender is
    /// no longer leader, so the term, the known leader and the election timeout stay unchanged, but
    /// the content is still committed. Every leader of a later term holds the snapshot's last entry
    /// and all entries before it (Leader Completeness), so the argument of figure 13 still holds:
    ///
    /// - A log that contains the last included entry agrees with the snapshot up to there (Log
    ///   Matching). The entries after it stay, with what was acknowledged of them.
    /// - In a log that does not contain it, all entries from that index on conflict with it and are
    ///   committed in no term. What this node has acknowledged up to there is in the snapshot, so
    ///   its acknowledgement stays true.
    ///
    /// Candidates refuse, because they have announced where their log ends; leaders refuse, because
    /// they hold the entries already.
    pub(crate) fn on_install_snapshot(
        &mut self,
        now: Instant,
        snapshot: SnapshotToInstall,
        out: &mut Effects,
    ) -> Result<(), Rejected> {
        let SnapshotToInstall { from, term, last, time_ms, configuration } = snapshot;
        let in_range = term <= Term::MAX_ACCEPTED && last.index <= crate::LogIndex::MAX_ACCEPTED;
        if !in_range || last.term > term || last.term == Term::ZERO {
            return Err(Rejected::OutOfRange);
        }
        let is_deposed = term < self.hard_state.term;
        if is_deposed && self.role.kind() != RoleKind::Follower {
            return Err(Rejected::SnapshotStale);
        }
        if term > self.hard_state.term {
            self.become_follower(now, term, out);
        }
        if !is_deposed {
            self.accept_leader(now, from)?;
        }
        if last.index <= self.log.committed() {
            // The reply to the next heartbeat tells the leader to continue with entries.
            return Err(Rejected::SnapshotStale);
        }
        let suffix = self.log.install(last, configuration, time_ms);
        if suffix == LogSuffix::Drop {
            out.superseded_from = Some(last.index.next());
        }
        self.installed(last, suffix);
        self.appended = Appended::Snapshot { last, suffix };
        Ok(())
    }
}
