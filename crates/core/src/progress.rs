//! What a leader knows of one follower, and how much it may send.

use alloc::collections::VecDeque;

use crate::{Duration, FollowerReport, Instant, LogIndex};

/// How entries are sent to a follower.
#[derive(Clone, Debug)]
pub(crate) enum Flow {
    /// Where the logs meet is not known: one append at a time.
    Probe {
        /// When the append on its way was sent.
        sent: Option<Instant>,
        /// An append at this place was sent before: the next one carries no entries. On a slow link the
        /// first is only late, and entries that are sent again delay everything after them.
        again: bool,
    },
    /// The logs are known to match: appends are pipelined (Raft thesis, section 10.2.1) up to a
    /// limit of bytes and messages.
    Replicate {
        inflight: VecDeque<Inflight>,
        bytes: u64,
        /// The driver could not send the last append. Nothing is sent before the follower is heard again.
        blocked: bool,
    },
    /// The follower needs entries that are purged here: a snapshot is on its way, and nothing else.
    Snapshot {
        /// Sending it has failed; it is ordered again with the next heartbeat.
        failed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Inflight {
    last: LogIndex,
    bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The last entry that the follower has stored and that matches the leader's log.
    pub(crate) matched: LogIndex,
    /// The next entry to send.
    pub(crate) next: LogIndex,
    pub(crate) flow: Flow,
    /// When a message of this term came from the follower.
    pub(crate) last_contact: Instant,
    /// The last round of heartbeats that the follower has answered.
    pub(crate) round_answered: u64,
    /// What it reported of itself with that answer.
    pub(crate) report: FollowerReport,
    /// The highest command version that its program decodes. Unknown until it has answered a heartbeat of this
    /// leadership, and again after its connection was lost: another program may have been started since.
    pub(crate) command_version_max: Option<u32>,
    /// Answers to this round and earlier ones may come from the program of before the loss.
    unknown_to: u64,
    /// Since when the follower has received nothing new although something was sent.
    stalled: Option<(LogIndex, Instant)>,
}

/// A probe carries entries only up to this size: what it finds out needs none, and a follower that
/// does not match gets them in vain.
pub(crate) const PROBE_BYTES_MAX: u64 = 4 << 10;

impl Progress {
    /// A follower of whom nothing is known but that the log ends at `last`.
    pub(crate) fn new(last: LogIndex, now: Instant) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next: last.next(),
            flow: Flow::Probe { sent: None, again: false },
            last_contact: now,
            round_answered: 0,
            report: FollowerReport::default(),
            command_version_max: None,
            unknown_to: 0,
            stalled: None,
        }
    }

    /// Whether another append may be sent now.
    pub(crate) fn may_send(&self, appends_max: usize, bytes_max: u64) -> bool {
        match &self.flow {
            Flow::Probe { sent, .. } => sent.is_none(),
            Flow::Replicate { inflight, bytes, blocked } => {
                !blocked && inflight.len() < appends_max && *bytes < bytes_max
            }
            Flow::Snapshot { .. } => false,
        }
    }

    /// An append up to `last` was sent.
    pub(crate) fn sent(&mut self, last: LogIndex, batch_bytes: u64, now: Instant) {
        match &mut self.flow {
            Flow::Probe { sent, again } => {
                *sent = Some(now);
                *again = true;
            }
            Flow::Replicate { inflight, bytes, .. } => {
                inflight.push_back(Inflight { last, bytes: batch_bytes });
                *bytes = bytes.saturating_add(batch_bytes);
                self.next = last.next();
            }
            Flow::Snapshot { .. } => {}
        }
    }

    /// The driver could not send an append after `prev`: there is no connection, or no room in its queue.
    /// Appends before it are on their way, so only what comes after `prev` is planned again, and not
    /// before the follower is heard: a full queue has to move first.
    pub(crate) fn not_sent(&mut self, prev: LogIndex) {
        let Flow::Replicate { inflight, bytes, blocked } = &mut self.flow else { return };
        if prev.next() >= self.next {
            return;
        }
        while let Some(append) = inflight.pop_back_if(|append| append.last > prev) {
            *bytes = bytes.saturating_sub(append.bytes);
        }
        *blocked = true;
        self.next = prev.max(self.matched).next();
    }

    /// The follower has answered `round`. Of its promises the one with the latest round holds.
    pub(crate) fn answered(&mut self, round: u64, report: FollowerReport) {
        if round >= self.round_answered {
            self.round_answered = round;
            self.report = report;
            if round > self.unknown_to {
                self.command_version_max = Some(report.command_version_max);
            } else {
                self.report.stands_at = None;
            }
        }
    }

    /// The connection was lost after `last_round` was sent: whoever answers later rounds may run another program.
    pub(crate) fn program_unknown(&mut self, last_round: u64) {
        self.command_version_max = None;
        self.report.stands_at = None;
        self.unknown_to = last_round;
    }

    /// The follower needs a snapshot.
    pub(crate) fn needs_snapshot(&mut self) {
        self.flow = Flow::Snapshot { failed: false };
        self.stalled = None;
    }

    /// Sending the snapshot has failed.
    pub(crate) fn snapshot_failed(&mut self) {
        if let Flow::Snapshot { failed } = &mut self.flow {
            *failed = true;
        }
    }

    /// Whether a snapshot must be ordered again; it counts as ordered then.
    pub(crate) fn retries_snapshot(&mut self) -> bool {
        match &mut self.flow {
            Flow::Snapshot { failed } => core::mem::take(failed),
            _ => false,
        }
    }

    /// The follower has stored everything up to `index`.
    pub(crate) fn stored_to(&mut self, index: LogIndex) {
        self.matched = self.matched.max(index);
        self.next = self.next.max(index.next());
        match &mut self.flow {
            // With a snapshot on its way: it is in the place of the follower's log, or that was further than it seemed.
            Flow::Probe { .. } | Flow::Snapshot { .. } => {
                self.next = self.matched.next();
                self.flow = Flow::Replicate { inflight: VecDeque::new(), bytes: 0, blocked: false };
            }
            Flow::Replicate { inflight, bytes, blocked } => {
                *blocked = false;
                while let Some(done) = inflight.pop_front_if(|append| append.last <= index) {
                    *bytes = bytes.saturating_sub(done.bytes);
                }
            }
        }
    }

    /// The follower does not hold `refused`; `resume` is the furthest entry that may match. A stale
    /// refusal changes nothing: that of an entry which the follower has stored (or has lost since,
    /// then probing at once would be answered alike for ever), or of an earlier probe.
    pub(crate) fn refused(&mut self, refused: LogIndex, resume: LogIndex) {
        let of_earlier_probe = matches!(self.flow, Flow::Probe { .. }) && refused != self.next.previous();
        let of_earlier_flow = of_earlier_probe || matches!(self.flow, Flow::Snapshot { .. });
        if refused > self.matched && !of_earlier_flow {
            self.probe_from(resume.max(self.matched).next());
        }
    }

    /// Messages on their way may be lost: find out where the follower stands.
    ///
    /// A probe is only sent again: where it stands is a better guess than the last ack, which a new
    /// leader does not have and would have to send the whole log for.
    pub(crate) fn lost(&mut self) {
        match self.flow {
            Flow::Probe { .. } => self.probe_from(self.next),
            Flow::Replicate { .. } => self.probe_from(self.matched.next()),
            // It travels on a connection of its own.
            Flow::Snapshot { .. } => {}
        }
    }

    fn probe_from(&mut self, next: LogIndex) {
        self.next = next;
        self.flow = Flow::Probe { sent: None, again: false };
        self.stalled = None;
    }

    /// The follower has answered a heartbeat and holds (stored or not) everything up to `received`.
    /// Returns whether an empty append after everything sent is due.
    ///
    /// The transport reports what it loses, so this is the last resort. A follower that answers
    /// heartbeats but has received nothing new for `last_resort` although something was sent is asked
    /// with an *empty* append after the last entry sent. It refuses that append if something before it
    /// was lost. If everything is only slow, the append is late too and nothing is sent twice: the
    /// account of what is on its way stays as it is.
    ///
    /// A probe without an answer for `probe_again` is sent again; see [`Flow::Probe`].
    pub(crate) fn heard(
        &mut self,
        received: LogIndex,
        probe_again: Duration,
        last_resort: Duration,
        now: Instant,
    ) -> bool {
        match &mut self.flow {
            Flow::Probe { sent, .. } => {
                *sent = sent.filter(|sent| now.since(*sent) < probe_again);
                return false;
            }
            Flow::Snapshot { .. } => return false,
            Flow::Replicate { blocked, .. } => *blocked = false,
        }
        if received.next() >= self.next {
            self.stalled = None;
            return false;
        }
        match self.stalled {
            Some((before, since)) if before == received => {
                let is_due = now.since(since) >= last_resort;
                if is_due {
                    self.stalled = Some((received, now));
                }
                is_due
            }
            _ => {
                self.stalled = Some((received, now));
                false
            }
        }
    }
}
