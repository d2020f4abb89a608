//! The replica's view of snapshots: a received one that waits to be installed, followers that are
//! being sent one, and how far the log may be purged.

pub(crate) mod choice;
pub(crate) mod exchange;
pub(crate) mod holds;
pub(crate) mod receiving;
pub(crate) mod sending;

use std::time::Duration;

use d_engine_core::{Input, Instant, LogId, LogIndex, Now, RoleKind, SnapshotToInstall};
use d_engine_storage::snapshot::{Coverage, Hold};

use crate::clients::throttle::SLOW_FOR;
use crate::event::{InstallResponder, Jobs, ReceivedSnapshot};
use crate::replica::{Payload, Replica};
use crate::snapshots::holds::{Holds, Limits, RetentionSpace};
use crate::{InstallError, StopReason};

/// How often the purge limit is checked while the log is kept for a follower.
const LOOK_AGAIN: Duration = Duration::from_millis(1_000);
/// The log that is kept for followers leaves this many times the free bytes below which commands
/// are refused.
const LEAST_FREE_TIMES: u64 = 4;

#[derive(Default)]
pub(crate) struct Snapshots {
    /// The received snapshot. It waits until the apply worker has no job that reads from the log.
    received: Option<(Box<ReceivedSnapshot>, InstallResponder)>,
    /// The snapshot that has replaced the log and is not yet applied.
    installing: Option<Installing>,
    /// Followers that are being sent a snapshot, or were and have not caught up.
    pub(crate) holds: Holds,
    /// Bytes of this node's newest snapshot.
    bytes: u64,
    /// Payload bytes of the entries given to the log so far.
    pub(crate) written: u64,
    /// When the purge limit was last checked while the log was kept for a follower.
    looked: Instant,
    /// Last included index of this node's newest snapshot, which is verified and durable.
    covered: LogIndex,
    /// Last included index of the oldest retained snapshot: together with the log after it, it is
    /// as useful as the newest.
    oldest: LogIndex,
    /// Whether anything has changed since the purge limit was last checked.
    is_due: bool,
    is_purging: bool,
    /// The highest index known to be damaged in the log, and the error.
    damaged: Option<(LogIndex, StopReason)>,
}

struct Installing {
    last: LogIndex,
    responder: InstallResponder,
    /// The apply worker still has to read the archive.
    _hold: Hold,
}

impl Snapshots {
    /// Records that this node has a snapshot up to `newest` and retains others from `oldest` on.
    pub(crate) fn covers(&mut self, newest: LogIndex, oldest: LogIndex) {
        self.covered = self.covered.max(newest);
        self.oldest = self.oldest.max(oldest);
        self.is_due = true;
    }

    /// Records which snapshots this node has.
    pub(crate) fn set_coverage(&mut self, coverage: &Coverage) {
        self.newest_has(coverage.newest_bytes);
        self.covers(coverage.newest.index, coverage.oldest.index);
    }

    /// Sets the length of the newest snapshot, which estimates the space that the next one needs.
    pub(crate) fn newest_has(&mut self, bytes: u64) {
        self.bytes = bytes;
    }

    /// The alarm for damage in the log; it says whether a snapshot covers the damaged part.
    pub(crate) fn damage_alarm(&self) -> Option<String> {
        let (at, reason) = self.damaged.as_ref()?;
        Some(if *at <= self.covered {
            format!(
                "the log was damaged up to entry {at} ({reason}); a snapshot of this node covers \
                 the damaged part, and the log is purged up to it; check this disk"
            )
        } else {
            format!(
                "the log is damaged up to entry {at} ({reason}); a snapshot is being taken to \
                 replace the damaged part: do not stop this node before this alarm says that it is \
                 covered; if the alarm stays, take a snapshot yourself (d-engine snapshot); check \
                 this disk"
            )
        })
    }

    /// The disk has become full or has space again: the purge limit must be checked.
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

    /// Whether no job may be given to the apply worker, because a received snapshot waits for it.
    pub(crate) fn waits_for_apply(&self) -> bool {
        self.received.is_some()
    }

    /// The state machine has applied everything up to `index`. A snapshot counts as installed only
    /// then.
    pub(crate) fn applied_to(&mut self, index: LogIndex) {
        if let Some(installed) = self.installing.take_if(|it| it.last <= index) {
            // The log begins after it: an older snapshot would be of no use.
            self.covers(installed.last, installed.last);
            (installed.responder)(Ok(()));
        }
    }

    /// The node has stopped: replies to the senders of snapshots.
    pub(crate) fn stop(&mut self, reason: &StopReason) {
        let received = self.received.take().map(|(_, responder)| responder);
        let installing = self.installing.take().map(|it| it.responder);
        for responder in received.into_iter().chain(installing) {
            responder(Err(InstallError::Stopped { reason: reason.clone() }));
        }
    }
}

impl Replica {
    /// Accepts a snapshot that was received from a leader. It is installed once the apply worker is
    /// idle.
    pub(crate) fn on_snapshot(
        &mut self,
        snapshot: Box<ReceivedSnapshot>,
        responder: InstallResponder,
    ) {
        if let Some(stop) = self.apply.stop().filter(|stop| stop.panicked) {
            // It would replace the log, and no state machine would accept it.
            responder(Err(InstallError::Stopped { reason: stop.reason.clone() }));
        } else if self.snapshots.received.is_some() || self.snapshots.installing.is_some() {
            responder(Err(InstallError::Busy));
        } else {
            self.snapshots.received = Some((snapshot, responder));
        }
    }

    /// Replaces the log by a received snapshot, once no job of the apply worker reads entries that
    /// the install removes.
    pub(crate) fn maybe_install(&mut self, now: Now, jobs: &mut Jobs) {
        if !self.apply.is_idle() {
            return;
        }
        // Its sender is deposed and the election is undecided. Once that is decided, the snapshot
        // may be usable after all.
        let campaigns = matches!(self.core.role(), RoleKind::PreCandidate | RoleKind::Candidate);
        let term = self.core.term();
        if campaigns
            && self.snapshots.received.as_ref().is_some_and(|(snapshot, _)| snapshot.term < term)
        {
            return;
        }
        let Some((snapshot, responder)) = self.snapshots.received.take() else { return };
        if let Some(stop) = self.apply.stop().filter(|stop| stop.panicked) {
            responder(Err(InstallError::Stopped { reason: stop.reason.clone() }));
            return;
        }
        let ReceivedSnapshot { from, term, last_included, time_ms, membership, hold } = *snapshot;
        let configuration = Box::new(membership.configuration());
        let snapshot =
            SnapshotToInstall { from, term, last: last_included, time_ms, configuration };
        let input = Input::InstallSnapshot(snapshot);
        match self.try_step(now, input, Payload::Snapshot(membership), jobs) {
            Ok(()) => {
                self.snapshots.installing =
                    Some(Installing { last: last_included.index, responder, _hold: hold })
            }
            Err(_) => responder(Err(InstallError::Stale)),
        }
    }

    /// Handles damage of an entry that a follower needs. If a snapshot of this node covers the
    /// entry, the log is purged up to the snapshot and the follower is sent the snapshot; otherwise
    /// the node stops. Returns whether the node continues.
    pub(crate) fn bears_damage(&mut self, at: LogIndex, reason: StopReason) -> bool {
        if at > self.snapshots.covered.max(self.core.log().base.index) {
            self.stop(reason);
            return false;
        }
        tracing::error!(
            node = %self.node(), %at, %reason,
            "the log is damaged in a part that a snapshot of this node covers: the log is purged \
             up to the snapshot, and followers are sent the snapshot; check this disk"
        );
        self.snapshots.damaged = Some((at, reason));
        self.snapshots.is_due = true;
        true
    }

    /// Handles damage that a scrub has found in the log. The state machine still has the effect of
    /// the entries: a snapshot replaces them.
    pub(crate) fn on_log_damaged(
        &mut self,
        through: LogIndex,
        reason: StopReason,
        jobs: &mut Jobs,
    ) {
        tracing::error!(
            node = %self.node(), %through, %reason,
            "the log is damaged; check this disk"
        );
        let base = self.core.log().base.index;
        jobs.snapshot_due |= through > self.snapshots.covered.max(base);
        jobs.status_changed = true;
        self.snapshots.damaged = Some((through, reason));
        self.snapshots.is_due = true;
    }

    /// Purges the part of the log that a snapshot covers, except for a tail and, as long as there
    /// is space, for the entries after the oldest retained snapshot. Entries needed by a follower
    /// that is being sent a snapshot are kept until it has caught up, as long as it makes progress
    /// and the disk has space: see [`Holds`].
    pub(crate) fn maybe_purge(&mut self, now: Instant, jobs: &mut Jobs) {
        let tail = (self.config.tail_entries, self.config.tail_bytes);
        self.snapshots.is_due |=
            self.snapshots.holds.look(&self.core, now, self.snapshots.written, tail);
        if self.snapshots.holds.is_empty() {
            self.throttle.release();
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
            // Entries up to the damage cannot be read.
            let through = self.core.retained_tail(self.snapshots.covered, 0, 0);
            self.purge_to(through, jobs);
            return;
        }
        let timeout = self.config.purge_timeout;
        let needed = self.snapshots.holds.needed_from(now, timeout);
        if needed.is_some() && now.since(self.snapshots.looked) < LOOK_AGAIN {
            return;
        }
        self.snapshots.looked = now;
        self.snapshots.is_due = needed.is_some();
        let mut through = self.core.retained_tail(self.snapshots.covered, tail.0, tail.1);
        if !self.is_short_of_room() {
            through = through.min(self.core.retained_tail(self.snapshots.oldest, 0, 0));
        }
        let room = self.room_for_holds();
        if let Some(needed) = needed.filter(|needed| *needed < through.index) {
            self.maybe_slow(now, room);
            // Keep the entries that it needs, or as many of them as the space allows.
            let from = self.core.retained_tail(needed, 0, 0);
            let held = match room {
                RetentionSpace::Plenty { .. } => from,
                RetentionSpace::Little { .. } | RetentionSpace::Unknown => {
                    from.max(self.core.retained_tail(
                        self.snapshots.covered,
                        u64::MAX,
                        self.config.held_bytes,
                    ))
                }
                RetentionSpace::None { .. } => through,
            };
            through = through.min(held);
        }
        if through.index > base {
            self.snapshots.holds.purging(through.index, room, now, timeout);
        }
        self.purge_to(through, jobs);
    }

    fn purge_to(&mut self, through: LogId, jobs: &mut Jobs) {
        if through.index > self.core.log().base.index {
            self.snapshots.is_purging = true;
            jobs.purge = Some(through);
        }
    }

    /// Bytes that the log kept for followers must leave free on its disk. Otherwise commands would
    /// be refused because of it, or the next snapshot would not fit, without which nothing could be
    /// purged later.
    #[must_use]
    pub fn free_for_holds(&self) -> u64 {
        let snapshot = self.snapshots.bytes.saturating_mul(2);
        let snapshot = snapshot.saturating_add(self.config.snapshot_reserve_bytes);
        self.config.min_free_bytes.saturating_mul(LEAST_FREE_TIMES).saturating_add(snapshot)
    }

    /// How much of the log may be kept for followers.
    fn room_for_holds(&self) -> RetentionSpace {
        let (disk, mark) = (self.log_disk(), self.free_for_holds());
        let least = self.config.min_free_bytes;
        match disk.free_bytes {
            _ if disk.full => RetentionSpace::None { free: disk.free_bytes.unwrap_or(0), mark },
            Some(free) if free < least.saturating_mul(2) => RetentionSpace::None { free, mark },
            Some(free) if free < mark => RetentionSpace::Little { free, mark },
            Some(free) => RetentionSpace::Plenty { spare: free - mark },
            None => RetentionSpace::Unknown,
        }
    }

    /// Throttles commands slightly and for a limited time when the space for a follower's entries
    /// is about to run out.
    fn maybe_slow(&mut self, now: Instant, room: RetentionSpace) {
        match room {
            RetentionSpace::Plenty { spare } if self.throttle.uses_up(now, spare) => {
                self.throttle.slow(now)
            }
            RetentionSpace::Plenty { .. } | RetentionSpace::Unknown => {}
            RetentionSpace::Little { .. } | RetentionSpace::None { .. } => self.throttle.give_up(),
        }
    }

    /// The alarms for followers that do not catch up.
    pub(crate) fn hold_alarms(&self) -> Vec<String> {
        let limits =
            Limits { timeout: self.config.purge_timeout, held_bytes: self.config.held_bytes };
        let mut alarms = self.snapshots.holds.alarms(&limits);
        if let Some(per_second) = self.throttle.slowed_to() {
            let free = self.log_disk().free_bytes.unwrap_or(0);
            alarms.push(format!(
                "commands are slowed to {per_second} bytes/s, for at most {} s: the log is kept \
                 for a follower that is catching up, and this node's disk has {free} bytes free; \
                 make space, or write less",
                SLOW_FOR.as_secs()
            ));
        }
        alarms
    }
}
