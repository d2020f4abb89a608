//! "no purge while a snapshot is sent": a node does not purge the entries that a follower needs
//! after the snapshot which it is being sent, until the timeout `purge_timeout_ms`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use d_engine_core::{Instant, LogId, LogIndex, NodeId, RaftCore, RoleKind};
use d_engine_replica::{Event, SnapshotSendRequest};

/// The snapshots that one process sends, from what its replica receives and requests.
#[derive(Debug, Default)]
pub(crate) struct SendMonitor {
    /// Followers for which the replica has requested a snapshot.
    sending: BTreeMap<NodeId, Sent>,
    /// Those of them whose last attempt failed.
    failed: BTreeSet<NodeId>,
}

/// A snapshot that is being sent.
#[derive(Debug)]
struct Sent {
    /// When the send began, or when the follower last made progress: it confirmed more bytes, or
    /// its log matches the leader's up to a later entry.
    since: Instant,
    /// The follower's log is known to match the leader's up to here.
    matched: LogIndex,
    /// The last included index of this attempt's archive, once it is chosen.
    last_included: Option<LogIndex>,
    /// The last included index of the last attempt's archive.
    last_archive: LogIndex,
    confirmed: u64,
}

impl Sent {
    fn new(now: Instant, matched: LogIndex) -> Self {
        let last_archive = LogIndex::ZERO;
        Self { since: now, matched, last_included: None, last_archive, confirmed: 0 }
    }
}

impl SendMonitor {
    /// Records an event that the replica is about to handle.
    pub(crate) fn on_event(&mut self, event: &Event, core: &RaftCore, now: Instant) {
        match event {
            Event::SnapshotProgress(progress) => {
                if let Some(sent) = self.sending.get_mut(&progress.to) {
                    if sent.last_archive != progress.last_included {
                        sent.confirmed = 0;
                    }
                    (sent.last_included, sent.last_archive) =
                        (Some(progress.last_included), progress.last_included);
                    if progress.confirmed > sent.confirmed {
                        (sent.since, sent.confirmed) = (now, progress.confirmed);
                    }
                }
            }
            Event::SnapshotSent(to) => {
                self.sending.remove(to);
            }
            Event::SnapshotFailed { to, .. } => {
                self.failed.insert(*to);
            }
            _ => {}
        }
        // A failed send is forgotten once its follower no longer lacks purged entries; a later one
        // starts with a new timeout.
        self.sending.retain(|to, _| !self.failed.contains(to) || core.lacks_purged_entries(*to));
    }

    /// Records what the replica has requested.
    pub(crate) fn on_requests(
        &mut self,
        orders: &[SnapshotSendRequest],
        core: &RaftCore,
        now: Instant,
        timeout: Duration,
    ) {
        if core.role() != RoleKind::Leader {
            self.sending.clear();
        }
        for order in orders {
            self.failed.remove(&order.to);
            let matched = core.matched(order.to).unwrap_or_default();
            let sent = self.sending.entry(order.to).or_insert(Sent::new(now, matched));
            if now.since(sent.since) >= timeout.saturating_mul(2) {
                sent.since = now;
            }
            sent.last_included = None;
        }
        // A node that is no member any more is sent nothing, and nothing is kept for it.
        self.sending.retain(|to, _| core.matched(*to).is_some());
        for (to, sent) in &mut self.sending {
            let matched = core.matched(*to).unwrap_or_default();
            if matched > sent.matched {
                (sent.matched, sent.since) = (matched, now);
            }
        }
    }

    /// Returns a follower that needs entries which a purge up to `through` removes.
    pub(crate) fn needs(
        &self,
        through: LogId,
        core: &RaftCore,
        now: Instant,
        timeout: Duration,
    ) -> Option<NodeId> {
        // A send that failed is over once its follower can continue with entries of the log.
        let is_over = |to: &NodeId| self.failed.contains(to) && !core.lacks_purged_entries(*to);
        let held = self.sending.iter().find(|(to, sent)| {
            let goes_on_from = sent.last_included.max(core.matched(**to)).unwrap_or_default();
            now.since(sent.since) < timeout && !is_over(to) && through.index > goes_on_from
        });
        held.map(|(to, _)| *to)
    }
}
