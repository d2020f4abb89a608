//! Data directories that are bound to their nodes stay bound: whatever a snapshot, a purge, an install or a start
//! makes of the log, a node that has committed a binding knows it. Otherwise a wiped directory is let in again as the
//! node that it was, and what that node had acknowledged can be lost.

use d_engine_core::LogIndex;
use d_engine_replica::Replica;

use crate::monitors::{Broken, broken};

/// How many directories are bound in the log as committed up to each of these places.
#[derive(Debug, Default)]
pub(crate) struct BoundDirectories {
    known: Vec<(LogIndex, usize)>,
}

impl BoundDirectories {
    /// A node has handled an event, or has just started.
    ///
    /// # Errors
    /// A binding that was committed here is gone.
    pub(crate) fn check(&mut self, node: u64, replica: &Replica) -> Result<(), Broken> {
        let (bound, log) = (replica.bound_incarnations(), replica.core().log());
        let must = self.known.iter().rev().find(|(index, _)| *index <= log.committed);
        if let Some((index, before)) = must.filter(|(_, before)| bound < *before) {
            return broken(
                "bound directories",
                format_args!("node {node} at {log:?} knows {bound}; {before} are bound since {index}"),
            );
        }
        let most = self.known.last().map_or(0, |(_, bound)| *bound);
        // What is in force is committed.
        if bound > most && log.committed == log.last.index {
            self.known.push((log.committed, bound));
        }
        Ok(())
    }
}
