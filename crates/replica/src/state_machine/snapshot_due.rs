//! When a snapshot is due: what has grown since the newest one, and how attempts have ended.

use std::time::Duration;

use d_engine_core::Instant;

/// Approximate bytes of an entry in the log in addition to its payload.
const ENVELOPE_BYTES: u64 = 32;
/// Time after a failed attempt until the next one; the last value applies to all later attempts.
const RETRY_AFTER_MS: [u64; 7] = [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000];

/// The counters that decide whether a snapshot is due.
#[derive(Debug, Default)]
pub(crate) struct SnapshotDue {
    /// Bytes of the applied entries, payload and envelope.
    log_bytes: u64,
    /// Bytes that the log has written since the node's start, padding included, and how many of
    /// them it had written when the newest snapshot was begun.
    written: u64,
    written_before: Option<u64>,
    /// The time of the worker's own monotonic clock, which no leader and no wall clock changes.
    now: Instant,
    /// The start of the policy's interval: the newest snapshot, or the first entry applied in this
    /// boot.
    since: Option<Instant>,
    /// Whether this node has not yet built a snapshot itself; only then it is staggered.
    first: bool,
    /// The counters as of the last included entry of the snapshot that is being built, if one is.
    building: Option<Counted>,
    failures: usize,
    not_before: Option<Instant>,
}

/// The counters at the last included entry of a snapshot.
#[derive(Clone, Copy, Debug)]
struct Counted {
    log_bytes: u64,
    written: u64,
    at: Instant,
}

impl SnapshotDue {
    pub(crate) fn new() -> Self {
        Self { first: true, ..Self::default() }
    }

    /// Sets the time of the worker's clock; an earlier time is ignored.
    pub(crate) fn at(&mut self, now: Instant) {
        self.now = self.now.max(now);
    }

    /// Counts an applied entry with `payload` bytes.
    pub(crate) fn applied(&mut self, payload: usize) {
        self.since.get_or_insert(self.now);
        self.log_bytes = self.log_bytes.saturating_add(payload as u64 + ENVELOPE_BYTES);
    }

    /// The growth of the log since the newest snapshot. Small groups of entries are padded to whole
    /// sectors, so it may be several times the bytes applied.
    pub(crate) fn bytes(&self) -> u64 {
        let written = self.written.saturating_sub(self.written_before.unwrap_or(self.written));
        self.log_bytes.max(written)
    }

    pub(crate) fn log_written(&mut self, total: u64) {
        self.written = total;
        self.written_before.get_or_insert(total);
    }

    /// Restarts the counters after a leader's snapshot was installed. A snapshot that is being
    /// built continues.
    pub(crate) fn installed(&mut self) {
        let (written, now) = (self.written, self.now);
        let building = self.building.map(|_| Counted { log_bytes: 0, written, at: now });
        *self = Self {
            building,
            written,
            written_before: Some(written),
            now,
            since: Some(now),
            ..Self::new()
        };
    }

    pub(crate) fn begun(&mut self) {
        self.building =
            Some(Counted { log_bytes: self.log_bytes, written: self.written, at: self.now });
    }

    pub(crate) fn kept(&mut self) {
        if let Some(counted) = self.building.take() {
            self.log_bytes = self.log_bytes.saturating_sub(counted.log_bytes);
            self.written_before = Some(counted.written);
            self.since = Some(counted.at);
        }
        self.first = false;
        (self.failures, self.not_before) = (0, None);
    }

    pub(crate) fn failed(&mut self) {
        self.building = None;
        let wait = RETRY_AFTER_MS
            .get(self.failures)
            .or(RETRY_AFTER_MS.last())
            .copied()
            .unwrap_or_default();
        self.failures += 1;
        self.not_before = Some(self.now.plus(Duration::from_millis(wait)));
    }

    /// Whether this node has not yet built a snapshot itself.
    pub(crate) fn is_first(&self) -> bool {
        self.first
    }

    /// The time since the start of the policy's interval.
    pub(crate) fn elapsed(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| self.now.since(since))
    }

    /// Whether a snapshot is being built.
    pub(crate) fn is_building(&self) -> bool {
        self.building.is_some()
    }

    /// Whether the last attempt failed too recently for another one.
    pub(crate) fn waits(&self) -> bool {
        self.not_before.is_some_and(|at| self.now < at)
    }
}
