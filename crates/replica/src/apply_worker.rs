//! The apply side of a node: takes jobs in order, answers callers directly.

use std::sync::Arc;

use d_engine_core::GroupId;
use d_engine_storage::LogReader;

use crate::event::{ApplyJob, ApplySource, Event};
use crate::{StateMachineHandler, StopReason};

/// Payload bytes read from the log at a time while a backlog is applied.
const READ_BYTES_MAX: usize = 4 << 20;

/// Owns the [`StateMachineHandler`]. The server runs it on a thread of its own, the simulator in its
/// event loop.
pub struct ApplyWorker {
    handler: StateMachineHandler,
    reader: Arc<dyn LogReader>,
    group: GroupId,
}

impl ApplyWorker {
    /// A worker over an opened state machine and the log it is fed from.
    #[must_use]
    pub fn new(handler: StateMachineHandler, reader: Arc<dyn LogReader>, group: GroupId) -> Self {
        Self { handler, reader, group }
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
        let mut responders = job.responders.into_iter().peekable();
        match job.source {
            ApplySource::Entries(entries) => self.handler.apply(&entries, responders.collect()).await?,
            ApplySource::Stored(mut first, last) => {
                while first <= last {
                    let entries =
                        self.reader.read(self.group, first, last, READ_BYTES_MAX).map_err(|error| {
                            StopReason::new(format_args!("reading entries to apply: {error}"))
                        })?;
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
            }
        }
        Ok(Event::Applied(self.handler.applied()))
    }
}
