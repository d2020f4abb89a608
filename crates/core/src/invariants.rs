//! What must hold after every step, checked in release too: a node that broke one of these must
//! stop rather than go on.

use crate::Term;
use crate::raft_core::RaftCore;
use crate::role::Role;

impl RaftCore {
    pub(crate) fn check_invariants(&self, term_before: Term) {
        let log = self.log.summary();
        assert!(self.hard_state.term >= term_before, "the term fell from {term_before}");
        assert!(log.persisted <= log.last.index, "persisted past the end: {log:?}");
        assert!(log.base.index <= log.committed, "uncommitted entries were purged: {log:?}");
        assert!(log.committed <= log.last.index, "committed past the end: {log:?}");
        assert!(log.applied <= log.committed, "applied past commit: {log:?}");
        assert!(log.last.term <= self.hard_state.term, "an entry from a future term: {log:?}");
        if let Some((term, first)) = self.led_term() {
            assert!(self.hard_state.vote == Some(self.node), "a leader that voted for another");
            // Once it is committed it may be purged like any other entry.
            let purged = first <= log.base.index && log.base.term == term;
            assert!(purged || self.log.term_at(first) == Some(term), "the leader's no-op is gone");
        }
        if let Role::Leader(leader) = &self.role {
            for (node, progress) in &leader.followers {
                assert!(
                    progress.matched < progress.next && progress.matched <= log.last.index,
                    "progress of {node} is past the log: {progress:?}"
                );
            }
        }
    }
}
