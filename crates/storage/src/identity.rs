//! Who a data directory belongs to.

use std::fmt;

use d_engine_core::{GroupId, NodeId};
use serde::{Deserialize, Serialize};

use crate::Membership;

macro_rules! sixteen_bytes {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// directory was wiped comes back with another one and is refused by its peers.
    Incarnation
}

/// What a data directory says about itself; written once, when it is created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The group whose log lies here.
    pub group: GroupId,
    /// This directory.
    pub incarnation: Incarnation,
    /// The configuration at (term 0, index 0); incarnations unknown.
    pub initial: Membership,
}
