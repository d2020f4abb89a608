//! The readable account of a run, and the number that two equal runs share.

use std::fmt;

use d_engine_core::{AppendOutcome, RoleKind, Term};
use d_engine_replica::PeerMessage;

use crate::clients::Answer;
use crate::world::Happening;

/// Collects lines if asked to, and always the hash of everything that happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trace {
    lines: Option<Vec<String>>,
    hash: u64,
}

impl Trace {
    /// A trace that keeps its lines.
    #[must_use]
    pub(crate) fn readable() -> Self {
        Self { lines: Some(Vec::new()), hash: 0 }
    }

    /// The lines kept.
    #[must_use]
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }

    /// Equal for equal runs.
    #[must_use]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn event(&mut self, now: u64, what: &Happening) {
        let kind = match what {
            Happening::Arrive(packet) => 100 + packet.to,
            Happening::PeerUp { node, .. } => 200 + node,
            Happening::Deadline { node, .. } => 300 + node,
            Happening::LogBegin { node, .. } => 400 + node,
            Happening::LogDone { node, .. } => 500 + node,
            Happening::LogIdle { node, .. } => 600 + node,
            Happening::ApplyBegin { node, .. } => 700 + node,
            Happening::ApplyDone { node, .. } => 800 + node,
            Happening::SnapshotBuild { node, .. } => 1_100 + node,
            Happening::SnapshotBuilt { node, .. } => 1_200 + node,
            Happening::TransferBegin { node, .. } => 1_300 + node,
            Happening::TransferFrame { node, .. } => 1_400 + node,
            Happening::TransferTimer { node, .. } => 1_500 + node,
            Happening::TransferLost { node, .. } => 1_600 + node,
            Happening::ClientTurn(client) | Happening::ClientGivesUp(client) => 900 + *client as u64,
            Happening::ClientCall { operation, .. } => 10_000 + *operation as u64,
            Happening::Start(node) => 1_000 + node,
            Happening::CrashSome => 1,
            Happening::PauseSome => 2,
            Happening::PartitionBegin => 3,
            Happening::PartitionEnd => 4,
            Happening::ClockJump => 5,
            Happening::TransferSome => 6,
            Happening::Reconnect => 7,
            Happening::AskForSnapshot => 8,
            Happening::Rush { .. } => 20,
            Happening::LinkDial { node, .. } => 1_700 + node,
            Happening::LinkWrite { node, .. } => 1_800 + node,
            Happening::LinkArrive { node, .. } => 1_900 + node,
            Happening::LinkPing { node, .. } => 2_000 + node,
            Happening::LinkBroken { connection } => 20_000 + connection,
            Happening::SlowLink => 9,
            Happening::SlowLinkEnds { .. } => 10,
            Happening::Turn { node, .. } => 2_100 + node,
            Happening::Burst => 11,
            Happening::HangSome => 12,
            Happening::StopSome => 13,
            Happening::StopsYet { node, .. } => 2_200 + node,
            Happening::LogRetry { node, .. } => 2_300 + node,
            Happening::FillSome => 14,
            Happening::ChangeProgram => 15,
            Happening::RoomAgain { node } => 2_400 + node,
            Happening::ApplyStopped { node, .. } => 2_500 + node,
            Happening::BadCommand => 15,
            Happening::OperatorLooks => 16,
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
        self.note(now, format_args!("operation {operation} is answered by node {node}: {answer:?}"));
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
            PeerMessage::AppendReply { term, outcome: AppendOutcome::Stored(index) } => {
                self.note(now, format_args!("{from} -> {to} Stored t{term} up to {index}"));
            }
            other => self.note(now, format_args!("{from} -> {to} {other:?}")),
        }
    }
}

/// Nanoseconds, shown as seconds.
struct Seconds(u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}.{:06}", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}
