//! The problems of this node and the reaction to them: a leader whose disk or state machine hangs
//! transfers its leadership, and alarms inform the operator.

pub(crate) mod standing;
pub(crate) mod worker_watch;

use std::sync::atomic::Ordering;
use std::time::Duration;

use d_engine_core::{ClockState, Input, Instant, LogIndex, Now, RoleKind};

use crate::event::Jobs;
use crate::health::worker_watch::WorkLeft;
use crate::replica::{Payload, Replica};

/// Long work of the state machine that does not count as a hang.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pauses {
    /// When the snapshot without a view began that is being generated now; apply waits meanwhile.
    since: Option<Instant>,
    /// How long the last such pause took.
    last: Option<Duration>,
    /// The last included index of the snapshot that is being installed.
    pub(crate) installs_to: Option<LogIndex>,
}

impl Pauses {
    pub(crate) fn are_under_way(&self) -> bool {
        self.since.is_some() || self.installs_to.is_some()
    }
}

/// The alarm of a node that neither votes nor campaigns.
pub(crate) const ABSTAINS: &str = "this node neither votes nor campaigns, because its cluster was continued as another one by \
     `recover`, and it knows no leader; stop this node, empty its directory, and let it join the \
     new cluster; if `recover` was a mistake, stop the new cluster for good, and start the nodes \
     of this one with --ignore-superseded";

impl Replica {
    /// Handles the start (`paused`) or end of a pause of apply for a snapshot without a view. A
    /// leader whose last pause was at least the shortest election timeout, or that has not had one
    /// yet, transfers its leadership at once, because callers would wait that long.
    pub(crate) fn on_apply_paused(&mut self, now: Now, paused: bool, jobs: &mut Jobs) {
        let may_be_long =
            self.pauses.last.is_none_or(|last| last >= self.config.core.election_timeout_min);
        let begun = paused.then_some(now.monotonic);
        if let Some(since) = std::mem::replace(&mut self.pauses.since, begun) {
            self.pauses.last = Some(now.monotonic.since(since));
        }
        self.machine.set_exempt(self.pauses.are_under_way());
        self.machine_came_back(now);
        if paused && may_be_long && self.core.role() == RoleKind::Leader {
            // Rejected if no other voter could lead, or during another transfer.
            self.try_step(now, Input::TransferLeadership { to: None }, Payload::None, jobs).ok();
        }
    }

    /// The log worker has reported something.
    pub(crate) fn disk_came_back(&mut self, now: Now) {
        // Entries that wait for space do not show that the disk hangs.
        let is_idle = self.log_disk().full || self.unsynced.is_empty();
        let left = if is_idle { WorkLeft::None } else { WorkLeft::Some };
        self.disk.came_back(now.monotonic, left);
    }

    /// The apply worker has reported something.
    pub(crate) fn machine_came_back(&mut self, now: Now) {
        let left = if self.apply.is_idle() { WorkLeft::None } else { WorkLeft::Some };
        self.machine.came_back(now.monotonic, left);
    }

    /// A worker that has reported nothing for this long hangs.
    pub(crate) fn hang_limit(&self) -> Duration {
        self.config.core.election_timeout_max
    }

    /// Checks for hanging workers. With a hanging disk this node neither leads nor campaigns. With
    /// a hanging state machine a leader transfers leadership only to a voter that has applied more:
    /// any other would be no better.
    pub(crate) fn watch_workers(&mut self, now: Now, jobs: &mut Jobs) {
        let limit = self.hang_limit();
        if let Some(hangs) = self.disk.look(now.monotonic, limit) {
            if hangs {
                tracing::error!(
                    node = %self.node(), limit_ms = limit.as_millis(),
                    "a write of the log has not returned for this long; the node neither leads nor \
                     campaigns until it returns"
                );
            } else {
                tracing::info!(node = %self.node(), "the log's disk completes writes again");
            }
            self.step(now, Input::DiskHangs(hangs), Payload::None, jobs);
            jobs.status_changed = true;
        }
        let (counter, seen) = &mut self.machine_steps;
        let steps = counter.load(Ordering::Relaxed);
        if std::mem::replace(seen, steps) != steps {
            self.machine_came_back(now);
        }
        if let Some(hangs) = self.machine.look(now.monotonic, limit) {
            if hangs {
                tracing::error!(
                    node = %self.node(), limit_ms = limit.as_millis(),
                    "apply_chunk of the state machine has not returned for this long"
                );
            }
            jobs.status_changed = true;
        }
        self.watch_room(now, jobs);
        let tried_lately = self.gave_way_at.is_some_and(|at| now.monotonic.since(at) < limit);
        if (self.machine.hangs() || self.apply.stop().is_some())
            && !tried_lately
            && let Some(to) = self.core.voter_ahead_in_apply(now.monotonic)
        {
            self.gave_way_at = Some(now.monotonic);
            // Rejected during another transfer.
            self.try_step(now, Input::TransferLeadership { to: Some(to) }, Payload::None, jobs)
                .ok();
        }
    }

    /// Whether there is too little space on the disk for another command: snapshots, purges, terms
    /// and votes still need some.
    pub(crate) fn is_short_of_room(&self) -> bool {
        let disk = self.log_disk();
        disk.full || disk.free_bytes.is_some_and(|free| free < self.config.min_free_bytes)
    }

    /// A leader without space for commands transfers leadership to a voter that has some.
    fn watch_room(&mut self, now: Now, jobs: &mut Jobs) {
        let short = self.is_short_of_room();
        if short != self.was_short_of_room {
            self.was_short_of_room = short;
            self.snapshots.look_again();
            self.step(now, Input::ShortOfSpace(short), Payload::None, jobs);
            let free = self.log_disk().free_bytes;
            if short {
                tracing::error!(
                    node = %self.node(), free, min_free_bytes = self.config.min_free_bytes,
                    "too little space on the log's disk: commands are refused until there is more"
                );
            } else {
                tracing::info!(node = %self.node(), free, "there is space on the log's disk again");
            }
            jobs.status_changed = true;
        }
        let tried_lately =
            self.gave_way_at.is_some_and(|at| now.monotonic.since(at) < self.hang_limit());
        if short
            && !tried_lately
            && let Some(to) = self.core.voter_with_space(now.monotonic)
        {
            self.gave_way_at = Some(now.monotonic);
            // Rejected during another transfer.
            self.try_step(now, Input::TransferLeadership { to: Some(to) }, Payload::None, jobs)
                .ok();
        }
    }

    /// The problems that an operator must look into, one sentence each.
    pub(crate) fn alarms(&self) -> Vec<String> {
        let mut alarms = Vec::new();
        let limit = self.hang_limit().as_millis();
        if self.disk.hangs() {
            alarms.push(format!(
                "the log's disk hangs: a write has not returned for more than {limit} ms; check the disk"
            ));
        }
        if self.is_short_of_room() {
            let free = self
                .log_disk()
                .free_bytes
                .map_or("an unknown number of".to_owned(), |free| free.to_string());
            alarms.push(format!(
                "too little space on the log's disk: {free} bytes are free, and commands are \
                 refused below {} (limits.min_free_bytes); make space, and the node accepts \
                 commands again by itself",
                self.config.min_free_bytes
            ));
        }
        if self.machine.hangs() {
            alarms.push(format!(
                "the state machine hangs: apply_chunk has not returned for more than {limit} ms; check \
                 what it waits for, and restart this node if it does not continue"
            ));
        }
        alarms.extend(self.apply.stop().map(|stop| stop.reason.to_string()));
        let status = self.core.status();
        match status.clock {
            Some(ClockState::NoQuorum) => alarms.push(format!(
                "the wall clocks of a quorum do not agree within {} ms, so log time follows this \
                 leader's monotonic clock alone, and keys may expire late; correct the clocks",
                self.config.core.max_clock_offset.as_millis()
            )),
            Some(ClockState::Held) => alarms.push(
                "the wall clock differs by more than an hour from the time in the log, so log time \
                 continues from the log; correct the clock, or start with accept_clock if the \
                 clock is right"
                    .to_owned(),
            ),
            Some(ClockState::Agreed) | None => {}
        }
        if let Some(promised) = status.lacks {
            alarms.push(format!(
                "this node's log was repaired after damage, and lacks entries up to entry {} of \
                 term {}: it votes as if it had them, and does not lead before it has received \
                 them; nothing has to be done while the other nodes have a leader; if they have \
                 none, start the other voters, of which one has the entries",
                promised.index, promised.term
            ));
        }
        if status.abstains {
            alarms.push(ABSTAINS.to_owned());
        }
        alarms.extend(self.snapshots.damage_alarm());
        alarms.extend(self.hold_alarms());
        alarms.extend(self.losses());
        alarms
    }

    /// Evidence that a node has lost entries that it had acknowledged, one sentence each. They are
    /// among the alarms.
    pub(crate) fn losses(&self) -> Vec<String> {
        let status = self.core.status();
        let rolled_back = status.followers.iter().filter(|follower| follower.log_lost).map(|follower| {
            format!(
                "node {} no longer has entries that it had acknowledged: its data directory was \
                 rolled back or damaged; do not start it again on that directory",
                follower.node
            )
        });
        rolled_back.chain(self.contradiction().map(str::to_owned)).collect()
    }
}
