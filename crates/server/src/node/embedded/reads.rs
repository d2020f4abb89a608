//! Reads of an embedded engine: how a read is confirmed, and the state machine that serves it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use bytes::Bytes;
use d_engine_api::ReadConsistency;
use d_engine_core::ReadMode;
use d_engine_replica::{ReadDecision, ReadError, StateMachine, Unsupported};
use tokio::sync::oneshot;

use super::EmbeddedEngine;
use crate::threads::workers::panic_text;

impl EmbeddedEngine {
    /// Returns the value of `key`. Waits for at most ten times the longest election timeout; see
    /// [`EmbeddedEngine::get_within`].
    ///
    /// # Errors
    /// [`ReadError`]; every read may be retried.
    pub async fn get(
        &self,
        key: &[u8],
        consistency: ReadConsistency,
    ) -> Result<Option<Bytes>, ReadError> {
        self.get_within(key, consistency, self.inner.shared.timeout.read).await
    }

    /// As [`EmbeddedEngine::get`], for at most `timeout`.
    ///
    /// # Errors
    /// [`ReadError::Expired`] if the read was not confirmed and answered in time; otherwise as
    /// [`EmbeddedEngine::get`].
    pub async fn get_within(
        &self,
        key: &[u8],
        consistency: ReadConsistency,
        timeout: Duration,
    ) -> Result<Option<Bytes>, ReadError> {
        self.within(timeout, async {
            self.read_barrier_within(consistency, timeout).await?;
            self.get_applied(key).await
        })
        .await
    }

    /// Enforces the deadline on a machine's read that may block; that read itself continues.
    async fn within<T>(
        &self,
        timeout: Duration,
        read: impl Future<Output = Result<T, ReadError>>,
    ) -> Result<T, ReadError> {
        match self.inner.machine.reads_block() {
            true => tokio::time::timeout(timeout, read).await.unwrap_or(Err(ReadError::Expired)),
            false => read.await,
        }
    }

    /// Returns the state machine's response to a query in its own format. Waits as
    /// [`EmbeddedEngine::get`] does.
    ///
    /// # Errors
    /// [`ReadError`]; every read may be retried.
    pub async fn query(
        &self,
        request: &[u8],
        consistency: ReadConsistency,
    ) -> Result<Bytes, ReadError> {
        self.query_within(request, consistency, self.inner.shared.timeout.read).await
    }

    /// As [`EmbeddedEngine::query`], for at most `timeout`.
    ///
    /// # Errors
    /// [`ReadError::Expired`] if the read was not confirmed and answered in time; otherwise as
    /// [`EmbeddedEngine::query`].
    pub async fn query_within(
        &self,
        request: &[u8],
        consistency: ReadConsistency,
        timeout: Duration,
    ) -> Result<Bytes, ReadError> {
        self.within(timeout, async {
            self.read_barrier_within(consistency, timeout).await?;
            self.query_applied(request).await
        })
        .await
    }

    /// Returns the deadline of a caller that waits for `timeout` from now.
    pub(crate) fn deadline_after(
        &self,
        timeout: Option<Duration>,
    ) -> Option<d_engine_core::Instant> {
        timeout.map(|timeout| self.inner.shared.gate.after(timeout))
    }

    /// Returns the value of `key` in the present state of the state machine.
    pub(crate) async fn get_applied(&self, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        let read = |machine: &dyn StateMachine, key: &[u8]| machine.get(key);
        let read = self.read_machine("get", key, read).await?;
        read.map_err(|error| ReadError::StateMachine(error.to_string()))
    }

    /// Reads the state machine on this thread, or on one for blocking work if the read may wait for
    /// a disk: here it would delay the runtime's other tasks.
    async fn read_machine<T: Send + 'static>(
        &self,
        method: &'static str,
        request: &[u8],
        read: impl FnOnce(&dyn StateMachine, &[u8]) -> T + Send + 'static,
    ) -> Result<T, ReadError> {
        if !self.inner.machine.reads_block() {
            return catch_read_panic(self.node_id(), method, || {
                read(self.inner.machine.as_ref(), request)
            });
        }
        let (machine, request) = (self.inner.machine.clone(), Bytes::copy_from_slice(request));
        let node = self.node_id();
        let blocking = move || catch_read_panic(node, method, || read(machine.as_ref(), &request));
        let done = tokio::task::spawn_blocking(blocking).await;
        // The join fails only when the runtime shuts down.
        done.unwrap_or_else(|_| Err(ReadError::Stopped { reason: self.reason_of_stop() }))
    }

    /// Returns the state machine's response to a query from its present state.
    pub(crate) async fn query_applied(&self, request: &[u8]) -> Result<Bytes, ReadError> {
        let read = |machine: &dyn StateMachine, request: &[u8]| machine.query(request);
        self.read_machine("query", request, read).await?.map_err(|error| {
            match error.downcast_ref::<Unsupported>() {
                Some(unsupported) => ReadError::Unsupported { operation: unsupported.operation },
                None => ReadError::StateMachine(error.to_string()),
            }
        })
    }

    /// Waits until a read of the state machine is as fresh as `consistency` requires. Returns a log
    /// index that the state machine has at least reached; 0 for an eventual read, which guarantees
    /// none. Waits for at most ten times the longest election timeout.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_barrier(&self, consistency: ReadConsistency) -> Result<u64, ReadError> {
        self.read_barrier_within(consistency, self.inner.shared.timeout.read).await
    }

    /// As [`EmbeddedEngine::read_barrier`], for at most `timeout`.
    ///
    /// # Errors
    /// [`ReadError::Expired`] if the read was not confirmed in time; otherwise as
    /// [`EmbeddedEngine::read_barrier`].
    pub async fn read_barrier_within(
        &self,
        consistency: ReadConsistency,
        timeout: Duration,
    ) -> Result<u64, ReadError> {
        let deadline = Some(self.inner.shared.gate.after(timeout));
        let confirmed = self.read_barrier_by(consistency, deadline);
        tokio::time::timeout(timeout, confirmed).await.unwrap_or(Err(ReadError::Expired))
    }

    async fn read_barrier_by(
        &self,
        consistency: ReadConsistency,
        deadline: Option<d_engine_core::Instant>,
    ) -> Result<u64, ReadError> {
        let stopped = || ReadError::Stopped { reason: self.reason_of_stop() };
        let passage = match consistency {
            ReadConsistency::Eventual => self.inner.shared.gate.eventual(),
            ReadConsistency::Lease => self.inner.shared.gate.by_lease(),
            // Also a consistency that this version does not know is served as linearizable.
            _ => ReadDecision::AskRaftThread,
        };
        match passage {
            ReadDecision::Now(index) => {
                // Such reads never wait: in a loop they must yield to the runtime's other tasks.
                tokio::task::coop::consume_budget().await;
                Ok(index.get())
            }
            ReadDecision::Closed => Err(stopped()),
            ReadDecision::AskRaftThread => {
                let (answer, answered) = oneshot::channel();
                let mode = match consistency {
                    ReadConsistency::Lease => ReadMode::Lease,
                    _ => ReadMode::Round,
                };
                self.inner.shared.inbox.read(
                    mode,
                    deadline,
                    Box::new(move |result| {
                        answer.send(result).ok();
                    }),
                );
                answered.await.unwrap_or_else(|_| Err(stopped()))
            }
        }
    }
}

/// Turns a panic of a read into an error of that read; the node is not affected.
fn catch_read_panic<T>(node: u64, method: &str, read: impl FnOnce() -> T) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|panic| {
        let text = panic_text(panic.as_ref());
        tracing::error!(node, method, "the state machine panicked in a read: {text}");
        ReadError::StateMachine(format!("its {method} panicked: {text}"))
    })
}
