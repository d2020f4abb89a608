//! A change of the members, as the steps that an operator takes for it.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::book::Book;
use super::call::Call;
use crate::config::{Join, Ports};

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Change {
    /// A node joins and votes.
    AddVoter,
    /// A node joins as a learner.
    AddLearner,
    /// A node is removed.
    Remove,
    /// The leader is removed.
    RemoveLeader,
    /// A voter and its directory are lost, and a new node votes in its place.
    ReplaceLost,
    /// A voter is lost, comes back under its old id with an empty directory, and is replaced.
    Return,
    /// A learner votes in place of a voter.
    HandOver,
    /// A learner is to vote.
    Promote,
    /// A voter is to be a learner.
    Demote,
    /// A node listens on other ports.
    Move,
}

/// The kinds to draw from; a kind that is listed twice is drawn twice as often.
pub(super) const DRAWN: &[Change] = &[
    Change::AddVoter,
    Change::AddVoter,
    Change::AddVoter,
    Change::AddLearner,
    Change::AddLearner,
    Change::Remove,
    Change::Remove,
    Change::RemoveLeader,
    Change::ReplaceLost,
    Change::ReplaceLost,
    Change::Return,
    Change::Return,
    Change::HandOver,
    Change::Promote,
    Change::Demote,
    Change::Move,
    Change::Move,
];

/// The kinds to draw from if so few nodes vote that none may be lost.
pub(super) const MORE_VOTERS: &[Change] =
    &[Change::AddVoter, Change::AddVoter, Change::Promote, Change::Remove];

impl Change {
    /// Returns the name in the summary.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AddVoter => "add voter",
            Self::AddLearner => "add learner",
            Self::Remove => "remove",
            Self::RemoveLeader => "remove leader",
            Self::ReplaceLost => "replace lost voter",
            Self::Return => "refuse and replace wiped voter",
            Self::HandOver => "replace by learner",
            Self::Promote => "promote",
            Self::Demote => "demote",
            Self::Move => "move",
        }
    }

    /// Returns whether the change destroys the data of a voter.
    pub(super) fn destroys(self) -> bool {
        matches!(self, Self::ReplaceLost | Self::Return)
    }
}

/// A step. Each names a machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Kill its node; it stays down until a later step starts it.
    Kill(u64),
    /// Stop its node in an orderly way; it stays down until a later step starts it.
    Stop(u64),
    /// Remove the data directory.
    Wipe(u64),
    /// Start its node as it is configured.
    Run(u64),
    /// Start a node that joins.
    Join(u64, Join),
    /// Start the node on an empty directory under its old configuration, which with `Some` names
    /// the old id; if it joins, through these seeds, since the members may have moved.
    Return(u64, Option<u64>, Vec<String>),
    /// Start the node on other ports, with these seeds.
    Move(u64, Ports, Vec<String>),
    /// Its node is removed from now on, so its process must end.
    Leave(u64),
    /// Type a `member` command until its goal is reached.
    Member(Vec<String>),
    /// Wait until the leader lists the node that joins here in this role.
    Joined(u64, bool),
    /// Type `member promote` for the node that has joined here: the configuration in which it votes
    /// is then committed.
    Votes(u64),
    /// Wait until the leader lists the addresses of its node.
    Moved(u64),
    /// Wait until the process has ended with exit code 6.
    Left(u64),
    /// Wait until the node is refused, or for a while if its process goes on.
    Refused(u64),
    /// Its node has joined, and is a member in this role from now on.
    Enter(u64, bool),
    /// Its node is no member any more.
    Drop(u64),
    /// Its node has this role now.
    Role(u64, bool),
    /// Remove the data directory; the machine is free.
    Vacate(u64),
}

/// A change in progress.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) change: Change,
    /// What is changed, in words.
    pub(super) words: String,
    pub(super) began: Duration,
    /// The steps that are left.
    pub(super) steps: VecDeque<Step>,
    /// When the present step began to be possible.
    pub(super) since: Option<Duration>,
    /// The members afterwards.
    pub(super) after: Book,
    /// Machines that count as down while the change goes on.
    pub(super) down: BTreeSet<u64>,
    /// The command that runs, and when to type it again.
    pub(super) call: Option<Call>,
    pub(super) again_at: Duration,
    /// Whom to kill in the middle.
    pub(super) victim: Option<Victim>,
    /// When to kill it.
    pub(super) kill_at: Option<Duration>,
}

/// Whom to kill in the middle of a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Victim {
    /// The node that leads at that time.
    Leader,
    /// The node on this machine.
    Machine(u64),
}
