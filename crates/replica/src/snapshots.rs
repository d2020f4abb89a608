//! Snapshots as the replica sees them: one that was received and waits for its turn, followers that are being
//! sent one, and how far the log may be purged.

use std::collections::BTreeMap;

use d_engine_core::{Duration, Input, Instant, LogIndex, NodeId, RoleKind};
use d_engine_storage::snapshot::Hold;

use crate::event::{InstallResponder, Jobs, ReceivedSnapshot};
use crate::replica::{Payload, Replica};
use crate::{InstallError, StopReason};

/// How often it is looked whether the log is too large although a transfer runs.
const LOOK_AGAIN: Duration = Duration::from_millis(1_000);

#[derive(Default)]
pub(crate) struct Snapshots {
    /// Received, and waiting until the apply worker has nothing left to read from the log.
    received: Option<(Box<ReceivedSnapshot>, InstallResponder)>,
    /// In the place of the log already, up to this index; whoever sent it waits until it is applied.
    installing: Option<Installing>,
    /// Followers that a snapshot is on its way to, however often it was cut.
    sending: BTreeMap<NodeId, Sending>,
    /// Followers that have been sent a snapshot and have not come to the log's end since.
    in_a_row: BTreeMap<NodeId, InARow>,
    /// When it was last looked how far the log may be purged although a transfer runs.
    looked: Instant,
    /// Up to here this node's newest snapshot reaches, verified and durable.
    covered: LogIndex,
    /// Up to here the oldest one reaches that is retained: with the log behind it, it is as good as the newest.
    oldest: LogIndex,
    /// Something has changed since it was last looked how far the log may be purged.
    is_due: bool,
    is_purging: bool,
    /// The highest entry known to be damaged in the log, and what was said of it.
    damaged: Option<(LogIndex, StopReason)>,
}

struct Sending {
    since: Instant,
    /// The last attempt has ended without the follower's word that it has applied the snapshot.
    is_cut: bool,
}

/// Snapshots that a follower was sent one after the other.
struct InARow {
    count: u64,
    /// What was committed when the last one was applied: a follower that gets there has caught up.
    goal: LogIndex,
}

struct Installing {
    last: LogIndex,
    responder: InstallResponder,
    /// The apply worker is yet to read the archive.
    _hold: Hold,
}

impl Snapshots {
    /// This node has a snapshot up to `newest`, and retains others from `oldest` on.
    pub(crate) fn covers(&mut self, newest: LogIndex, oldest: LogIndex) {
        self.covered = self.covered.max(newest);
        self.oldest = self.oldest.max(oldest);
        self.is_due = true;
    }

    /// What an operator must know of damage in the log, and whether a snapshot holds what was there.
    pub(crate) fn damage_alarm(&self) -> Option<String> {
        let (at, reason) = self.damaged.as_ref()?;
        Some(if *at <= self.covered {
            format!(
                "the log was damaged up to entry {at} ({reason}); a snapshot of this node holds what was there, and the log is \
                 purged up to it; look at this disk"
            )
        } else {
            format!(
                "the log is damaged up to entry {at} ({reason}); a snapshot is being taken in its place: do not stop this node \
                 before this says so, take one by hand (d-engine snapshot) if it stays, and look at this disk"
            )
        })
    }

    /// The disk has become full, or has room again.
    pub(crate) fn look_again(&mut self) {
        self.is_due = true;
    }

    /// A follower that cannot be reached keeps the log for one `patience`, then not for as long, then anew: when it comes
    /// back much later, it is to find what it needs.
    pub(crate) fn transfer_begun(
        &mut self,
        to: NodeId,
        matched: Option<LogIndex>,
        now: Instant,
        patience: Duration,
    ) {
        self.in_a_row.retain(|node, row| *node != to || matched < Some(row.goal));
        let sending = self.sending.entry(to).or_insert(Sending { since: now, is_cut: false });
        sending.is_cut = false;
        if now.since(sending.since) >= patience.times(2) {
            sending.since = now;
        }
    }

    /// An attempt has ended early. It is ordered again, unless the follower turns out to need none.
    pub(crate) fn transfer_cut(&mut self, to: NodeId) {
        if let Some(sending) = self.sending.get_mut(&to) {
            sending.is_cut = true;
        }
    }

    /// The follower has applied a snapshot; so much is committed by now.
    pub(crate) fn transfer_ended(&mut self, to: NodeId, committed: LogIndex) {
        self.sending.remove(&to);
        let row = self.in_a_row.entry(to).or_insert(InARow { count: 0, goal: committed });
        *row = InARow { count: row.count + 1, goal: committed };
        self.is_due = true;
    }

    /// Whether followers are being sent a snapshot, and go on from its label.
    fn holds(&self, now: Instant, patience: Duration) -> bool {
        !cfg!(mutant = "purge-during-transfer")
            && self.sending.values().any(|sending| now.since(sending.since) < patience)
    }

    pub(crate) fn lost_leadership(&mut self) {
        self.sending.clear();
        self.in_a_row.clear();
        self.is_due = true;
    }

    pub(crate) fn purged(&mut self) {
        self.is_purging = false;
    }

    /// Whether nothing may be given to the apply worker.
    pub(crate) fn waits_for_apply(&self) -> bool {
        self.received.is_some()
    }

    /// The state machine holds everything up to `index`: only now a snapshot counts as installed.
    pub(crate) fn applied_to(&mut self, index: LogIndex) {
        if let Some(installed) = self.installing.take_if(|it| it.last <= index) {
            // The log begins behind it: an older one would be of no use.
            self.covers(installed.last, installed.last);
            (installed.responder)(Ok(()));
        }
    }

    /// The node has stopped.
    pub(crate) fn stop(&mut self, reason: &StopReason) {
        let received = self.received.take().map(|(_, responder)| responder);
        let installing = self.installing.take().map(|it| it.responder);
        for responder in received.into_iter().chain(installing) {
            responder(Err(InstallError::Stopped { reason: reason.clone() }));
        }
    }
}

impl Replica {
    /// Followers that need one snapshot after the other: what lies behind each is purged before it is applied.
    pub(crate) fn followers_that_never_catch_up(&self) -> impl Iterator<Item = String> {
        let held = self.config.held_bytes;
        let patience = self.config.purge_patience.as_millis() / 1_000;
        let rows = self.snapshots.in_a_row.iter();
        let stuck = rows.filter(|(node, row)| row.count >= 2 && self.core.matched(**node) < Some(row.goal));
        stuck.map(move |(node, row)| {
            format!(
                "node {node} has been sent {} snapshots in a row and is still behind: the log waits for at most {held} bytes of                  commands (half of snapshots.max_log_bytes) and {patience} s (snapshots.purge_waits_ms) until one is applied;                  raise them, or write less until the node has caught up",
                row.count
            )
        })
    }

    /// A leader's snapshot is here. It is installed once the apply worker is idle.
    pub(crate) fn on_snapshot(&mut self, snapshot: Box<ReceivedSnapshot>, responder: InstallResponder) {
        if self.snapshots.received.is_some() || self.snapshots.installing.is_some() {
            responder(Err(InstallError::Busy));
        } else {
            self.snapshots.received = Some((snapshot, responder));
        }
    }

    /// Puts a received snapshot in the place of the log. Not while the apply worker may still read entries
    /// that will be gone.
    pub(crate) fn maybe_install(&mut self, now: Instant, wall_ms: u64, jobs: &mut Jobs) {
        if !self.apply.is_idle() {
            return;
        }
        // Its sender is deposed, and who leads now is open. As soon as that is known the snapshot serves after all.
        let campaigns = matches!(self.core.role(), RoleKind::PreCandidate | RoleKind::Candidate);
        let term = self.core.term();
        if campaigns && self.snapshots.received.as_ref().is_some_and(|(snapshot, _)| snapshot.term < term) {
            return;
        }
        let Some((snapshot, responder)) = self.snapshots.received.take() else { return };
        let ReceivedSnapshot { from, term, label, time_ms, membership, hold } = *snapshot;
        let configuration = Box::new(membership.configuration());
        let input = Input::InstallSnapshot { from, term, last: label, time_ms, configuration };
        match self.try_step(now, wall_ms, input, Payload::Snapshot(membership), jobs) {
            Ok(()) => {
                self.snapshots.installing = Some(Installing { last: label.index, responder, _hold: hold })
            }
            Err(_) => responder(Err(InstallError::Stale)),
        }
    }

    /// An entry that a follower needs is damaged. If a snapshot of this node holds it, the log gives up everything up to
    /// the snapshot's end, and the follower gets the snapshot; otherwise the node stops. Returns whether it goes on.
    pub(crate) fn bears_damage(&mut self, at: LogIndex, reason: StopReason) -> bool {
        if at > self.snapshots.covered.max(self.core.log().base.index) {
            self.stop(reason);
            return false;
        }
        tracing::error!(
            node = %self.node(), %at, %reason,
            "the log is damaged where a snapshot of this node holds what was there: the log is purged up to the snapshot, \
             and followers get that; look at this disk"
        );
        self.snapshots.damaged = Some((at, reason));
        self.snapshots.is_due = true;
        true
    }

    /// A scrub has found damage in the log. The state machine still holds what the entries did: a snapshot of it takes
    /// their place.
    pub(crate) fn on_log_damaged(&mut self, through: LogIndex, reason: StopReason, jobs: &mut Jobs) {
        tracing::error!(node = %self.node(), %through, %reason, "the log is damaged; look at this disk");
        let base = self.core.log().base.index;
        jobs.snapshot_due |= through > self.snapshots.covered.max(base);
        jobs.status_changed = true;
        self.snapshots.damaged = Some((through, reason));
        self.snapshots.is_due = true;
    }

    /// Purges what a snapshot covers, but for a tail, and for what the oldest retained snapshot needs behind it as long
    /// as there is room. A follower that is being sent a snapshot goes on from its
    /// label: until it has that, or for so long as is bearable, everything stays that the log has room for.
    pub(crate) fn maybe_purge(&mut self, now: Instant, jobs: &mut Jobs) {
        // A transfer may be cut when only its last word is missing, or because the follower has caught up by itself.
        let (core, before) = (&self.core, self.snapshots.sending.len());
        self.snapshots.sending.retain(|to, sending| !sending.is_cut || core.lacks_purged_entries(*to));
        self.snapshots.is_due |= self.snapshots.sending.len() < before;
        if !self.snapshots.is_due || self.snapshots.is_purging {
            return;
        }
        let base = self.core.log().base.index;
        let damaged = self
            .snapshots
            .damaged
            .as_ref()
            .is_some_and(|(at, _)| *at > base && *at <= self.snapshots.covered);
        let (entries, bytes) = if damaged {
            // Nobody can read what lies before it.
            (0, 0)
        } else if self.snapshots.holds(now, self.config.purge_patience) {
            if now.since(self.snapshots.looked) < LOOK_AGAIN {
                return;
            }
            (u64::MAX, self.config.held_bytes)
        } else {
            self.snapshots.is_due = false;
            (self.config.tail_entries, self.config.tail_bytes)
        };
        self.snapshots.looked = now;
        let mut through = self.core.tail_behind(self.snapshots.covered, entries, bytes);
        if !damaged && !self.is_short_of_room() {
            through = through.min(self.core.tail_behind(self.snapshots.oldest, 0, 0));
        }
        if through.index > self.core.log().base.index {
            self.snapshots.is_purging = true;
            jobs.purge = Some(through);
        }
    }
}
