//! Invariants that are checked after every step, in release builds too: a node that violates one
//! must stop.

use crate::Term;
use crate::raft_core::RaftCore;

impl RaftCore {
    pub(crate) fn check_invariants(&self, term_before: Term) {
        let log = self.log.summary();
        assert!(self.hard_state.term >= term_before, "the term fell from {term_before}");
        assert!(log.persisted <= log.last.index, "persisted past the end of the log: {log:?}");
        assert!(log.base.index <= log.committed, "uncommitted entries were purged: {log:?}");
        assert!(log.committed <= log.last.index, "committed past the end of the log: {log:?}");
        assert!(log.applied <= log.committed, "applied past the commit index: {log:?}");
        assert!(log.last.term <= self.hard_state.term, "an entry of a later term: {log:?}");
        if let Some((term, first)) = self.led_term() {
            assert!(self.hard_state.vote == Some(self.node), "a leader voted for another node");
            // Once it is committed it may be purged like any other entry.
            let purged = first <= log.base.index && log.base.term == term;
            assert!(
                purged || self.log.term_at(first) == Some(term),
                "the leader's no-op is missing"
            );
        }
        if let Some(leader) = self.role.leader() {
            for (node, progress) in &leader.followers {
                assert!(
                    progress.matched < progress.next && progress.matched <= log.last.index,
                    "progress of {node} is past the log: {progress:?}"
                );
            }
        }
    }
}
