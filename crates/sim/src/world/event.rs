//! The events of a run, and their order in the queue.

use d_engine_core::PersistId;
use d_engine_replica::{ApplyStop, LogId, SendAttempt, SnapshotSendRequest};

use crate::world::connections::Way;
use crate::world::link_model::Lane;
use crate::world::network::Packet;
use crate::world::node::Applied;
use crate::world::operator::InJoint;

/// Faults of one kind, or the turns of one client: each schedules the next one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Chain {
    Crash,
    Pause,
    Partition,
    LeadershipTransfer,
    Reconnect,
    Burst,
    Hang,
    Shutdown,
    DiskFull,
    BadCommand,
    ProgramChange,
    SlowLink,
    ClockJump,
    SnapshotRequest,
    MembersChange,
    /// A turn of this client.
    Client(usize),
}

impl Chain {
    /// Whether these are the turns of a client.
    pub(crate) fn is_of_client(self) -> bool {
        matches!(self, Self::Client(_))
    }
}

/// What happens at a moment of a run.
#[derive(Debug)]
pub(crate) enum SimEvent {
    /// A fault or a client's turn; it schedules the next one of its chain.
    Chain(Chain),
    Arrive(Packet),
    PeerUp {
        node: u64,
        boot: u64,
        peer: u64,
    },
    LinkDial {
        node: u64,
        boot: u64,
        to: u64,
    },
    LinkWrite {
        connection: u64,
        node: u64,
    },
    LinkArrive {
        connection: u64,
        lane: Lane,
        node: u64,
    },
    LinkPing {
        connection: u64,
        node: u64,
    },
    LinkBroken {
        connection: u64,
    },
    SlowLinkEnds {
        one: u64,
        other: u64,
    },
    Turn {
        node: u64,
        boot: u64,
    },
    StopsYet {
        node: u64,
        boot: u64,
    },
    Deadline {
        node: u64,
        boot: u64,
    },
    LogBegin {
        node: u64,
        boot: u64,
    },
    LogDone {
        node: u64,
        boot: u64,
        stored: Option<PersistId>,
    },
    LogIdle {
        node: u64,
        boot: u64,
    },
    LogRetry {
        node: u64,
        boot: u64,
    },
    RoomAgain {
        node: u64,
    },
    ApplyBegin {
        node: u64,
        boot: u64,
    },
    ApplyDone {
        node: u64,
        boot: u64,
        applied: Applied,
    },
    ApplyStopped {
        node: u64,
        boot: u64,
        through: LogId,
        stop: ApplyStop,
    },
    OperatorLooks,
    JoinerAsks(u64),
    /// The operator announces the joining directory with this number.
    JoinerIsInvited(u64),
    LostNodeCare,
    InJoint {
        leader: u64,
        what: InJoint,
    },
    ClientCall {
        operation: usize,
        node: u64,
    },
    ClientGivesUp(usize),
    Rush {
        times_left: u64,
    },
    SnapshotBuild {
        node: u64,
        boot: u64,
    },
    SnapshotBuilt {
        node: u64,
        boot: u64,
    },
    SendBegins {
        node: u64,
        boot: u64,
        attempt: SendAttempt,
        order: SnapshotSendRequest,
    },
    SendFrame {
        connection: u64,
        way: Way,
        node: u64,
    },
    SendTimer {
        connection: u64,
        node: u64,
    },
    SendBreaks {
        connection: u64,
    },
    SendEnded {
        node: u64,
        boot: u64,
        attempt: SendAttempt,
    },
    Start(u64),
    PartitionEnd,
}

impl SimEvent {
    /// The node and boot that an event belongs to, if the event is void once that process has
    /// ended.
    pub(crate) fn process(&self) -> Option<(u64, u64)> {
        match self {
            Self::PeerUp { node, boot, .. }
            | Self::LinkDial { node, boot, .. }
            | Self::Turn { node, boot }
            | Self::StopsYet { node, boot }
            | Self::Deadline { node, boot }
            | Self::LogBegin { node, boot }
            | Self::LogDone { node, boot, .. }
            | Self::LogIdle { node, boot }
            | Self::LogRetry { node, boot }
            | Self::ApplyBegin { node, boot }
            | Self::SnapshotBuild { node, boot }
            | Self::SnapshotBuilt { node, boot }
            | Self::SendEnded { node, boot, .. }
            | Self::SendBegins { node, boot, .. }
            | Self::ApplyStopped { node, boot, .. }
            | Self::ApplyDone { node, boot, .. } => Some((*node, *boot)),
            _ => None,
        }
    }

    /// Returns whether the event needs the disk, and whether it needs the state machine.
    pub(crate) fn hangs(&self) -> (bool, bool) {
        match self {
            Self::LogBegin { .. }
            | Self::LogDone { .. }
            | Self::LogIdle { .. }
            | Self::LogRetry { .. }
            | Self::SnapshotBuild { .. }
            | Self::SnapshotBuilt { .. } => (true, false),
            Self::ApplyBegin { .. } | Self::ApplyDone { .. } | Self::ApplyStopped { .. } => {
                (false, true)
            }
            _ => (false, false),
        }
    }

    /// The node on which the event happens; a paused node delays it.
    pub(crate) fn place(&self) -> Option<u64> {
        match self {
            Self::Arrive(packet) => Some(packet.to),
            Self::ClientCall { node, .. }
            | Self::LinkWrite { node, .. }
            | Self::LinkArrive { node, .. }
            | Self::LinkPing { node, .. }
            | Self::SendFrame { node, .. }
            | Self::SendTimer { node, .. } => Some(*node),
            other => other.process().map(|(node, _)| node),
        }
    }
}

/// An event and its time. Of two events at the same time, the one scheduled first comes first.
#[derive(Debug)]
pub(crate) struct Scheduled {
    pub(crate) at: u64,
    pub(crate) order: u64,
    pub(crate) what: SimEvent,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
