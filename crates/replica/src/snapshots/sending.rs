//! The snapshots that a leader is sending: one attempt at a time for each follower, what each
//! outcome means, how long to wait before the next attempt, and which archives must be kept.
//!
//! The driver owns threads, connections and the clock. For every order of the replica it calls
//! [`SnapshotSends::begin`], opens the archive, reports what was chosen and how far it came, and at
//! the end passes the outcome to [`SnapshotSends::on`]. It does what that returns, and then reports
//! the event of [`SnapshotSends::report`] to the replica. A newer order for the same follower
//! replaces the attempt: later reports of the old one have no effect.

use std::collections::BTreeMap;
use std::time::Duration;

use d_engine_core::{Instant, LogId, NodeId};

use crate::event::{Event, SnapshotProgress, SnapshotSendRequest};
use crate::snapshots::exchange::{Refusal, SendFailure, SendProgress};

/// The waits after failed attempts, in milliseconds; after the last one the wait stays the same.
const BACKOFF_MS: [u64; 7] = [200, 500, 1_000, 2_000, 5_000, 10_000, 30_000];
/// The wait before a new attempt is requested, if the follower needs no snapshot, in milliseconds.
const NOT_NEEDED_WAIT_MS: u64 = 200;
/// The wait before a new snapshot is requested, if none of this node can be sent, in milliseconds.
const NONE_USABLE_WAIT_MS: u64 = 1_000;
/// After a failed attempt the replica requests the next one within this time, unless the follower
/// no longer needs a snapshot.
const ORDERED_WITHIN: Duration = Duration::from_millis(10_000);
/// How often the follower's progress is reported to the replica.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(1_000);

/// A snapshot that is being sent to a follower.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SendingSnapshot {
    /// The follower.
    pub to: u64,
    /// Index of the last included entry; 0 before a snapshot was chosen.
    pub last_included: u64,
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// Size of the archive in bytes.
    pub len: u64,
    /// The offset at which this attempt began; more than 0 if it resumes an earlier one.
    pub resumed_at: u64,
    /// Whether the follower has received everything and is installing it.
    pub is_installing: bool,
    /// Failed attempts so far.
    pub failures: u64,
    /// Why the last attempt failed.
    pub last_failure: Option<String>,
}

/// The name of one attempt to send a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SendAttempt {
    id: u64,
    /// The follower.
    pub to: NodeId,
}

/// How an attempt has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SendOutcome {
    /// The follower's state machine has applied the snapshot.
    Applied,
    /// No archive of this node reaches the first entry of the log.
    NoneUsable,
    /// Every archive that would help the follower is longer, in bytes, than any node accepts.
    TooLong(u64),
    /// The follower refused it or was silent, or the archive cannot be read.
    Failed(SendFailure),
    /// There is no connection, or it broke.
    NoConnection(String),
}

/// What the driver does after an attempt, in this order. Then it calls [`SnapshotSends::report`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AfterAttempt {
    /// Verify this archive again, before it is sent to any node: it cannot be read, or the follower
    /// cannot use it.
    pub verify: Option<LogId>,
    /// Wait for this long, unless the attempt is replaced meanwhile.
    pub wait: Duration,
    /// Why the attempt failed; `None` if the follower has the snapshot or needs none.
    pub failure: Option<String>,
}

/// All snapshots that this node is sending.
#[derive(Debug, Default)]
pub struct SnapshotSends {
    last_id: u64,
    rows: BTreeMap<NodeId, Row>,
}

#[derive(Debug)]
struct Row {
    id: u64,
    /// The archive of this attempt, or of the one before until one is chosen.
    last_included: Option<LogId>,
    status: SendingSnapshot,
    /// What was last reported to the replica, and when.
    told: (u64, Instant),
    end: Option<End>,
}

/// The end of an attempt.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The follower has the snapshot.
    Applied,
    /// The follower needs no snapshot.
    NotNeeded,
    /// The attempt failed and has not been reported yet.
    Failed { none_usable: bool },
    /// The failure was reported at this time. The replica requests the next attempt soon, or none.
    Reported(Instant),
}

impl Row {
    fn is_over(&self, now: Instant) -> bool {
        matches!(self.end, Some(End::Reported(at)) if now.since(at) > ORDERED_WITHIN)
    }
}

impl SnapshotSends {
    /// Begins an attempt. Returns it, and the earlier attempt to the same follower that it
    /// replaces, whose connection must be closed: that one belongs to a leadership that has ended.
    pub fn begin(
        &mut self,
        now: Instant,
        order: SnapshotSendRequest,
    ) -> (SendAttempt, Option<SendAttempt>) {
        self.rows.retain(|_, row| !row.is_over(now));
        self.last_id += 1;
        let attempt = SendAttempt { id: self.last_id, to: order.to };
        let before = self.rows.remove(&order.to);
        let replaced = before.as_ref().map(|row| SendAttempt { id: row.id, to: order.to });
        let mut row = Row {
            id: attempt.id,
            last_included: None,
            status: SendingSnapshot { to: order.to.get(), ..SendingSnapshot::default() },
            told: (0, now),
            end: None,
        };
        if let Some(before) = before {
            row.last_included = before.last_included;
            row.status.failures = before.status.failures;
            row.status.last_failure = before.status.last_failure;
        }
        self.rows.insert(order.to, row);
        (attempt, replaced)
    }

    /// Ends the attempt to a node that has left. Returns it; its connection must be closed.
    pub fn end(&mut self, to: NodeId) -> Option<SendAttempt> {
        self.rows.remove(&to).map(|row| SendAttempt { id: row.id, to })
    }

    /// Whether no newer order has replaced the attempt.
    #[must_use]
    pub fn is_current(&self, attempt: SendAttempt) -> bool {
        self.rows.get(&attempt.to).is_some_and(|row| row.id == attempt.id)
    }

    fn row(&mut self, attempt: SendAttempt) -> Option<&mut Row> {
        self.rows.get_mut(&attempt.to).filter(|row| row.id == attempt.id)
    }

    /// The archive that the follower can resume, for
    /// [`ArchivePreference`](crate::ArchivePreference).
    #[must_use]
    pub fn resumable(&self, attempt: SendAttempt) -> Option<LogId> {
        let row = self.rows.get(&attempt.to).filter(|row| row.id == attempt.id);
        row.and_then(|row| row.last_included)
    }

    /// Records the chosen archive. Returns the event for the replica, which keeps the log for the
    /// follower from there.
    pub fn chosen(
        &mut self,
        now: Instant,
        attempt: SendAttempt,
        last_included: LogId,
        len: u64,
    ) -> Option<Event> {
        let row = self.row(attempt)?;
        row.last_included = Some(last_included);
        (row.status.last_included, row.status.len) = (last_included.index.get(), len);
        row.told = (0, now);
        Some(progress(attempt.to, last_included, 0, len))
    }

    /// Records how far the attempt has come. Returns the event for the replica: once a second at
    /// most, and when the follower has confirmed everything.
    pub fn moved(
        &mut self,
        now: Instant,
        attempt: SendAttempt,
        sender: SendProgress,
    ) -> Option<Event> {
        let row = self.row(attempt)?;
        row.status.confirmed = sender.confirmed;
        row.status.resumed_at = sender.resumed_at;
        row.status.is_installing = sender.is_installing;
        let (told, at) = row.told;
        let is_due = now.since(at) >= PROGRESS_INTERVAL || sender.confirmed == row.status.len;
        if sender.confirmed <= told || !is_due {
            return None;
        }
        row.told = (sender.confirmed, now);
        row.last_included.map(|last_included| {
            progress(attempt.to, last_included, sender.confirmed, row.status.len)
        })
    }

    /// Ends an attempt. Returns what to do next; `None` if the attempt was replaced, so that its
    /// outcome has no effect.
    pub fn on(&mut self, attempt: SendAttempt, outcome: SendOutcome) -> Option<AfterAttempt> {
        let row = self.row(attempt)?;
        let refusal = match &outcome {
            SendOutcome::Failed(SendFailure::Refused { refusal, .. }) => Some(*refusal),
            _ => None,
        };
        let doubts_archive = refusal == Some(Refusal::Unusable)
            || matches!(outcome, SendOutcome::Failed(SendFailure::Archive(_)));
        let (end, wait_ms) = match &outcome {
            SendOutcome::Applied => (End::Applied, 0),
            _ if refusal == Some(Refusal::NotNeeded) => (End::NotNeeded, NOT_NEEDED_WAIT_MS),
            SendOutcome::NoneUsable => (End::Failed { none_usable: true }, NONE_USABLE_WAIT_MS),
            SendOutcome::TooLong(_) | SendOutcome::Failed(_) | SendOutcome::NoConnection(_) => {
                (End::Failed { none_usable: false }, backoff_ms(row.status.failures))
            }
        };
        row.end = Some(end);
        let failure = matches!(end, End::Failed { .. }).then(|| why(&outcome));
        if failure.is_some() {
            row.status.failures += 1;
            row.status.last_failure.clone_from(&failure);
        }
        // An archive in doubt is not preferred in the next attempt.
        let verify = if doubts_archive { row.last_included.take() } else { None };
        Some(AfterAttempt { verify, wait: Duration::from_millis(wait_ms), failure })
    }

    /// Returns the event for the replica at the end of an attempt, once what
    /// [`SnapshotSends::on`] returned is done; `None` if the attempt was replaced or has not ended.
    pub fn report(&mut self, now: Instant, attempt: SendAttempt) -> Option<Event> {
        let row = self.row(attempt)?;
        let (to, end) = (attempt.to, row.end?);
        match end {
            End::Applied | End::NotNeeded => {
                self.rows.remove(&to);
            }
            End::Failed { .. } => row.end = Some(End::Reported(now)),
            End::Reported(_) => return None,
        }
        Some(match end {
            End::Applied => Event::SnapshotSent(to),
            End::Failed { none_usable } => Event::SnapshotFailed { to, none_usable },
            End::NotNeeded | End::Reported(_) => Event::SnapshotFailed { to, none_usable: false },
        })
    }

    /// The last included entries of the archives that are being sent. They must not be pruned, so
    /// that an attempt that failed can be resumed.
    #[must_use]
    pub fn archives_in_use(&self, now: Instant) -> Vec<LogId> {
        self.rows_at(now).filter_map(|row| row.last_included).collect()
    }

    /// The snapshots that are being sent, for the node's status.
    #[must_use]
    pub fn status(&self, now: Instant) -> Vec<SendingSnapshot> {
        self.rows_at(now).map(|row| row.status.clone()).collect()
    }

    fn rows_at(&self, now: Instant) -> impl Iterator<Item = &Row> {
        self.rows.values().filter(move |row| !row.is_over(now))
    }
}

fn progress(to: NodeId, last_included: LogId, confirmed: u64, len: u64) -> Event {
    let last_included = last_included.index;
    Event::SnapshotProgress(SnapshotProgress { to, last_included, confirmed, len })
}

/// The wait before the next attempt, after this many failures before this one.
fn backoff_ms(failures: u64) -> u64 {
    let wait = usize::try_from(failures).ok().and_then(|at| BACKOFF_MS.get(at));
    wait.or(BACKOFF_MS.last()).copied().unwrap_or_default()
}

fn why(outcome: &SendOutcome) -> String {
    match outcome {
        SendOutcome::Applied => String::new(),
        SendOutcome::NoneUsable => {
            "no snapshot here reaches the first entry of the log; requesting a new one".to_owned()
        }
        SendOutcome::TooLong(len) => format!(
            "the snapshot has {len} bytes, more than snapshots.max_bytes; raise the limit on every \
             node"
        ),
        SendOutcome::Failed(failure) => failure.to_string(),
        SendOutcome::NoConnection(why) => why.clone(),
    }
}

#[cfg(test)]
mod tests;
