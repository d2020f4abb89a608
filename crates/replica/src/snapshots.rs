//! Snapshots as the replica sees them: one that was received and waits for its turn, followers that are being
//! sent one, and how far the log may be purged.

use d_engine_core::{Duration, Input, Instant, LogId, LogIndex, RoleKind};
use d_engine_storage::snapshot::Hold;

use crate::brake::SLOW_FOR;
use crate::event::{InstallResponder, Jobs, ReceivedSnapshot};
use crate::holds::{Holds, Limits, Room};
use crate::replica::{Payload, Replica};
use crate::{InstallError, StopReason};

/// How often it is looked whether the log is too large although a transfer runs.
const LOOK_AGAIN: Duration = Duration::from_millis(1_000);
/// What is kept for followers leaves so many times the bytes free below which commands are refused.
const LEAST_FREE_TIMES: u64 = 4;

#[derive(Default)]
pub(crate) struct Snapshots {
    /// Received, and waiting until the apply worker has nothing left to read from the log.
    received: Option<(Box<ReceivedSnapshot>, InstallResponder)>,
    /// In the place of the log already, up to this index; whoever sent it waits until it is applied.
    installing: Option<Installing>,
    /// Followers that are sent one, or were and have not caught up.
    pub(crate) holds: Holds,
    /// Bytes of the newest one of this node.
    bytes: u64,
    /// Bytes of entries that were given to the log so far.
    pub(crate) written: u64,
    /// When it was last looked how far the log may be purged although it is kept for a follower.
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

    /// So long is the newest snapshot: about as much room the next one needs.
    pub(crate) fn newest_has(&mut self, bytes: u64) {
        self.bytes = bytes;
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

    pub(crate) fn lost_leadership(&mut self) {
        self.holds.clear();
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
    /// A leader's snapshot is here. It is installed once the apply worker is idle.
    pub(crate) fn on_snapshot(&mut self, snapshot: Box<ReceivedSnapshot>, responder: InstallResponder) {
        if let Some(stop) = self.apply.stop().filter(|stop| stop.panicked) {
            // It would take the log's place, and no machine would take it.
            responder(Err(InstallError::Stopped { reason: stop.reason.clone() }));
        } else if self.snapshots.received.is_some() || self.snapshots.installing.is_some() {
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
        if let Some(stop) = self.apply.stop().filter(|stop| stop.panicked) {
            responder(Err(InstallError::Stopped { reason: stop.reason.clone() }));
            return;
        }
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
    /// as there is room. What a follower needs that is sent a snapshot stays until it has caught up, while it comes
    /// forward and the disk has room: see [`Holds`].
    pub(crate) fn maybe_purge(&mut self, now: Instant, jobs: &mut Jobs) {
        let tail = (self.config.tail_entries, self.config.tail_bytes);
        self.snapshots.is_due |= self.snapshots.holds.look(&self.core, now, self.snapshots.written, tail);
        if self.snapshots.holds.is_empty() {
            self.brake.release();
        }
        if !self.snapshots.is_due || self.snapshots.is_purging {
            return;
        }
        let base = self.core.log().base.index;
        let damaged = self
            .snapshots
            .damaged
            .as_ref()
            .is_some_and(|(at, _)| *at > base && *at <= self.snapshots.covered);
        if damaged {
            // Nobody can read what lies before it.
            let through = self.core.tail_behind(self.snapshots.covered, 0, 0);
            self.purge_to(through, jobs);
            return;
        }
        let patience = self.config.purge_patience;
        let needed = self.snapshots.holds.needed_from(now, patience);
        if needed.is_some() && now.since(self.snapshots.looked) < LOOK_AGAIN {
            return;
        }
        self.snapshots.looked = now;
        self.snapshots.is_due = needed.is_some();
        let mut through = self.core.tail_behind(self.snapshots.covered, tail.0, tail.1);
        if !self.is_short_of_room() {
            through = through.min(self.core.tail_behind(self.snapshots.oldest, 0, 0));
        }
        let room = self.room_for_holds();
        if let Some(needed) = needed.filter(|needed| *needed < through.index) {
            self.maybe_slow(now, room);
            // What it needs, or of that as much as may be kept.
            let from = self.core.tail_behind(needed, 0, 0);
            let held = match room {
                Room::Plenty { .. } => from,
                Room::Little { .. } | Room::Unknown => {
                    from.max(self.core.tail_behind(self.snapshots.covered, u64::MAX, self.config.held_bytes))
                }
                Room::None { .. } => through,
            };
            through = through.min(held);
        }
        if through.index > base {
            self.snapshots.holds.purging(through.index, room, now, patience);
        }
        self.purge_to(through, jobs);
    }

    fn purge_to(&mut self, through: LogId, jobs: &mut Jobs) {
        if through.index > self.core.log().base.index {
            self.snapshots.is_purging = true;
            jobs.purge = Some(through);
        }
    }

    /// What is kept of the log for followers leaves so many bytes free on its disk. Commands must not be refused because
    /// of it, and the next snapshot needs its room: without that nothing could be purged later.
    #[must_use]
    pub fn free_for_holds(&self) -> u64 {
        let snapshot = self.snapshots.bytes.saturating_mul(2);
        let snapshot = snapshot.saturating_add(self.config.snapshot_reserve_bytes);
        self.config.min_free_bytes.saturating_mul(LEAST_FREE_TIMES).saturating_add(snapshot)
    }

    /// How much of the log may be kept for followers.
    fn room_for_holds(&self) -> Room {
        let (disk, mark) = (self.log_disk(), self.free_for_holds());
        let least = self.config.min_free_bytes;
        match disk.free_bytes {
            _ if disk.full => Room::None { free: disk.free_bytes.unwrap_or(0), mark },
            Some(free) if free < least.saturating_mul(2) => Room::None { free, mark },
            Some(free) if free < mark => Room::Little { free, mark },
            Some(free) => Room::Plenty { spare: free - mark },
            None => Room::Unknown,
        }
    }

    /// When the room for a follower's entries is about to be used up, commands are slowed a little and for a while.
    fn maybe_slow(&mut self, now: Instant, room: Room) {
        match room {
            Room::Plenty { spare } if self.brake.uses_up(now, spare) => self.brake.slow(now),
            Room::Plenty { .. } | Room::Unknown => {}
            Room::Little { .. } | Room::None { .. } => self.brake.give_up(),
        }
    }

    /// What an operator must know of followers that do not catch up.
    pub(crate) fn hold_alarms(&self) -> Vec<String> {
        let limits = Limits { patience: self.config.purge_patience, held_bytes: self.config.held_bytes };
        let mut alarms = self.snapshots.holds.alarms(&limits);
        if let Some(per_second) = self.brake.slowed_to() {
            let free = self.log_disk().free_bytes.unwrap_or(0);
            alarms.push(format!(
                "commands are slowed to {per_second} bytes/s, for {} s at most: the log is kept for a follower that catches up, \
                 and this node's disk has {free} bytes free; make room, or write less",
                SLOW_FOR.as_millis() / 1_000
            ));
        }
        alarms
    }
}
