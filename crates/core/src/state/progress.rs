//! What a leader knows of one follower, and how much it may send.

use alloc::collections::VecDeque;
use core::time::Duration;

use crate::{FollowerReport, Instant, LogIndex};

/// How entries are sent to a follower.
#[derive(Clone, Debug)]
pub(crate) enum Flow {
    /// It is unknown where the logs match: one append at a time.
    Probe {
        /// When the append in flight was sent.
        sent: Option<Instant>,
        /// An append after this entry was sent before, so the next one carries no entries: on a
        /// slow link the first is only late, and entries that are sent twice delay everything after
        /// them.
        again: bool,
    },
    /// The logs are known to match: appends are pipelined (Raft thesis, section 10.2.1) up to a
    /// limit of bytes and messages.
    Replicate {
        inflight: VecDeque<Inflight>,
        bytes: u64,
        /// The driver could not send the last append. Nothing is sent before the follower is heard
        /// again.
        blocked: bool,
    },
    /// The follower needs entries that are purged here: it receives a snapshot, and no appends
    /// meanwhile.
    Snapshot {
        /// Sending it has failed; it is requested again with the next heartbeat.
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
    /// The last entry that the follower has persisted and that matches the leader's log.
    pub(crate) matched: LogIndex,
    /// The next entry to send.
    pub(crate) next: LogIndex,
    pub(crate) flow: Flow,
    /// When a message of this term last arrived from the follower.
    pub(crate) last_contact: Instant,
    /// The last round of heartbeats that the follower has replied to.
    pub(crate) round_answered: u64,
    /// What the follower reported with that reply.
    pub(crate) report: FollowerReport,
    /// The highest command version that its program decodes. Unknown until it has replied to a
    /// heartbeat of this leadership, and again after its connection was lost: another program may
    /// have been started since.
    pub(crate) command_version_max: Option<u32>,
    /// Replies to this round and earlier ones may come from the program that ran before the
    /// connection was lost.
    unknown_to: u64,
    /// Since when the follower has received nothing new although something was sent.
    stalled: Option<(LogIndex, Instant)>,
    /// How well it keeps up; before it votes, this decides.
    keeping_up: KeepingUp,
}

/// Whether a follower keeps up with the log, by rounds: a round is the time from some last entry of
/// the leader until the follower has persisted that entry (Raft thesis, section 4.2.1).
#[derive(Clone, Debug)]
struct KeepingUp {
    /// The round now: the entry that ends it, and when it began.
    goal: LogIndex,
    begun: Instant,
    /// The short rounds in a row, and when the first of them began.
    passed: u32,
    passing_since: Instant,
    /// For how long its rounds must be short.
    must_pass_for: Duration,
}

/// How many rounds in a row must be short.
const ROUNDS_MIN: u32 = 2;
/// The longest time for which the rounds of a follower must be short.
const MUST_PASS_FOR_MAX: Duration = Duration::from_millis(300_000);

/// What a follower must achieve before it votes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PromotionGate {
    pub(crate) heard_within: Duration,
    pub(crate) round_max: Duration,
    pub(crate) at_least: Duration,
}

/// A probe carries entries only up to this size: it needs none to find where the logs match, and a
/// follower that does not match would receive them in vain.
pub(crate) const PROBE_BYTES_MAX: u64 = 4 << 10;

impl Progress {
    /// A follower of which nothing is known; the leader's log ends at `last`.
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
            keeping_up: KeepingUp {
                goal: last,
                begun: now,
                passed: 0,
                passing_since: now,
                must_pass_for: Duration::from_millis(0),
            },
        }
    }

    /// The follower has replied; the leader's log ends at `last`. Ends the round if its entry is
    /// persisted, and begins the next one.
    pub(crate) fn measure(&mut self, now: Instant, last: LogIndex, round_max: Duration) {
        let rounds = &mut self.keeping_up;
        if !matches!(self.flow, Flow::Replicate { .. }) {
            rounds.passed = 0;
        } else if self.matched >= rounds.goal {
            if now.since(rounds.begun) >= round_max {
                rounds.passed = 0;
            } else {
                if rounds.passed == 0 {
                    rounds.passing_since = rounds.begun;
                }
                rounds.passed = rounds.passed.saturating_add(1);
            }
            (rounds.goal, rounds.begun) = (last, now);
        }
    }

    /// Whether the follower may become a voter: entries flow, it was heard within `heard_within`,
    /// and its rounds have been shorter than `round_max` for `at_least`, or for longer if the
    /// cluster has already returned from a joint configuration because of it.
    pub(crate) fn is_promotable(&self, now: Instant, gate: PromotionGate) -> bool {
        let rounds = &self.keeping_up;
        self.keeps_up(now, gate)
            && rounds.passed >= ROUNDS_MIN
            && now.since(rounds.passing_since) >= gate.at_least.max(rounds.must_pass_for)
    }

    /// Whether the follower would store a new entry at once: it was heard, its last round was
    /// short, and so is the one now.
    pub(crate) fn keeps_up(&self, now: Instant, gate: PromotionGate) -> bool {
        let rounds = &self.keeping_up;
        self.is_heard(now, gate.heard_within)
            && rounds.passed > 0
            && now.since(rounds.begun) < gate.round_max
    }

    /// Whether entries flow and the follower was heard within this time.
    pub(crate) fn is_heard(&self, now: Instant, within: Duration) -> bool {
        matches!(self.flow, Flow::Replicate { .. }) && now.since(self.last_contact) <= within
    }

    /// The cluster has returned from the joint configuration in which this follower was to vote:
    /// the next time it must keep up for twice as long.
    pub(crate) fn promotion_failed(&mut self, now: Instant, at_least: Duration) {
        let rounds = &mut self.keeping_up;
        let doubled = rounds.must_pass_for.max(at_least).saturating_mul(2);
        rounds.must_pass_for = doubled.min(MUST_PASS_FOR_MAX);
        (rounds.passed, rounds.begun) = (0, now);
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

    /// The driver could not send an append after `prev`: there is no connection, or its queue is
    /// full. Earlier appends are in flight, so only the entries after `prev` are planned again, and
    /// not before the follower is heard: a full queue has to drain first.
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

    /// The follower has replied to `round`. The vote stickiness of its latest round applies.
    pub(crate) fn answered(&mut self, round: u64, report: FollowerReport) {
        if round >= self.round_answered {
            self.round_answered = round;
            self.report = report;
            if round > self.unknown_to {
                self.command_version_max = Some(report.command_version_max);
            } else {
                self.report.halted_at = None;
            }
        }
    }

    /// The connection was lost after `last_round` was sent: replies to later rounds may come from
    /// another program.
    pub(crate) fn program_unknown(&mut self, last_round: u64) {
        self.command_version_max = None;
        self.report.halted_at = None;
        self.unknown_to = last_round;
    }

    /// The follower needs a snapshot.
    pub(crate) fn enter_snapshot_state(&mut self) {
        self.flow = Flow::Snapshot { failed: false };
        self.stalled = None;
    }

    /// Sending the snapshot has failed.
    pub(crate) fn snapshot_failed(&mut self) {
        if let Flow::Snapshot { failed } = &mut self.flow {
            *failed = true;
        }
    }

    /// Whether a snapshot must be requested again; it counts as requested afterwards.
    pub(crate) fn retries_snapshot(&mut self) -> bool {
        match &mut self.flow {
            Flow::Snapshot { failed } => core::mem::take(failed),
            _ => false,
        }
    }

    /// The follower has persisted everything up to `index`.
    pub(crate) fn persisted_to(&mut self, index: LogIndex) {
        self.matched = self.matched.max(index);
        self.next = self.next.max(index.next());
        match &mut self.flow {
            // While a snapshot is being sent: either the snapshot has replaced the follower's log,
            // or the log reached further than the leader knew.
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

    /// The follower lacks `refused`; `resume` is the furthest entry that may match. A stale refusal
    /// changes nothing: one of an earlier probe, or of an entry that the follower has persisted.
    /// (If the follower has lost that entry since, every further probe would be refused in the same
    /// way.)
    pub(crate) fn refused(&mut self, refused: LogIndex, resume: LogIndex) {
        let of_earlier_probe =
            matches!(self.flow, Flow::Probe { .. }) && refused != self.next.previous();
        let of_earlier_flow = of_earlier_probe || matches!(self.flow, Flow::Snapshot { .. });
        if refused > self.matched && !of_earlier_flow {
            self.probe_from(resume.max(self.matched).next());
        }
    }

    /// Messages in flight may be lost: find out where the follower's log ends.
    ///
    /// A probe is sent again from the same index: that is a better guess than the last ack, which a
    /// new leader does not have and for which it would have to send the whole log.
    pub(crate) fn lost(&mut self) {
        match self.flow {
            Flow::Probe { .. } => self.probe_from(self.next),
            Flow::Replicate { .. } => self.probe_from(self.matched.next()),
            // It is sent on a connection of its own.
            Flow::Snapshot { .. } => {}
        }
    }

    fn probe_from(&mut self, next: LogIndex) {
        self.next = next;
        self.flow = Flow::Probe { sent: None, again: false };
        self.stalled = None;
    }

    /// The follower has replied to a heartbeat and holds (persisted or not) everything up to
    /// `received`. Returns whether an empty append after everything sent is due.
    ///
    /// The transport reports what it loses, so this is the last resort. If a follower replies to
    /// heartbeats but has received nothing new for `last_resort` although something was sent, it
    /// receives an *empty* append after the last entry sent. It refuses that append if something
    /// before it was lost. If the link is only slow, the append is late too and nothing is sent
    /// twice: the account of what is in flight stays unchanged.
    ///
    /// A probe without a reply for `probe_again` is sent again; see [`Flow::Probe`].
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
