//! The owner of a data directory.

use d_engine_core::{ClusterId, GroupId, Incarnation, NodeId};

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
    /// The clusters that ended by force and whose history this directory continues, each with its
    /// directory, oldest first. Not part of the identity record: [`crate::Origin`] has it.
    pub continues: Vec<(ClusterId, Incarnation)>,
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
