//! When the install of a snapshot is tried again for which the state machine had no space.

use std::time::Duration;

use d_engine_core::Instant;

use crate::{LogId, StopReason};

/// The first pause after a state machine had no space for a snapshot. Each further one is twice as
/// long: an attempt may write the whole snapshot before it fails.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// The longest pause, and so the longest time until free space is noticed.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// What the worker knows of the snapshot that it installs.
#[derive(Debug, Default)]
pub(super) struct Installing {
    /// The snapshot whose unpacked files are in place.
    pub(super) unpacked: Option<LogId>,
    /// Set while the state machine has no space for the snapshot.
    pub(super) pause: Option<Pause>,
    now: Instant,
}

#[derive(Debug)]
pub(super) struct Pause {
    until: Instant,
    length: Duration,
    reason: String,
}

impl Installing {
    pub(super) fn at(&mut self, now: Instant) {
        self.now = now;
    }

    /// The state machine had no space for the snapshot.
    pub(super) fn lacked_room(&mut self, reason: &StopReason) {
        let longer = self.pause.as_ref().map(|pause| (pause.length * 2).min(PAUSE_MAX));
        let length = longer.unwrap_or(PAUSE_MIN);
        let until = self.now.plus(length);
        self.pause = Some(Pause { until, length, reason: reason.to_string() });
    }

    /// Why the next attempt has to wait, if it has to.
    pub(super) fn waits(&self) -> Option<&str> {
        self.pause.as_ref().filter(|pause| self.now < pause.until).map(|pause| &*pause.reason)
    }
}
