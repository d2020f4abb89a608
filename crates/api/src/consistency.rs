//! The consistency of a read.

use std::str::FromStr;

use crate::message;

/// The consistency of a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ReadConsistency {
    /// Sees every write that was acknowledged before the read began (Raft thesis, section 6.4). It
    /// costs one round of heartbeats, shared by all reads that arrive together.
    #[default]
    Linearizable,
    /// Linearizable as long as the clock rates of all nodes differ by no more than
    /// `clock_drift_percent_max` (Raft thesis, section 6.4.1): the leader serves the read without a
    /// round. Without a valid lease, and on a follower, it is confirmed like a linearizable read.
    Lease,
    /// Sees the state that the serving node has applied. It may be stale, but never sees a part of
    /// a command. Costs nothing.
    Eventual,
}

/// A read consistency that this version does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnknownConsistency {
    /// The number in a message.
    #[error("unknown read consistency {0}; expected 0 to 3")]
    Number(i32),
    /// The name in a text.
    #[error("unknown read consistency {0:?}; expected linearizable, lease or eventual")]
    Name(String),
}

impl ReadConsistency {
    /// Every consistency, the strongest first.
    pub const ALL: [Self; 3] = [Self::Linearizable, Self::Lease, Self::Eventual];

    /// Returns the consistency as one lower-case word.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Linearizable => "linearizable",
            Self::Lease => "lease",
            Self::Eventual => "eventual",
        }
    }
}

impl FromStr for ReadConsistency {
    type Err = UnknownConsistency;

    fn from_str(name: &str) -> Result<Self, UnknownConsistency> {
        let named = Self::ALL.into_iter().find(|one| one.as_str() == name);
        named.ok_or_else(|| UnknownConsistency::Name(name.to_owned()))
    }
}

/// The number of a consistency in a message; prost's generated fields have this type.
impl From<ReadConsistency> for i32 {
    fn from(consistency: ReadConsistency) -> Self {
        let of_message = match consistency {
            ReadConsistency::Linearizable => message::Consistency::Linearizable,
            ReadConsistency::Lease => message::Consistency::Lease,
            ReadConsistency::Eventual => message::Consistency::Eventual,
        };
        of_message.into()
    }
}

/// A request without a consistency is linearizable.
impl TryFrom<i32> for ReadConsistency {
    type Error = UnknownConsistency;

    fn try_from(number: i32) -> Result<Self, UnknownConsistency> {
        match message::Consistency::try_from(number) {
            Ok(message::Consistency::Unspecified | message::Consistency::Linearizable) => {
                Ok(Self::Linearizable)
            }
            Ok(message::Consistency::Lease) => Ok(Self::Lease),
            Ok(message::Consistency::Eventual) => Ok(Self::Eventual),
            Err(_) => Err(UnknownConsistency::Number(number)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_consistency_survives_the_way_through_a_message_and_a_text() {
        for consistency in ReadConsistency::ALL {
            assert_eq!(i32::from(consistency).try_into(), Ok(consistency));
            assert_eq!(consistency.as_str().parse(), Ok(consistency));
        }
    }

    #[test]
    fn a_request_without_a_consistency_is_linearizable() {
        assert_eq!(ReadConsistency::try_from(0), Ok(ReadConsistency::default()));
        assert_eq!(ReadConsistency::default(), ReadConsistency::Linearizable);
    }

    #[test]
    fn an_unknown_consistency_is_refused_with_those_that_are_known() {
        let refused = ReadConsistency::try_from(7).map_err(|error| error.to_string());
        assert_eq!(refused, Err("unknown read consistency 7; expected 0 to 3".to_owned()));
        let refused: Result<ReadConsistency, _> = "strong".parse();
        assert_eq!(refused, Err(UnknownConsistency::Name("strong".to_owned())));
    }
}
