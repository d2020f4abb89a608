//! A call failed. Did it take effect, and may it be retried?
//!
//! # Commands
//! Each error of a proposal says which of four things to do.
//!
//! | error | the command | what to do |
//! |---|---|---|
//! | [`NotLeader`](crate::ProposeError::NotLeader) | has no effect | retry at the node that it names; without a name, after an election timeout |
//! | [`Busy`](crate::ProposeError::Busy) | has no effect | retry here after a pause |
//! | [`TransferInProgress`](crate::ProposeError::TransferInProgress) | has no effect | retry at the successor |
//! | [`Expired`](crate::ProposeError::Expired) | has no effect | retry with a longer timeout, or send less at a time |
//! | [`NewerCommand`](crate::ProposeError::NewerCommand) | has no effect | upgrade or start the node that it names |
//! | [`TooLarge`](crate::ProposeError::TooLarge), [`Refused`](crate::ProposeError::Refused) | has no effect | correct the command |
//! | [`Stopped`](crate::ProposeError::Stopped) | has no effect | use another node; the reason says what to do here |
//! | [`OutcomeUnknown`](crate::ProposeError::OutcomeUnknown) | **may or may not take effect** | read the state before you retry |
//!
//! There is no error for "the command was not synced everywhere": a call returns `Ok` only after a
//! majority has synced the command and this node has applied it.
//!
//! # Unknown outcomes
//! If the leader stops, loses its leadership, its state machine halts, or the deadline passes while
//! a command is in flight, nobody can say whether it takes effect. A retry may then apply it twice.
//! Three ways out:
//!
//! - make the command idempotent, for example "record payment 17, unless it is recorded"; "set the
//!   balance to 7 if it is 5" is not, because another command may set it back to 5 meanwhile;
//! - read the state, and retry only if the effect is missing;
//! - give each command an id that your machine remembers and ignores the second time. The engine
//!   does not do this for you yet.
//!
//! # A loop that retries what may be retried
//! ```
//! use std::time::Duration;
//! use d_engine::{EmbeddedEngine, ProposeError};
//!
//! /// Proposes at the node that leads, and retries until one does. Returns every other error: the
//! /// command must be corrected, the node has stopped (use another one), or the outcome is
//! /// unknown.
//! async fn propose(
//!     nodes: &[EmbeddedEngine],
//!     command: &[u8],
//! ) -> Result<bytes::Bytes, ProposeError> {
//!     let mut next = 0;
//!     loop {
//!         let engine = &nodes[next % nodes.len()];
//!         let error = match engine.propose(command.to_vec()).await {
//!             Ok(reply) => return Ok(reply),
//!             Err(error) => error,
//!         };
//!         match error {
//!             ProposeError::NotLeader { leader: Some(hint) }
//!             | ProposeError::TransferInProgress { successor: Some(hint) } => {
//!                 let leader = nodes.iter().position(|it| it.node_id() == hint.node.get());
//!                 next = leader.unwrap_or(next + 1);
//!             }
//!             ProposeError::NotLeader { leader: None }
//!             | ProposeError::TransferInProgress { successor: None } => next += 1,
//!             ProposeError::Busy { .. } => {}
//!             error => return Err(error),
//!         }
//!         tokio::time::sleep(Duration::from_millis(20)).await;
//!     }
//! }
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let engine = EmbeddedEngine::start(directory.path()).await?;
//! # engine.wait_ready(Duration::from_secs(10)).await?;
//! # let command = d_engine::KvCommand::put("k", "v").encode();
//! # propose(&[engine.clone()], &command).await?;
//! # engine.stop().await;
//! # Ok(())
//! # }
//! ```
//!
//! The network client has this loop inside. It never resends a command that may have been accepted,
//! unless you declare it idempotent.
//!
//! # Reads
//! A read changes nothing, so every read may be retried. [`ReadError`](crate::ReadError) says where
//! and when.
//!
//! # Deadlines
//! `propose` waits without a limit; `propose_within` takes one. Reads wait at most ten times the
//! longest election timeout; `get_within`, `query_within` and `read_barrier_within` take another
//! limit. A command whose deadline passes before it is proposed is withdrawn and has no effect.
