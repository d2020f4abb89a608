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
//! # What is retried
//! | what happened | command ([`Client::propose`]) | read |
//! |---|---|---|
//! | the node does not lead, is busy, has stopped, or cannot be reached | asked again, there or elsewhere, until the deadline | the same |
//! | the connection was lost, or the deadline passed, with the call in flight | [`ClientError::OutcomeUnknown`] at once, never sent again | asked again elsewhere until the deadline |
//! | leadership was lost with the command in flight | [`ClientError::OutcomeUnknown`] at once | does not happen |
//! | the request itself is wrong | the error at once | the error at once |
//!
//! # Where to look
//! `client.rs` has the calls; `route.rs` the way of one call from node to node; `node.rs` one node's
//! connection; `nodes.rs` the nodes that are known; `answer.rs` what an answer means for the next step.

mod answer;
mod client;
mod error;
mod node;
mod nodes;
mod options;
mod route;
mod status;

pub use client::{Client, Consistency};
pub use error::ClientError;
pub use options::ClientOptions;
pub use status::{Member, NodeRole, NodeStatus};
