//! The owner of a data directory.

use d_engine_core::{ClusterId, GroupId, Incarnation, NodeId};

use crate::DirectoryLocks;
use crate::membership::{ConfigId, Membership};

/// The identity record of a data directory; written once, when it is created.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// The Raft group whose log is in this directory.
    pub group: GroupId,
    /// This directory.
    pub incarnation: Incarnation,
    /// The configuration at (term 0, index 0); incarnations unknown. Without members at a node that
    /// has joined, and then named by the configuration that added it.
    pub initial: Membership,
}

impl Identity {
    /// The configuration that added this node; the one at the cluster's birth if it was listed
    /// there. The node was removed only if a later one lacks it: until a node that joined has
    /// received the whole log, it sees earlier ones, which lack it too.
    #[must_use]
    pub fn born(&self) -> ConfigId {
        self.initial.id()
    }
}

/// Whose an existing or empty data directory is; see
/// [`StorageEngine::reserve`](crate::StorageEngine::reserve).
#[derive(Debug)]
pub enum Reservation {
    /// A node's, which has an identity.
    Owned(Box<Identity>),
    /// A node's that is about to join a cluster, which will know the directory by this incarnation.
    Reserved {
        /// The incarnation; the same one however often the directory is reserved.
        incarnation: Incarnation,
        /// The directory's locks. Drop them just before the directory is opened.
        locks: DirectoryLocks,
    },
}
