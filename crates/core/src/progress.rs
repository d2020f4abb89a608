//! What a leader knows of one follower, and how much it may send.

use alloc::collections::VecDeque;

use crate::{Duration, Instant, LogIndex};

/// How entries are sent to a follower.
#[derive(Clone, Debug)]
pub(crate) enum Flow {
    /// Where the logs meet is not known: one append at a time.
    Probe {
        /// When the append on its way was sent.
        sent: Option<Instant>,
    },
    /// The logs are known to match: appends are pipelined (Raft thesis, section 10.2.1) up to a
    /// limit of bytes and messages.
    Replicate { inflight: VecDeque<Inflight>, bytes: u64 },
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
    /// Since when the follower has received nothing new although something was sent.
    stalled: Option<(LogIndex, Instant)>,
}

impl Progress {
    /// A follower of whom nothing is known but that the log ends at `last`.
    pub(crate) fn new(last: LogIndex, now: Instant) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next: last.next(),
            flow: Flow::Probe { sent: None },
            last_contact: now,
            round_answered: 0,
            stalled: None,
        }
    }

    /// Whether another append may be sent now.
    pub(crate) fn may_send(&self, appends_max: usize, bytes_max: u64) -> bool {
        match &self.flow {
            Flow::Probe { sent } => sent.is_none(),
            Flow::Replicate { inflight, bytes } => inflight.len() < appends_max && *bytes < bytes_max,
            Flow::Snapshot { .. } => false,
        }
    }

    /// An append up to `last` was sent.
    pub(crate) fn sent(&mut self, last: LogIndex, batch_bytes: u64, now: Instant) {
        match &mut self.flow {
            Flow::Probe { sent } => *sent = Some(now),
            Flow::Replicate { inflight, bytes } => {
                inflight.push_back(Inflight { last, bytes: batch_bytes });
                *bytes = bytes.saturating_add(batch_bytes);
                self.next = last.next();
            }
            Flow::Snapshot { .. } => {}
        }
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
                self.flow = Flow::Replicate { inflight: VecDeque::new(), bytes: 0 };
            }
            Flow::Replicate { inflight, bytes } => {
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
        self.flow = Flow::Probe { sent: None };
        self.stalled = None;
    }

    /// The follower has answered a heartbeat and holds (stored or not) everything up to `received`.
    ///
    /// Appends are lost without a word when the network drops them. A follower that answers
    /// heartbeats but has not received what was sent, for `patience` without any progress, is
    /// probed again. One whose disk is slow has received everything and is left alone; a probe
    /// that it has not stored in time is sent again, which costs one message.
    pub(crate) fn heard(&mut self, received: LogIndex, patience: Duration, now: Instant) {
        match &self.flow {
            Flow::Probe { sent: Some(sent) } if now.since(*sent) >= patience => {
                self.flow = Flow::Probe { sent: None };
            }
            Flow::Probe { .. } | Flow::Snapshot { .. } => {}
            Flow::Replicate { .. } if received.next() >= self.next => self.stalled = None,
            Flow::Replicate { .. } => match self.stalled {
                Some((before, since)) if before == received => {
                    if now.since(since) >= patience {
                        self.probe_from(received.max(self.matched).next());
                    }
                }
                _ => self.stalled = Some((received, now)),
            },
        }
    }
}
