//! The network client of d-engine: finds the leader, retries what is safe to retry, and says honestly
//! what it does not know.
//!
//! ```no_run
//! # async fn example() -> Result<(), d_engine_client::ClientError> {
//! use d_engine_client::{Client, ClientOptions, Consistency};
//!
//! let client = Client::new(["127.0.0.1:7001", "127.0.0.1:7002"], ClientOptions::default())?;
//! let reply = client.propose("a command of your state machine").await?;
//! let value = client.get("key", Consistency::Linearizable).await?;
//! # let _ = (reply, value);
//! # Ok(())
//! # }
//! ```
//!
//! [`KvClient`] speaks the key-value machine's language: `put`, `get`, `scan` and so on.
//!
//! # What is retried
//! | what happened | command ([`Client::propose`]) | read |
//! |---|---|---|
//! | the node does not lead, is busy, has stopped, or cannot be reached | asked again, there or elsewhere, until the deadline | the same |
//! | the connection was lost with the call in flight | [`ClientError::OutcomeUnknown`] at once, never sent again | asked again elsewhere until the deadline |
//! | leadership was lost with the command in flight | [`ClientError::OutcomeUnknown`] at once | does not happen |
//! | the deadline passed with the call in flight | [`ClientError::OutcomeUnknown`] | [`ClientError::DeadlineElapsed`] |
//! | the request itself is wrong | the error at once | the error at once |
//!
//! A command that the caller declares idempotent ([`Client::propose_idempotent`]) is sent again like a read,
//! until the deadline; nothing else ever is. Between rounds of questions lie pauses that grow from 10 to 200 ms,
//! each shortened by a random part.
//!
//! # Bounds
//! Each call has a deadline, and what is left of it goes to the node with the call. [`ClientOptions`] bounds the
//! bytes of a command and of an answer, and the calls in flight.
//!
//! # Where to look
//! `client.rs` has the calls, `kv.rs` those of the key-value machine; `route.rs` the way of one call from node to
//! node; `node.rs` one node's connection; `nodes.rs` the nodes that are known; `answer.rs` what an answer means
//! for the next step.

mod answer;
mod client;
mod error;
mod kv;
mod node;
mod nodes;
mod options;
mod route;
mod status;

pub use client::{Client, Consistency};
/// The types that [`KvClient`] takes and gives; the same ones that the machine itself uses.
pub use d_engine_proto::key_value::{
    Keys, KvAnswer, KvCommand, KvOperation, KvQuery, KvReply, Page, PutOptions, QueryLimitError, Record,
    Scan, UndecodableError,
};
pub use error::ClientError;
pub use kv::{BatchOutcome, KvClient, KvError, Pages, PutOutcome, SwapOutcome};
pub use options::ClientOptions;
pub use status::{
    Member, NodeRole, NodeStatus, ReceivingSnapshot, SendingSnapshot, SnapshotStatus, TakenSnapshot,
};
