//! What the operators of a run, and the data directories that join, are about to do. They do it in
//! `members.rs` and `joining.rs`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use d_engine_core::{Incarnation, QuorumRisk};
use d_engine_replica::ChangeMembersError;
use d_engine_storage::{ConfigId, JoinAs, MemberChange};

/// A request for a change of the members.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) change: MemberChange,
    pub(crate) expected: Option<ConfigId>,
    pub(crate) risk: QuorumRisk,
    pub(crate) asks: Asks,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asks {
    Operator,
    /// The operator, at the node that another one has named.
    Forwarded,
    /// The joining directory with this number.
    Joiner(u64),
}

/// What happens as soon as a leader enters a joint configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InJoint {
    /// A node that is to vote afterwards crashes.
    JoinerDies,
    /// The leader is asked to transfer its leadership.
    Transfer,
}

/// An answer to a request.
#[derive(Debug)]
pub(crate) struct Answered {
    /// The node that gave it.
    pub(crate) node: u64,
    pub(crate) request: Request,
    pub(crate) answer: Result<ConfigId, ChangeMembersError>,
    /// The membership that was in force there before the request; set by the turn that handles it.
    pub(crate) before: Option<ConfigId>,
}

/// Answers to requests; the replicas' responders fill it.
type Answers = Arc<Mutex<Vec<Answered>>>;

/// What the operators of a run are doing.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    pub(crate) answers: Answers,
    pub(crate) joiners: BTreeMap<u64, Joiner>,
    /// How many directories have begun to join, and how many addresses were drawn.
    pub(crate) directories: u64,
    pub(crate) moves: u64,
    pub(crate) in_joint: Option<InJoint>,
    /// Whether the next node that is removed is cut off at that moment.
    pub(crate) cuts_off_removed: bool,
    /// A member whose disk is lost.
    pub(crate) lost: Option<u64>,
}

/// A data directory that wants to join.
#[derive(Clone, Debug)]
pub(crate) struct Joiner {
    pub(crate) directory: Incarnation,
    /// The id that its configuration names.
    pub(crate) wish: Option<u64>,
    pub(crate) joins_as: JoinAs,
    /// Whom to ask next.
    pub(crate) hint: Option<u64>,
    pub(crate) refusals: u32,
    pub(crate) refusals_without_invitation: u32,
}
