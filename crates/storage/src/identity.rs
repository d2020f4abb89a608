//! The owner of a data directory.

use d_engine_core::{ClusterId, GroupId, Incarnation, NodeId};

use crate::membership::Membership;

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
    /// The configuration at (term 0, index 0); incarnations unknown.
    pub initial: Membership,
}
