//! What clients and nodes exchange: the gRPC service and its messages ([`message`]), the
//! consistency of a read ([`ReadConsistency`]), the status of a node ([`NodeStatus`]), the members
//! of a cluster ([`Members`]), and the errors that a gRPC status carries. The crate has no part of
//! the engine, so that a client pulls in none.

mod backup;
mod consistency;
mod error;
mod members;
mod status;

/// The service that nodes offer to clients, and its messages (`proto/client.proto`).
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod message {
    include!(concat!(env!("OUT_DIR"), "/d_engine.v1.rs"));
}

pub use backup::{BackupOffer, NotAnOffer};
pub use consistency::{ReadConsistency, UnknownConsistency};
pub use members::{
    Admission, ConfigId, Invitation, Member, MemberChange, MemberRole, Members, NotAConfigId,
    NotAnAdmission,
};
pub use status::{
    NodeRole, NodeStatus, ReceivingSnapshot, SendingSnapshot, SnapshotStatus, TakenSnapshot,
};
