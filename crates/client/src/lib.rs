//! The network client of d-engine. It finds the leader, retries until the deadline if the request
//! cannot have taken effect, and otherwise returns [`ClientError::OutcomeUnknown`].
//!
//! ```no_run
//! # async fn example() -> Result<(), d_engine_client::ClientError> {
//! use d_engine_client::{Client, ClientOptions, ReadConsistency};
//!
//! let client = Client::new(["127.0.0.1:7001", "127.0.0.1:7002"], ClientOptions::default())?;
//! let reply = client.propose("a command of your state machine").await?;
//! let value = client.get("key", ReadConsistency::Linearizable).await?;
//! # let _ = (reply, value);
//! # Ok(())
//! # }
//! ```
//!
//! [`KvClient`] has the operations of the key-value machine: `put`, `get`, `scan` and so on.
//!
//! # What is retried
//! | what happened | command ([`Client::propose`]) | read |
//! |---|---|---|
//! | the node does not lead, is busy, has stopped, or cannot be reached | retried on this or another node until the deadline | the same |
//! | the connection was lost with the call in flight | [`ClientError::OutcomeUnknown`] at once; never resent | retried on another node until the deadline |
//! | leadership was lost with the command in flight | [`ClientError::OutcomeUnknown`] at once | does not happen |
//! | the deadline passed with the call in flight | [`ClientError::OutcomeUnknown`] | [`ClientError::DeadlineElapsed`] |
//! | the request itself is invalid | the error at once | the error at once |
//!
//! A command that the caller declares idempotent ([`Client::propose_idempotent`]) is resent like a
//! read, until the deadline; no other command ever is. After a round of requests to all nodes the
//! client pauses; the pauses grow from 10 to 200 ms, each shortened by a random part.
//!
//! # Bounds
//! Each call has a deadline, and carries its remaining time to the node. [`ClientOptions`] bounds
//! the bytes of a command and of a reply, and the number of calls in flight.
//!
//! # Where to look
//! `client.rs` has the calls, `kv.rs` those of the key-value machine, `members.rs` those about the
//! members, `backup.rs` backups. `route.rs` takes one call
//! from node to node, `node.rs` holds the connection to one node, `nodes.rs` the known nodes, and
//! `answer.rs` the retry rules.

mod answer;
mod backup;
mod client;
mod error;
mod kv;
mod members;
mod node;
mod nodes;
mod once;
mod options;
mod route;

pub use backup::{BackupOf, BackupPiece, BackupTransfer};
pub use client::Client;
pub use d_engine_api::message::EntryId;
pub use d_engine_api::{
    Admission, BackupOffer, ConfigId, Invitation, Member, MemberChange, MemberRole, Members,
    NodeRole, NodeStatus, NotAConfigId, NotAnAdmission, ReadConsistency, ReceivingSnapshot,
    SendingSnapshot, SnapshotStatus, TakenSnapshot,
};
/// The types that [`KvClient`] takes and returns; the key-value machine itself uses the same ones.
pub use d_engine_kv_language::{
    Keys, KvCommand, KvOperation, KvQuery, KvQueryReply, KvReply, Page, PutOptions,
    QueryLimitError, Record, Scan, UndecodableError,
};
pub use error::{ChangeRefusal, ClientError};
pub use kv::{BatchOutcome, KvClient, KvError, Pages, PutOutcome, SwapOutcome};
pub use members::{ChangeOptions, MembersWatch};
pub use options::ClientOptions;
