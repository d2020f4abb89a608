//! A directory that was made by force from another one, and the other one: after the loss of a
//! majority, one node's log continues as a new cluster, and the old directory must never run again.

use std::fmt;

use d_engine_core::{ClusterId, Incarnation};

use crate::log::frame::Decoder;
use crate::time::rfc3339;

/// Where a directory comes from that was made by force from the directory of another cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Origin {
    /// When it was made, in UNIX milliseconds by the clock of the machine.
    pub at_ms: u64,
    /// The clusters that it continues, each with its directory, oldest first. None of them is to
    /// run again.
    pub continues: Vec<(ClusterId, Incarnation)>,
}

/// What the name of a directory ends with that `restore` builds beside its place.
pub const RESTORING: &str = ".restoring";
/// The same for `recover`.
pub const RECOVERING: &str = ".recovering";
/// The same for `repair`.
pub const REPAIRING: &str = ".repairing";
/// While such a directory is beside its place, no node creates one there: the command was
/// interrupted, and is to be run again.
pub(crate) const UNFINISHED: [(&str, &str); 3] =
    [(RESTORING, "restore"), (RECOVERING, "recover"), (REPAIRING, "repair")];

/// Why a directory was replaced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetiredBy {
    /// Its cluster has lost its majority, and its log continues as a new cluster.
    Recover,
    /// Its log was damaged, and the other directory has the mended one.
    Repair,
}

/// By what a directory was replaced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Retired {
    /// When, in UNIX milliseconds by the clock of the machine.
    pub at_ms: u64,
    /// Why.
    pub by: RetiredBy,
    /// The cluster of the directory that continues this one.
    pub cluster: ClusterId,
    /// The directory that continues this one.
    pub incarnation: Incarnation,
    /// The path at which that directory was put.
    pub successor: String,
}

impl fmt::Display for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (time, successor) = (rfc3339(self.at_ms), &self.successor);
        match self.by {
            RetiredBy::Recover => write!(
                f,
                "was retired by `recover` on {time}: its log continues as cluster {} in \
                 {successor}; start that directory, or empty this one and let it join that cluster \
                 (if it is not there, run `d-engine recover --force-new-cluster --data-dir \
                 {successor}` again)",
                self.cluster,
            ),
            RetiredBy::Repair => write!(
                f,
                "was retired by `repair` on {time}: the mended directory is {successor}; start \
                 that one (if it is not there, run `d-engine repair --data-dir {successor}` again)"
            ),
        }
    }
}

impl Origin {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.at_ms.to_le_bytes().to_vec();
        for (cluster, incarnation) in &self.continues {
            bytes.extend_from_slice(&cluster.0);
            bytes.extend_from_slice(&incarnation.0);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Decoder(bytes);
        let mut origin = Self { at_ms: rest.u64()?, continues: Vec::new() };
        while !rest.0.is_empty() {
            origin.continues.push((ClusterId(rest.array()?), Incarnation(rest.array()?)));
        }
        Some(origin)
    }
}

impl Retired {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.at_ms.to_le_bytes().to_vec();
        bytes.push(match self.by {
            RetiredBy::Recover => 1,
            RetiredBy::Repair => 2,
        });
        bytes.extend_from_slice(&self.cluster.0);
        bytes.extend_from_slice(&self.incarnation.0);
        bytes.extend_from_slice(self.successor.as_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = Decoder(bytes);
        Some(Self {
            at_ms: rest.u64()?,
            by: match rest.array::<1>()?[0] {
                1 => RetiredBy::Recover,
                2 => RetiredBy::Repair,
                _ => return None,
            },
            cluster: ClusterId(rest.array()?),
            incarnation: Incarnation(rest.array()?),
            successor: String::from_utf8(rest.0.to_vec()).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_are_as_documented_and_one_that_is_cut_off_is_none() {
        let (cluster, incarnation) = (ClusterId([1; 16]), Incarnation([2; 16]));
        let origin = Origin { at_ms: 7, continues: vec![(cluster, incarnation); 2] };
        let encoded = origin.encode();
        let documented = [&7_u64.to_le_bytes()[..], &[1; 16], &[2; 16], &[1; 16], &[2; 16]];
        assert_eq!(encoded, documented.concat());
        assert_eq!(Origin::decode(&encoded), Some(origin));
        for len in (0..encoded.len()).filter(|len| ![8, 40].contains(len)) {
            assert_eq!(Origin::decode(&encoded[..len]), None, "{len}");
        }
        for (by, code) in [(RetiredBy::Recover, 1_u8), (RetiredBy::Repair, 2)] {
            let successor = "/data".to_owned();
            let retired = Retired { at_ms: 7, by, cluster, incarnation, successor };
            let encoded = retired.encode();
            let documented = [&7_u64.to_le_bytes()[..], &[code], &[1; 16], &[2; 16], b"/data"];
            assert_eq!(encoded, documented.concat());
            for len in 0..41 {
                assert_eq!(Retired::decode(&encoded[..len]), None, "{len}");
            }
            assert_eq!(Retired::decode(&encoded), Some(retired));
            let unknown = [&encoded[..8], &[3], &encoded[9..]].concat();
            assert_eq!(Retired::decode(&unknown), None);
        }
    }
}
