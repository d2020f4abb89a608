//! For which followers a leader keeps its log, and from where on.
//!
//! A follower that is sent a snapshot goes on with the entries behind it. Until it has caught up, the log is kept from
//! there, for as long as the follower comes forward and the log's disk has room. When it is given up, what limits the
//! follower is told with its figure.

use std::collections::BTreeMap;

use d_engine_core::{Duration, Instant, LogIndex, NodeId, RaftCore};

use crate::event::SnapshotProgress;

/// Over less than this the speed of a transfer says nothing.
const MEASURED_FOR: Duration = Duration::from_millis(1_000);

/// The followers that needed a snapshot and have not caught up.
#[derive(Debug, Default)]
pub(crate) struct Holds {
    rows: BTreeMap<NodeId, Row>,
    /// When it was last looked, and how many bytes had been written by then.
    seen: (Instant, u64),
}

#[derive(Debug)]
struct Row {
    /// A snapshot is on its way to it, however often it was cut.
    sending: Option<Sending>,
    /// The last entry in the snapshot that it was sent last.
    label: LogIndex,
    /// Up to here its log is known to match.
    matched: LogIndex,
    /// When it came forward last.
    moved: Instant,
    /// Snapshots that it has applied in a row.
    count: u64,
    /// What was committed when its last transfer ended: before it gets there it has not caught up.
    goal: Option<LogIndex>,
    /// When it was sent the first one, and how many bytes of commands had been written by then.
    begun: (Instant, u64),
    /// Bytes a second of the snapshot, as of the last attempt.
    speed: Option<u64>,
    given_up: Option<GivenUp>,
}

#[derive(Debug, Default)]
struct Sending {
    /// The last attempt has ended without the follower's word that it has applied the snapshot.
    is_cut: bool,
    /// The archive is chosen: before that, everything may be needed.
    is_chosen: bool,
    confirmed: u64,
    len: u64,
    /// Since when this attempt is measured, and what was confirmed then.
    measured: Option<(Instant, u64)>,
}

/// Why the log was purged of what a follower needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum GivenUp {
    /// Nothing more was confirmed for too long.
    Silent,
    Room(Room),
}

/// How much of the log may be kept for followers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Room {
    /// All of it; `spare` bytes more are free than must stay free.
    Plenty { spare: u64 },
    /// The bytes that may be kept whatever the disk has; `free` bytes are less than the `mark` that must stay free.
    Little { free: u64, mark: u64 },
    /// The same: nobody knows how many bytes are free.
    Unknown,
    /// Nothing: `free` bytes are hardly enough for commands.
    None { free: u64, mark: u64 },
}

impl Row {
    /// What lies behind this the follower still needs.
    fn needs_from(&self) -> LogIndex {
        match &self.sending {
            Some(sending) if !sending.is_chosen => LogIndex::ZERO,
            _ => self.label.max(self.matched),
        }
    }

    fn is_silent(&self, now: Instant, patience: Duration) -> bool {
        now.since(self.moved) >= patience
    }
}

impl Holds {
    /// A snapshot was ordered for a follower, the first time or again. One that cannot be reached keeps the log for one
    /// `patience`, then not for as long, then anew: when it comes back much later, it is to find what it needs.
    pub(crate) fn begun(&mut self, to: NodeId, matched: Option<LogIndex>, now: Instant, patience: Duration) {
        let row = self.rows.entry(to).or_insert(Row {
            sending: None,
            label: LogIndex::ZERO,
            matched: matched.unwrap_or(LogIndex::ZERO),
            moved: now,
            count: 0,
            goal: None,
            begun: (now, self.seen.1),
            speed: None,
            given_up: None,
        });
        if row.sending.is_none() || now.since(row.moved) >= patience.times(2) {
            row.moved = now;
        }
        row.goal = None;
        let sending = row.sending.get_or_insert_default();
        (sending.is_cut, sending.is_chosen, sending.measured) = (false, false, None);
    }

    /// The archive is chosen, or the follower has confirmed more of it.
    pub(crate) fn moved(&mut self, progress: &SnapshotProgress, now: Instant) {
        let Some(row) = self.rows.get_mut(&progress.to) else { return };
        let Some(sending) = &mut row.sending else { return };
        if row.label != progress.label {
            (sending.confirmed, sending.measured) = (0, None);
        }
        (row.label, sending.is_chosen, sending.len) = (progress.label, true, progress.len);
        if progress.confirmed > sending.confirmed {
            (sending.confirmed, row.moved) = (progress.confirmed, now);
        }
        if progress.confirmed == 0 {
            // Chosen only. An attempt that goes on where one was cut is measured from there.
            return;
        }
        let (since, before) = *sending.measured.get_or_insert((now, progress.confirmed));
        if now.since(since) >= MEASURED_FOR {
            row.speed = per_second(progress.confirmed.saturating_sub(before), now.since(since));
        }
    }

    /// An attempt has ended early. It is ordered again, unless the follower turns out to need none.
    pub(crate) fn cut(&mut self, to: NodeId) {
        if let Some(sending) = self.rows.get_mut(&to).and_then(|row| row.sending.as_mut()) {
            sending.is_cut = true;
        }
    }

    /// The follower has applied a snapshot; so much is committed by now.
    pub(crate) fn applied(&mut self, to: NodeId, committed: LogIndex, now: Instant) {
        let Some(row) = self.rows.get_mut(&to) else { return };
        (row.sending, row.moved, row.goal) = (None, now, Some(committed));
        row.count += 1;
    }

    /// Looks how far the followers have come; a `tail` of so many entries and bytes stays in the log for everybody.
    /// Returns whether one needs nothing more than that.
    pub(crate) fn look(&mut self, core: &RaftCore, now: Instant, written: u64, tail: (u64, u64)) -> bool {
        self.seen = (now, written);
        let before = self.rows.len();
        self.rows.retain(|node, row| {
            let matched = core.matched(*node).unwrap_or(LogIndex::ZERO);
            if matched > row.matched {
                (row.matched, row.moved) = (matched, now);
            }
            // A cut one may only lack its last word, or the follower has found its entries by itself.
            row.sending.take_if(|it| it.is_cut && !core.lacks_purged_entries(*node));
            if row.sending.is_some() {
                return true;
            }
            if row.matched < *row.goal.get_or_insert(core.log().committed) {
                return true;
            }
            // Is it still further behind than the log reaches without it?
            row.goal = Some(core.log().committed);
            row.matched < core.tail_behind(core.log().committed, tail.0, tail.1).index
        });
        self.rows.len() < before
    }

    pub(crate) fn clear(&mut self) {
        self.rows.clear();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// From behind this on the log is needed, if it is.
    pub(crate) fn needed_from(&self, now: Instant, patience: Duration) -> Option<LogIndex> {
        if cfg!(mutant = "purge-during-transfer") {
            return None;
        }
        let rows = self.rows.values().filter(|row| !row.is_silent(now, patience));
        rows.map(Row::needs_from).min()
    }

    /// The log will be purged up to `through`.
    pub(crate) fn purging(&mut self, through: LogIndex, room: Room, now: Instant, patience: Duration) {
        for row in self.rows.values_mut().filter(|row| row.needs_from() < through) {
            let why = if row.is_silent(now, patience) { GivenUp::Silent } else { GivenUp::Room(room) };
            row.given_up = Some(why);
        }
    }

    /// What an operator must know: whom the log is not kept for any more, and what limits it.
    pub(crate) fn alarms(&self, limits: &Limits) -> Vec<String> {
        let (now, written) = self.seen;
        let stuck = self.rows.iter().filter_map(|(node, row)| {
            let why = row.given_up?;
            let has_come = row.count > 0 || row.sending.as_ref().is_some_and(|sending| sending.confirmed > 0);
            has_come.then(|| {
                let (begun, before) = row.begun;
                let load = per_second(written.saturating_sub(before), now.since(begun)).unwrap_or(0);
                let limit = row.limit(why, load, limits);
                let snapshots = if row.count == 1 { "snapshot" } else { "snapshots in a row" };
                match row.count {
                    0 => format!(
                        "node {node} is being sent a snapshot, and the log was purged of what it needs next: {limit}"
                    ),
                    count => format!(
                        "node {node} has been sent {count} {snapshots} and is still behind, and the log was purged of \
                         what it needs next: {limit}"
                    ),
                }
            })
        });
        stuck.collect()
    }
}

/// The settings that the alarms name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) patience: Duration,
    pub(crate) held_bytes: u64,
}

impl Row {
    /// Which resource is too small, and its figure.
    fn limit(&self, why: GivenUp, load: u64, limits: &Limits) -> String {
        let room = match why {
            GivenUp::Silent => {
                let (confirmed, len) = self.sending.as_ref().map_or((0, 0), |it| (it.confirmed, it.len));
                return format!(
                    "it has come no further for {} s (snapshots.purge_waits_ms), and has {confirmed} of {len} bytes of the \
                     snapshot; look at that node and its link",
                    limits.patience.as_millis() / 1_000
                );
            }
            GivenUp::Room(room) => room,
        };
        if let Some(speed) = self.speed.filter(|speed| *speed < load.saturating_add(load / 10)) {
            return format!(
                "the way to it limits it, which takes {speed} bytes/s of a snapshot while {load} bytes/s are written, and must \
                 take 10 % more than that; give it a faster link or disk, raise snapshots.send_bytes_per_second, or write less"
            );
        }
        match room {
            Room::Little { free, mark } | Room::None { free, mark } => format!(
                "this node's disk limits it, which has {free} bytes free where {mark} must stay free, and {load} bytes/s are \
                 written meanwhile; make room, or write less"
            ),
            Room::Plenty { .. } | Room::Unknown => format!(
                "the log waits for at most {} bytes of commands (half of snapshots.max_log_bytes) where nobody knows how many \
                 bytes are free, and {load} bytes/s are written meanwhile; raise it, or write less",
                limits.held_bytes
            ),
        }
    }
}

fn per_second(bytes: u64, time: Duration) -> Option<u64> {
    let rate = u128::from(bytes) * 1_000_000_000 / u128::from(time.as_nanos()).max(1);
    (time.as_nanos() > 0).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
}
