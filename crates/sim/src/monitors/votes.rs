//! "vote once": a node votes for one candidate in a term, across restarts.

use std::collections::BTreeMap;

use d_engine_core::{NodeId, Term};
use d_engine_replica::PeerMessage;

use crate::monitors::violation::{Rule, Violation};

/// The votes that were sent, by voter and term.
#[derive(Debug, Default)]
pub(crate) struct Votes {
    cast: BTreeMap<(u64, Term), NodeId>,
}

impl Votes {
    /// Checks a message that a node sends.
    ///
    /// # Errors
    /// It is a vote, and the node has voted for another candidate in the same term.
    pub(crate) fn on_send(
        &mut self,
        node: u64,
        to: NodeId,
        message: &PeerMessage,
    ) -> Result<(), Violation> {
        let (term, candidate) = match message {
            // A candidate has voted for itself.
            PeerMessage::RequestVote { term, .. } => (*term, NodeId::new(node)),
            PeerMessage::VoteReply { term, granted: true, .. } => (*term, Some(to)),
            _ => return Ok(()),
        };
        let Some(candidate) = candidate else { return Ok(()) };
        let before = *self.cast.entry((node, term)).or_insert(candidate);
        if before != candidate {
            return Rule::VoteOnce.broken_by(
                node,
                format_args!("node {node} voted for both {before} and {candidate} in term {term}"),
            );
        }
        Ok(())
    }
}
