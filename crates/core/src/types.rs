//! Identifiers and the plain values that every layer uses.

use core::cmp::Ordering;
use core::fmt;
use core::time::Duration;

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
    /// The id of a persist request. Ids rise by one; completion is cumulative.
    PersistId
}

/// What makes a newtype read like the number it is, for code that has plain numbers: state
/// machines, files, tests.
macro_rules! reads_as_number {
    ($name:ident) => {
        impl From<u64> for $name {
            fn from(value: u64) -> Self {
                Self(value)
            }
        }

        impl From<$name> for u64 {
            fn from(value: $name) -> Self {
                value.0
            }
        }

        impl PartialEq<u64> for $name {
            fn eq(&self, other: &u64) -> bool {
                self.0 == *other
            }
        }

        impl PartialOrd<u64> for $name {
            fn partial_cmp(&self, other: &u64) -> Option<Ordering> {
                self.0.partial_cmp(other)
            }
        }
    };
}

reads_as_number!(Term);
reads_as_number!(LogIndex);

impl Term {
    /// The highest term that a message may carry. Terms above it are refused, so that counting up
    /// from any accepted term cannot overflow within the life of a cluster.
    pub const MAX_ACCEPTED: Self = Self(1 << 62);
}

impl LogIndex {
    /// The highest index that a message may name; see [`Term::MAX_ACCEPTED`].
    pub const MAX_ACCEPTED: Self = Self(1 << 62);

    /// The index `count` entries further on. Saturates; indexes are bounded by
    /// [`LogIndex::MAX_ACCEPTED`] wherever they enter, so a real log never saturates.
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

    /// The number of entries after `earlier`, up to and including this index.
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

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl $name {
            /// Reads 32 hexadecimal digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return None;
                }
                u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", u128::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{self}")
            }
        }
    };
}

sixteen_bytes! {
    /// The identity of a cluster: 16 random bytes, the same on every node.
    ClusterId
}

sixteen_bytes! {
    /// The identity of one data directory: 16 random bytes drawn when it is created. A node whose
    /// directory was wiped has another one and is refused by its peers.
    Incarnation
}

/// The session of a client and the number of its command within the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionSerial {
    /// The session: the log index of the entry that opened it.
    pub session: u64,
    /// The number of the command; a retry carries the same number.
    pub serial: u64,
}

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
    /// The log id before the first entry.
    pub const ZERO: Self = Self { term: Term::ZERO, index: LogIndex::ZERO };

    /// Joins a term and an index.
    #[must_use]
    pub const fn new(term: Term, index: LogIndex) -> Self {
        Self { term, index }
    }

    /// Joins a term and an index that are plain numbers.
    #[must_use]
    pub const fn of(term: u64, index: u64) -> Self {
        Self::new(Term::new(term), LogIndex::new(index))
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

/// What a node must persist beside its log (Raft paper, figure 2).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HardState {
    /// The latest term this node has seen.
    pub term: Term,
    /// The candidate that this node voted for in `term`.
    pub vote: Option<NodeId>,
    /// A commit index known at the time of writing. Only a hint: it may be too low and is not
    /// needed for safety. At a restart, entries up to it are applied at once.
    pub commit: LogIndex,
    /// The longest vote stickiness that this node has announced to a leader whose lease may rest on
    /// it (Raft thesis, section 6.4.1). After a restart this node grants no vote for that long.
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
    /// The decision that no state machine applies a named entry, because it halts them all.
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
