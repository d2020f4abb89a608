//! Identifiers and the few plain values that every layer speaks in.

use core::fmt;

use crate::Duration;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);

        impl $name {
            /// The value before the first one: no term, no entry.
            pub const ZERO: Self = Self(0);

            /// Wraps a plain number.
            #[must_use]
            pub const fn new(value: u64) -> Self {
                Self(value)
            }

            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }

            /// The next value, or `None` at the end of the number range.
            #[must_use]
            pub const fn checked_next(self) -> Option<Self> {
                match self.0.checked_add(1) {
                    Some(value) => Some(Self(value)),
                    None => None,
                }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

number! {
    /// A Raft term (Raft paper, section 5.1): a logical clock with at most one leader per value.
    Term
}

number! {
    /// The position of an entry in the log. The first entry has index 1; 0 stands before it.
    LogIndex
}

number! {
    /// The number of a persist order, rising by one per order; completion is cumulative.
    PersistId
}

impl Term {
    /// The highest term that a message may carry. Terms above it are refused, so that counting up
    /// from any accepted term cannot overflow within the life of a cluster.
    pub const MAX_ACCEPTED: Self = Self(1 << 62);
}

impl LogIndex {
    /// The highest index that a message may name; see [`Term::MAX_ACCEPTED`].
    pub const MAX_ACCEPTED: Self = Self(1 << 62);

    /// The index `count` entries further on. Saturates; indexes are bounded by
    /// [`LogIndex::MAX_ACCEPTED`] at every entrance, so saturation is never reached in a real log.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The index after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// The index before this one; the index before zero is zero.
    #[must_use]
    pub const fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// How many entries lie after `earlier` up to and including this index.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The identity of a node in a cluster. Zero is reserved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(core::num::NonZeroU64);

impl NodeId {
    /// Wraps a plain number; `None` for the reserved zero.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

/// The identity of a Raft group. Zero is reserved; a node with one group uses [`GroupId::FIRST`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(core::num::NonZeroU64);

impl GroupId {
    /// The group of a node that has only one.
    pub const FIRST: Self = Self(core::num::NonZeroU64::MIN);

    /// Wraps a plain number; `None` for the reserved zero.
    #[must_use]
    pub const fn new(value: u64) -> Option<Self> {
        match core::num::NonZeroU64::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The plain number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0.get()
    }
}

macro_rules! display_as_number {
    ($name:ident) => {
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}
display_as_number!(NodeId);
display_as_number!(GroupId);

/// The identity of a log entry: entries with the same term and index are the same entry
/// (Raft paper, section 5.3, Log Matching). Ordered by term first, as votes compare logs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The position in the log.
    pub index: LogIndex,
}

impl LogId {
    /// Stands before the first entry.
    pub const ZERO: Self = Self { term: Term::ZERO, index: LogIndex::ZERO };

    /// Joins a term and an index.
    #[must_use]
    pub const fn new(term: Term, index: LogIndex) -> Self {
        Self { term, index }
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@t{}", self.index, self.term)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "index {} of term {}", self.index, self.term)
    }
}

/// What a node must remember across restarts beside its log (Raft paper, figure 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// The candidate that this node voted for in `term`.
    pub vote: Option<NodeId>,
    /// A commit index known at the time of writing. Only a hint: it may lag behind and is never
    /// needed for safety; at restart it tells how far the log may be applied at once.
    pub commit: LogIndex,
    /// The longest vote stickiness that this node has announced to a leader whose lease may rest on it
    /// (Raft thesis, section 6.4.1). A restart grants no vote for that long.
    pub stickiness: Duration,
}

/// What a log entry is for. The numbers are those of the file format and of the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum EntryKind {
    /// Opens a term, so that the leader learns what is committed (Raft paper, section 8).
    Noop = 1,
    /// A command for the user's state machine.
    Command = 2,
    /// A new configuration of the cluster.
    Membership = 3,
    /// Opens or closes a client session.
    Session = 4,
    /// Carries only log time to an otherwise idle state machine.
    Tick = 5,
    /// Names an entry that no state machine applies, because it stops them all.
    Skip = 6,
}

impl EntryKind {
    /// The kind with this number, or `None` for an unknown one.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Noop),
            2 => Some(Self::Command),
            3 => Some(Self::Membership),
            4 => Some(Self::Session),
            5 => Some(Self::Tick),
            6 => Some(Self::Skip),
            _ => None,
        }
    }

    /// The number of this kind in files and on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}
