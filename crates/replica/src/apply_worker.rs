//! The apply side of a node: takes jobs in order, answers callers directly.

use std::iter::Peekable;
use std::path::PathBuf;
use std::sync::Arc;
use std::vec::IntoIter;

use d_engine_core::{GroupId, LogIndex};
use d_engine_storage::LogReader;

use crate::event::{ApplyJob, ApplySource, Event, ProposeResponder};
use crate::{ProposeError, StateMachineHandler, StopReason};

/// Payload bytes read from the log at a time while a backlog is applied.
const READ_BYTES_MAX: usize = 4 << 20;

/// Owns the [`StateMachineHandler`]. The server runs it on a thread of its own, the simulator in its
/// event loop.
pub struct ApplyWorker {
    handler: StateMachineHandler,
    reader: Arc<dyn LogReader>,
    group: GroupId,
    snapshots: Option<PathBuf>,
}

impl ApplyWorker {
    /// A worker over an opened state machine and the log it is fed from.
    #[must_use]
    pub fn new(handler: StateMachineHandler, reader: Arc<dyn LogReader>, group: GroupId) -> Self {
        Self { handler, reader, group, snapshots: None }
    }

    /// The same worker, taking snapshots below `dir` when the handler's policy says so.
    #[must_use]
    pub fn with_snapshots(mut self, dir: PathBuf) -> Self {
        self.snapshots = Some(dir);
        self
    }

    /// The handler, for what is not applying.
    pub fn handler(&mut self) -> &mut StateMachineHandler {
        &mut self.handler
    }

    /// Applies one job and answers its callers. Returns the event for the replica.
    ///
    /// # Errors
    /// The node must stop with the reason ([`Event::Failed`]).
    pub async fn run(&mut self, job: ApplyJob) -> Result<Event, StopReason> {
        match job.source {
            ApplySource::Entries(entries) => self.handler.apply(&entries, job.responders).await?,
            ApplySource::Stored(first, last) => {
                let mut responders = job.responders.into_iter().peekable();
                let result = self.run_stored(first, last, &mut responders).await;
                for (_, responder) in responders {
                    responder(Err(ProposeError::OutcomeUnknown));
                }
                result?;
            }
        }
        self.maybe_snapshot().await;
        Ok(Event::Applied {
            through: self.handler.applied(),
            next_expiry_ms: self.handler.machine().next_expiry_ms(),
        })
    }

    /// Applies a backlog from the log, a portion at a time.
    async fn run_stored(
        &mut self,
        mut first: LogIndex,
        last: LogIndex,
        responders: &mut Peekable<IntoIter<(LogIndex, ProposeResponder)>>,
    ) -> Result<(), StopReason> {
        while first <= last {
            let entries = self
                .reader
                .read(self.group, first, last, READ_BYTES_MAX)
                .map_err(|error| StopReason::new(format_args!("reading entries to apply: {error}")))?;
            let Some(end) = entries.last().map(|entry| entry.id.index) else {
                return Err(StopReason::new(format_args!("the log gave no entry at index {first}")));
            };
            let mut due = Vec::new();
            while let Some(responder) = responders.next_if(|(index, _)| *index <= end) {
                due.push(responder);
            }
            self.handler.apply(&entries, due).await?;
            first = end.next();
        }
        Ok(())
    }

    /// Takes a snapshot when the policy says so. One that fails is given up: no state is lost by it.
    async fn maybe_snapshot(&mut self) {
        let Some(dir) = self.snapshots.as_ref().filter(|_| self.handler.wants_snapshot()) else { return };
        let label = self.handler.applied();
        let dir = dir.join(format!("{}-{}", label.term, label.index));
        let taken = match std::fs::create_dir_all(&dir) {
            Ok(()) => self.handler.take_snapshot(dir).await,
            Err(error) => Err(StopReason::new(format_args!("{}: {error}", dir.display()))),
        };
        if let Err(reason) = taken {
            tracing::warn!(%reason, "a snapshot was given up");
        }
    }
}
