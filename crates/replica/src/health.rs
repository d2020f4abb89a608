//! What is wrong with this node, and what it does about it: a leader whose disk or state machine hangs
//! gives way, and an operator is told.

use std::sync::atomic::Ordering;

use d_engine_core::{ClockState, Duration, Input, Instant, RoleKind};

use crate::event::Jobs;
use crate::replica::{Payload, Replica};

/// What the state machine may take its time for: that is no sign of a hang.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses {
    /// A snapshot without a view is under way since then: nothing is applied meanwhile.
    since: Option<Instant>,
    /// How long the last one took.
    last: Option<Duration>,
    /// The snapshot that is being installed.
    pub(crate) installs_to: Option<u64>,
}

impl Pauses {
    pub(crate) fn are_under_way(&self) -> bool {
        self.since.is_some() || self.installs_to.is_some()
    }
}

impl Replica {
    /// Nothing is applied while a snapshot without a view is taken. A leader whose last pause was longer
    /// than the shortest election timeout, or that knows of none, hands leadership over at once: callers
    /// would wait that long.
    pub(crate) fn on_apply_paused(&mut self, now: Instant, wall_ms: u64, paused: bool, jobs: &mut Jobs) {
        let may_be_long = self.pauses.last.is_none_or(|last| last >= self.config.core.election_timeout_min);
        let begun = paused.then_some(now);
        if let Some(since) = std::mem::replace(&mut self.pauses.since, begun) {
            self.pauses.last = Some(now.since(since));
        }
        self.machine.exempt(now, self.pauses.are_under_way(), self.apply.is_idle());
        if paused && may_be_long && self.core.role() == RoleKind::Leader {
            // Refused where nobody else could lead, or while another transfer is under way.
            self.try_step(now, wall_ms, Input::TransferLeadership { to: None }, Payload::None, jobs).ok();
        }
    }

    /// After so long without a sign a worker hangs.
    pub(crate) fn hang_limit(&self) -> Duration {
        self.config.core.election_timeout_max
    }

    /// A hanging disk bars this node from leading. A hanging state machine is a reason to give way only
    /// if another voter has applied more: otherwise nobody would do better.
    pub(crate) fn watch_workers(&mut self, now: Instant, wall_ms: u64, jobs: &mut Jobs) {
        let limit = self.hang_limit();
        if let Some(hangs) = self.disk.look(now, limit) {
            if hangs {
                tracing::error!(
                    node = %self.node(), limit_ms = limit.as_millis(),
                    "a write of the log has not returned for this long; the node neither leads nor campaigns until it does"
                );
            } else {
                tracing::info!(node = %self.node(), "the log's disk answers again");
            }
            self.step(now, wall_ms, Input::DiskHangs(hangs), Payload::None, jobs);
            jobs.status_changed = true;
        }
        let (counter, seen) = &mut self.machine_steps;
        let steps = counter.load(Ordering::Relaxed);
        if std::mem::replace(seen, steps) != steps {
            self.machine.came_back(now, self.apply.is_idle());
        }
        if let Some(hangs) = self.machine.look(now, limit) {
            if hangs {
                tracing::error!(
                    node = %self.node(), limit_ms = limit.as_millis(),
                    "apply_chunk of the state machine has not returned for this long"
                );
            }
            jobs.status_changed = true;
        }
        self.watch_room(now, wall_ms, jobs);
        let tried_lately = self.gave_way_at.is_some_and(|at| now.since(at) < limit);
        if (self.machine.hangs() || self.apply.stop().is_some())
            && !tried_lately
            && let Some(to) = self.core.voter_ahead_in_apply(now)
        {
            self.gave_way_at = Some(now);
            // Refused while another transfer is under way.
            self.try_step(now, wall_ms, Input::TransferLeadership { to: Some(to) }, Payload::None, jobs).ok();
        }
    }

    /// Whether there is too little room on the disk for another command: snapshots, purges, terms and
    /// votes still need some.
    pub(crate) fn is_short_of_room(&self) -> bool {
        let disk = self.log_disk();
        disk.full || disk.free_bytes.is_some_and(|free| free < self.config.min_free_bytes)
    }

    /// A leader without room for commands hands leadership to a voter that has some.
    fn watch_room(&mut self, now: Instant, wall_ms: u64, jobs: &mut Jobs) {
        let short = self.is_short_of_room();
        if short != self.was_short_of_room {
            self.was_short_of_room = short;
            self.snapshots.look_again();
            self.step(now, wall_ms, Input::ShortOfRoom(short), Payload::None, jobs);
            let free = self.log_disk().free_bytes;
            if short {
                tracing::error!(
                    node = %self.node(), free, min_free_bytes = self.config.min_free_bytes,
                    "too little room on the log's disk: commands are refused until there is more"
                );
            } else {
                tracing::info!(node = %self.node(), free, "there is room on the log's disk again");
            }
            jobs.status_changed = true;
        }
        let tried_lately = self.gave_way_at.is_some_and(|at| now.since(at) < self.hang_limit());
        if short
            && !tried_lately
            && let Some(to) = self.core.voter_with_room(now)
        {
            self.gave_way_at = Some(now);
            // Refused while another transfer is under way.
            self.try_step(now, wall_ms, Input::TransferLeadership { to: Some(to) }, Payload::None, jobs).ok();
        }
    }

    /// What an operator must look at.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        let limit = self.hang_limit().as_millis();
        if self.disk.hangs() {
            alarms.push(format!(
                "the log's disk hangs: a write has not returned for more than {limit} ms; check the disk"
            ));
        }
        if self.is_short_of_room() {
            let free =
                self.log_disk().free_bytes.map_or("an unknown number of".to_owned(), |free| free.to_string());
            alarms.push(format!(
                "too little room on the log's disk: {free} bytes are free, commands are refused below {} \
                 (limits.min_free_bytes); make room, and the node goes on by itself",
                self.config.min_free_bytes
            ));
        }
        if self.machine.hangs() {
            alarms.push(format!(
                "the state machine hangs: apply_chunk has not returned for more than {limit} ms"
            ));
        }
        alarms.extend(self.apply.stop().map(|stop| stop.reason.to_string()));
        let status = self.core.status();
        match status.clock {
            Some(ClockState::NoQuorum) => alarms.push(format!(
                "the wall clocks of a quorum do not agree within {} ms, so log time goes by this leader's monotonic clock \
                 alone and keys may expire late; correct the clocks",
                self.config.core.max_clock_offset.as_millis()
            )),
            Some(ClockState::Held) => alarms.push(
                "the wall clock differs by more than an hour from the time in the log, so log time goes on from the log; \
                 correct the clock, or start with accept_clock if the clock is right"
                    .to_owned(),
            ),
            Some(ClockState::Agreed) | None => {}
        }
        alarms.extend(self.snapshots.damage_alarm());
        alarms.extend(self.hold_alarms());
        alarms.extend(self.losses());
        alarms
    }

    /// Proof that some node has lost what it had acknowledged, a sentence each. They are among the alarms.
    pub(crate) fn losses(&self) -> Vec<String> {
        let status = self.core.status();
        let rolled_back = status.followers.iter().filter(|follower| follower.log_lost).map(|follower| {
            format!(
                "node {} no longer has entries that it had acknowledged: its data directory was rolled back or damaged",
                follower.node
            )
        });
        rolled_back.chain(self.contradiction().map(str::to_owned)).collect()
    }
}
