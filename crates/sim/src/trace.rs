//! The readable trace of a run, and its hash.

use std::fmt;

use d_engine_core::{AppendOutcome, RoleKind, Term};
use d_engine_replica::PeerMessage;

use crate::clients::Answer;
use crate::world::event::{Chain, SimEvent};

/// Hashes every event, and also keeps readable lines if it was created by [`Trace::readable`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    lines: Option<Vec<String>>,
    hash: u64,
}

impl Trace {
    /// Creates a trace that keeps its lines.
    #[must_use]
    pub(crate) fn readable() -> Self {
        Self { lines: Some(Vec::new()), hash: 0 }
    }

    /// The lines so far; empty if none are kept.
    #[must_use]
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    /// Hash of all events so far. Two runs of one seed have the same hash.
    #[must_use]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn event(&mut self, now: u64, what: &SimEvent) {
        let kind = match what {
            SimEvent::Arrive(packet) => 100 + packet.to,
            SimEvent::PeerUp { node, .. } => 200 + node,
            SimEvent::Deadline { node, .. } => 300 + node,
            SimEvent::LogBegin { node, .. } => 400 + node,
            SimEvent::LogDone { node, .. } => 500 + node,
            SimEvent::LogIdle { node, .. } => 600 + node,
            SimEvent::ApplyBegin { node, .. } => 700 + node,
            SimEvent::ApplyDone { node, .. } => 800 + node,
            SimEvent::SnapshotBuild { node, .. } => 1_100 + node,
            SimEvent::SnapshotBuilt { node, .. } => 1_200 + node,
            SimEvent::SendBegins { node, .. } => 1_300 + node,
            SimEvent::SendFrame { node, .. } => 1_400 + node,
            SimEvent::SendTimer { node, .. } => 1_500 + node,
            SimEvent::SendEnded { node, .. } => 1_600 + node,
            SimEvent::SendBreaks { connection } => 20_000_000 + *connection,
            SimEvent::ClientGivesUp(client) => 900 + *client as u64,
            SimEvent::Chain(chain) => kind_of(*chain),
            SimEvent::ClientCall { operation, .. } => 10_000 + *operation as u64,
            SimEvent::Start(node) => 1_000 + node,
            SimEvent::PartitionEnd => 4,
            SimEvent::Rush { .. } => 20,
            SimEvent::LinkDial { node, .. } => 1_700 + node,
            SimEvent::LinkWrite { node, .. } => 1_800 + node,
            SimEvent::LinkArrive { node, .. } => 1_900 + node,
            SimEvent::LinkPing { node, .. } => 2_000 + node,
            SimEvent::LinkBroken { connection } => 20_000 + connection,
            SimEvent::SlowLinkEnds { .. } => 10,
            SimEvent::Turn { node, .. } => 2_100 + node,
            SimEvent::StopsYet { node, .. } => 2_200 + node,
            SimEvent::LogRetry { node, .. } => 2_300 + node,
            SimEvent::RoomAgain { node } => 2_400 + node,
            SimEvent::ApplyStopped { node, .. } => 2_500 + node,
            SimEvent::JoinerAsks(_) => 38,
            SimEvent::JoinerIsInvited(_) => 41,
            SimEvent::LostNodeCare => 39,
            SimEvent::InJoint { .. } => 40,
            SimEvent::OperatorLooks => 16,
        };
        for word in [now, kind] {
            self.hash = (self.hash ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
        }
    }

    pub(crate) fn note(&mut self, now: u64, what: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            lines.push(format!("{:>13.6} {what}", Seconds(now)));
        }
    }

    pub(crate) fn role(&mut self, now: u64, node: u64, role: RoleKind, term: Term) {
        self.note(now, format_args!("node {node} is {role:?} in term {term}"));
    }

    pub(crate) fn answer(&mut self, now: u64, operation: usize, node: u64, answer: &Answer) {
        self.note(now, format_args!("node {node} answers operation {operation}: {answer:?}"));
    }

    pub(crate) fn message(&mut self, now: u64, from: u64, to: u64, message: &PeerMessage) {
        if self.lines.is_none() {
            return;
        }
        match message {
            PeerMessage::Append { term, prev, commit, entries } => self.note(
                now,
                format_args!(
                    "{from} -> {to} Append t{term} prev {prev:?} +{} commit {commit}",
                    entries.len()
                ),
            ),
            PeerMessage::AppendReply { term, outcome: AppendOutcome::Persisted(index) } => {
                self.note(now, format_args!("{from} -> {to} Stored t{term} up to {index}"));
            }
            other => self.note(now, format_args!("{from} -> {to} {other:?}")),
        }
    }
}

fn kind_of(chain: Chain) -> u64 {
    match chain {
        Chain::Crash => 1,
        Chain::Pause => 2,
        Chain::Partition => 3,
        Chain::LeadershipTransfer => 6,
        Chain::Reconnect => 7,
        Chain::Burst => 11,
        Chain::Hang => 12,
        Chain::Shutdown => 13,
        Chain::DiskFull => 14,
        Chain::BadCommand => 15,
        Chain::ProgramChange => 15,
        Chain::SlowLink => 9,
        Chain::ClockJump => 5,
        Chain::SnapshotRequest => 8,
        Chain::MembersChange => 16,
        Chain::Client(client) => 900 + client as u64,
    }
}

/// Nanoseconds, displayed as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}.{:06}", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}
