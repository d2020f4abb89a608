//! The followers for which a leader keeps its log, and from which index.
//!
//! A follower that is sent a snapshot continues with the entries after it. Until it has caught up,
//! the log is kept from there, as long as the follower makes progress and the log's disk has space.
//! Once the leader no longer keeps the log for a follower, an alarm names the limiting resource
//! with its figure.

use std::collections::BTreeMap;
use std::time::Duration;

use d_engine_core::{Instant, LogIndex, NodeId, RaftCore};

use crate::event::SnapshotProgress;

/// The shortest time over which the speed of sending is measured.
const MEASURED_FOR: Duration = Duration::from_millis(1_000);

/// The followers that needed a snapshot and have not caught up.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    rows: BTreeMap<NodeId, Row>,
    /// The time of the last check, and the bytes written by then.
    seen: (Instant, u64),
}

#[derive(Debug)]
struct Row {
    /// The snapshot that is being sent to it, over all attempts.
    sending: Option<Sending>,
    /// Last included index of the snapshot that it was sent last.
    last_included: LogIndex,
    /// Its log is known to match the leader's up to here.
    matched: LogIndex,
    /// When it last made progress.
    moved: Instant,
    /// The number of snapshots in a row that it has applied.
    count: u64,
    /// The commit index when its last snapshot was applied: it has not caught up before it reaches
    /// that index.
    goal: Option<LogIndex>,
    /// When it was sent the first snapshot, and the bytes of commands written by then.
    begun: (Instant, u64),
    /// Speed of the last attempt, in bytes of the snapshot per second.
    speed: Option<u64>,
    given_up: Option<GivenUp>,
}

#[derive(Debug, Default)]
struct Sending {
    /// Whether the last attempt has ended without the follower's confirmation that it has applied
    /// the snapshot.
    is_cut: bool,
    /// Whether the archive is chosen. Before that, any entry may be needed.
    is_chosen: bool,
    confirmed: u64,
    len: u64,
    /// The start of this attempt's measurement, and the bytes confirmed by then.
    measured: Option<(Instant, u64)>,
}

/// Why entries that a follower needs were purged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GivenUp {
    /// The follower made no progress for too long.
    Silent,
    RetentionSpace(RetentionSpace),
}

/// How much of the log may be kept for followers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum RetentionSpace {
    /// All of it; `spare` bytes are free in addition to those that must stay free.
    Plenty { spare: u64 },
    /// Only the configured bytes: `free` is less than the `mark` that must stay free.
    Little { free: u64, mark: u64 },
    /// Only the configured bytes: the free space is unknown.
    Unknown,
    /// Nothing: `free` bytes are barely enough for commands.
    None { free: u64, mark: u64 },
}

impl Row {
    /// The follower still needs the entries after this index.
    fn needs_from(&self) -> LogIndex {
        match &self.sending {
            Some(sending) if !sending.is_chosen => LogIndex::ZERO,
            _ => self.last_included.max(self.matched),
        }
    }

    fn is_silent(&self, now: Instant, timeout: Duration) -> bool {
        now.since(self.moved) >= timeout
    }
}

impl Holds {
    /// Records that a snapshot was requested for a follower, for the first time or again. An
    /// unreachable follower keeps the log for one `timeout`, then not for the same time, then
    /// again: if it returns much later, it should find the entries that it needs.
    pub(crate) fn begun(
        &mut self,
        to: NodeId,
        matched: Option<LogIndex>,
        now: Instant,
        timeout: Duration,
    ) {
        let row = self.rows.entry(to).or_insert(Row {
            sending: None,
            last_included: LogIndex::ZERO,
            matched: matched.unwrap_or(LogIndex::ZERO),
            moved: now,
            count: 0,
            goal: None,
            begun: (now, self.seen.1),
            speed: None,
            given_up: None,
        });
        if row.sending.is_none() || now.since(row.moved) >= timeout.saturating_mul(2) {
            row.moved = now;
        }
        row.goal = None;
        let sending = row.sending.get_or_insert_default();
        (sending.is_cut, sending.is_chosen, sending.measured) = (false, false, None);
    }

    /// Records that the archive is chosen, or that the follower has confirmed more of it.
    pub(crate) fn moved(&mut self, progress: &SnapshotProgress, now: Instant) {
        let Some(row) = self.rows.get_mut(&progress.to) else { return };
        let Some(sending) = &mut row.sending else { return };
        if row.last_included != progress.last_included {
            (sending.confirmed, sending.measured) = (0, None);
        }
        (row.last_included, sending.is_chosen, sending.len) =
            (progress.last_included, true, progress.len);
        if progress.confirmed > sending.confirmed {
            (sending.confirmed, row.moved) = (progress.confirmed, now);
        }
        if progress.confirmed == 0 {
            // The archive was only chosen. A resumed attempt is measured from the offset at which
            // it resumes.
            return;
        }
        let (since, before) = *sending.measured.get_or_insert((now, progress.confirmed));
        if now.since(since) >= MEASURED_FOR {
            row.speed = per_second(progress.confirmed.saturating_sub(before), now.since(since));
        }
    }

    /// Records that an attempt has ended early. The snapshot is requested again, unless the
    /// follower turns out to need none.
    pub(crate) fn cut(&mut self, to: NodeId) {
        if let Some(sending) = self.rows.get_mut(&to).and_then(|row| row.sending.as_mut()) {
            sending.is_cut = true;
        }
    }

    /// Records that the follower has applied a snapshot, with the commit index now.
    pub(crate) fn applied(&mut self, to: NodeId, committed: LogIndex, now: Instant) {
        let Some(row) = self.rows.get_mut(&to) else { return };
        (row.sending, row.moved, row.goal) = (None, now, Some(committed));
        row.count += 1;
    }

    /// Updates the progress of the followers, given a `tail` of that many entries and bytes that
    /// stays in the log anyway. Returns whether a follower needs nothing beyond the tail any more.
    pub(crate) fn look(
        &mut self,
        core: &RaftCore,
        now: Instant,
        written: u64,
        tail: (u64, u64),
    ) -> bool {
        self.seen = (now, written);
        let before = self.rows.len();
        self.rows.retain(|node, row| {
            let matched = core.matched(*node).unwrap_or(LogIndex::ZERO);
            if matched > row.matched {
                (row.matched, row.moved) = (matched, now);
            }
            // After a cut attempt only the final confirmation may be missing, or the follower has
            // obtained the entries otherwise.
            row.sending.take_if(|it| it.is_cut && !core.lacks_purged_entries(*node));
            if row.sending.is_some() {
                return true;
            }
            if row.matched < *row.goal.get_or_insert(core.log().committed) {
                return true;
            }
            // Check whether it lags further behind than the tail of the log reaches.
            row.goal = Some(core.log().committed);
            row.matched < core.retained_tail(core.log().committed, tail.0, tail.1).index
        });
        self.rows.len() < before
    }

    /// Keeps nothing for a node that is no member any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.rows.remove(&node);
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The entries after this index are needed; `None` if none are.
    pub(crate) fn needed_from(&self, now: Instant, timeout: Duration) -> Option<LogIndex> {
        let rows = self.rows.values().filter(|row| !row.is_silent(now, timeout));
        rows.map(Row::needs_from).min()
    }

    /// Records why the log is purged of entries that followers need; it will be purged up to
    /// `through`.
    pub(crate) fn purging(
        &mut self,
        through: LogIndex,
        room: RetentionSpace,
        now: Instant,
        timeout: Duration,
    ) {
        for row in self.rows.values_mut().filter(|row| row.needs_from() < through) {
            let why = if row.is_silent(now, timeout) {
                GivenUp::Silent
            } else {
                GivenUp::RetentionSpace(room)
            };
            row.given_up = Some(why);
        }
    }

    /// The alarms: the followers for which the log is no longer kept, and the resource that limits
    /// each.
    pub(crate) fn alarms(&self, limits: &Limits) -> Vec<String> {
        let (now, written) = self.seen;
        let stuck = self.rows.iter().filter_map(|(node, row)| {
            let why = row.given_up?;
            let has_come =
                row.count > 0 || row.sending.as_ref().is_some_and(|sending| sending.confirmed > 0);
            has_come.then(|| {
                let (begun, before) = row.begun;
                let load =
                    per_second(written.saturating_sub(before), now.since(begun)).unwrap_or(0);
                let limit = row.limit(why, load, limits);
                let snapshots = if row.count == 1 { "snapshot" } else { "snapshots in a row" };
                match row.count {
                    0 => format!(
                        "node {node} is being sent a snapshot, and the entries that it needs after \
                         it were purged from the log: {limit}"
                    ),
                    count => format!(
                        "node {node} has been sent {count} {snapshots} and is still behind, and \
                         the entries that it needs next were purged from the log: {limit}"
                    ),
                }
            })
        });
        stuck.collect()
    }
}

/// The settings that the alarms quote.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    pub(crate) held_bytes: u64,
}

impl Row {
    /// Names the resource that is too small, with its figure.
    fn limit(&self, why: GivenUp, load: u64, limits: &Limits) -> String {
        let room = match why {
            GivenUp::Silent => {
                let (confirmed, len) =
                    self.sending.as_ref().map_or((0, 0), |it| (it.confirmed, it.len));
                return format!(
                    "it has made no progress for {} s (snapshots.purge_waits_ms) and has \
                     {confirmed} of {len} bytes of the snapshot; check that node and the \
                     connection to it",
                    limits.timeout.as_secs()
                );
            }
            GivenUp::RetentionSpace(room) => room,
        };
        if let Some(speed) = self.speed.filter(|speed| *speed < load.saturating_add(load / 10)) {
            return format!(
                "the connection to it limits it: it receives {speed} bytes/s of a snapshot while \
                 {load} bytes/s are written, and must receive 10 % more than that; give it a \
                 faster link or disk, raise snapshots.send_bytes_per_second, or write less"
            );
        }
        match room {
            RetentionSpace::Little { free, mark } | RetentionSpace::None { free, mark } => format!(
                "this node's disk limits it: {free} bytes are free where {mark} must stay free, \
                 and {load} bytes/s are written meanwhile; make space, or write less"
            ),
            RetentionSpace::Plenty { .. } | RetentionSpace::Unknown => format!(
                "for it the log keeps at most {} bytes of commands (half of \
                 snapshots.max_log_bytes) while the free space is unknown, and {load} bytes/s are \
                 written meanwhile; raise the setting, or write less",
                limits.held_bytes
            ),
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let rate = u128::from(bytes) * 1_000_000_000 / time.as_nanos().max(1);
    (!time.is_zero()).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
}
