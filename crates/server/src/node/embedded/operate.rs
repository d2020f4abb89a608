//! What an operator requests of an embedded engine: leadership transfer, a skipped entry, a
//! snapshot.

use d_engine_core::NodeId;
use d_engine_replica::{SkipError, TransferError};
use d_engine_storage::snapshot::SnapshotInfo;
use tokio::sync::oneshot;

use super::EmbeddedEngine;
use crate::SnapshotRequestError;

impl EmbeddedEngine {
    /// Exchange leadership to node `to`, or to the voter whose log is most advanced. Call it on
    /// the leader. Returns the id of the new leader once it leads. Meanwhile, commands fail with
    /// [`ProposeError::TransferInProgress`](crate::ProposeError::TransferInProgress).
    ///
    /// # Errors
    /// [`TransferError`]. Leadership has not moved, except perhaps after `TimedOut`, which names
    /// the leader.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, TransferError> {
        let own = self.inner.identity.node;
        let target = match to {
            Some(number) => Some(NodeId::new(number).ok_or(TransferError::NoTarget)?),
            None => None,
        };
        let mut leader = self.inner.shared.leader.subscribe();
        let (answer, answered) = oneshot::channel();
        self.inner.shared.inbox.transfer(
            target,
            Box::new(move |begun| {
                answer.send(begun).ok();
            }),
        );
        let stopped = || TransferError::Stopped { reason: self.reason_of_stop() };
        answered.await.unwrap_or_else(|_| Err(stopped()))?;
        let timeout = self.inner.shared.timeout.transfer;
        let moved = leader.wait_for(|(_, leader)| leader.is_some_and(|leader| leader != own));
        match tokio::time::timeout(timeout, moved).await {
            Ok(Ok(seen)) => Ok(seen.1.map_or(0, NodeId::get)),
            Ok(Err(_)) => Err(stopped()),
            Err(_) => Err(TransferError::TimedOut {
                target: to,
                leader: self.leader(),
                waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    /// Skips the entry at `term` and `index`, at which the state machine of every node is halted:
    /// no node applies it, and all continue after it. Call it on the leader. Returns the index of
    /// the entry that records the decision, once that is committed. Repeated calls for the same
    /// entry return the same index as long as the log contains that record.
    ///
    /// The effect of the skipped command is lost. The request is refused unless a majority of the
    /// voters reports that its state machine is halted at exactly this entry
    /// ([`crate::NodeStatus`]), and no node reports having applied it. A node that does not respond
    /// may have applied it and acknowledged it to its caller; it stops when it learns of the
    /// decision. A node whose state machine panicked at the entry, or whose state may contain half
    /// of a chunk, reports that it must be restarted.
    ///
    /// # Errors
    /// [`SkipError`].
    pub async fn skip_entry(&self, term: u64, index: u64) -> Result<u64, SkipError> {
        let target = d_engine_replica::LogId::of(term, index);
        let (answer, answered) = oneshot::channel();
        self.inner.shared.inbox.skip(
            target,
            Box::new(move |outcome| {
                answer.send(outcome).ok();
            }),
        );
        let stopped = || SkipError::Stopped { reason: self.reason_of_stop() };
        match tokio::time::timeout(self.inner.shared.timeout.read, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(stopped())),
            Err(_) => Err(SkipError::OutcomeUnknown),
        }
    }

    /// Takes a snapshot regardless of the policy and waits until it is durable. The snapshot
    /// contains everything that was acknowledged to any client before the call: like a linearizable
    /// read, the call first waits until this node has applied it. If a snapshot is being built
    /// already, waits for that first. Returns the newest snapshot if nothing was applied since.
    ///
    /// # Errors
    /// See [`SnapshotRequestError`]; none of them loses state.
    pub async fn take_snapshot(&self) -> Result<SnapshotInfo, SnapshotRequestError> {
        self.confirm_acknowledged().await?;
        self.snapshot_of_applied().await
    }
}
