//! Appends whose entries must be read from the log first.
//!
//! Each follower has at most one read in progress. Later appends to it wait for that read, in
//! order, because an append that overtakes another would be rejected as a gap. An append that does
//! not follow the waiting ones means that the leader has restarted at another index; the waiting
//! ones are dropped.

use std::collections::{BTreeMap, VecDeque};

use d_engine_core::{AppendPlan, NodeId};

use crate::event::LoadJob;

#[derive(Default)]
pub(crate) struct Loads {
    waiting: BTreeMap<NodeId, Waiting>,
    last_token: u64,
}

struct Waiting {
    /// The token of the read in progress, which is for the first plan.
    token: u64,
    /// The waiting appends, at most as many as the leader's window has messages.
    plans: VecDeque<AppendPlan>,
}

impl Loads {
    /// Queues `plan` if appends to this follower wait and it follows them; returns whether it was
    /// queued.
    pub(crate) fn queue_behind(&mut self, plan: AppendPlan) -> bool {
        let Some(waiting) = self.waiting.get_mut(&plan.to) else { return false };
        let follows = waiting
            .plans
            .back()
            .is_some_and(|last| last.term == plan.term && last.last == plan.prev);
        if follows {
            waiting.plans.push_back(plan);
        } else {
            self.waiting.remove(&plan.to);
        }
        follows
    }

    /// Begins a read for `plan`, the only waiting append to this follower. It replaces a read for
    /// the same follower that is still queued.
    pub(crate) fn begin(&mut self, plan: AppendPlan) -> LoadJob {
        self.begin_first(VecDeque::from([plan]), &plan)
    }

    fn begin_first(&mut self, plans: VecDeque<AppendPlan>, first: &AppendPlan) -> LoadJob {
        self.last_token += 1;
        let token = self.last_token;
        self.waiting.insert(first.to, Waiting { token, plans });
        LoadJob {
            to: first.to,
            token,
            first: first.prev.index.next(),
            last: first.last.index,
            max_bytes: usize::MAX,
        }
    }

    /// Ends the read with this token; returns its plan and the plans that waited for it. `None` for
    /// a read that was replaced.
    pub(crate) fn ended(
        &mut self,
        to: NodeId,
        token: u64,
    ) -> Option<(AppendPlan, VecDeque<AppendPlan>)> {
        if self.waiting.get(&to)?.token != token {
            return None;
        }
        let mut waiting = self.waiting.remove(&to)?;
        let plan = waiting.plans.pop_front()?;
        Some((plan, waiting.plans))
    }

    /// Begins a read for the first of these plans; the others wait for it.
    pub(crate) fn go_on(&mut self, plans: VecDeque<AppendPlan>) -> Option<LoadJob> {
        let first = *plans.front()?;
        Some(self.begin_first(plans, &first))
    }

    /// The number of reads in progress, at most one per follower.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Drops the plans for a node that is no member any more.
    pub(crate) fn forget(&mut self, node: NodeId) {
        self.waiting.remove(&node);
    }

    /// This node no longer leads, or has stopped: drops all plans.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use d_engine_core::{LogId, LogIndex, Term};

    use super::*;

    fn plan(to: u64, prev: u64, last: u64) -> AppendPlan {
        let id = |index| LogId::new(Term::new(1), LogIndex::new(index));
        let to = NodeId::new(to).unwrap();
        AppendPlan {
            to,
            term: Term::new(1),
            prev: id(prev),
            last: id(last),
            commit: LogIndex::ZERO,
        }
    }

    #[test]
    fn appends_wait_behind_the_read_before_them_and_one_read_a_follower_is_under_way() {
        let mut loads = Loads::default();
        let job = loads.begin(plan(2, 0, 5));
        assert!(loads.queue_behind(plan(2, 5, 8)));
        assert!(!loads.queue_behind(plan(3, 5, 8)), "the other follower has no read in progress");
        let (first, behind) = loads.ended(job.to, job.token).unwrap();
        assert_eq!((first.last.index.get(), behind.len()), (5, 1));
        let next = loads.go_on(behind).unwrap();
        assert_eq!((next.first.get(), next.last.get()), (6, 8));
    }

    /// A leader that restarts at another index drops the earlier reads, however often it does so
    /// while the disk hangs.
    #[test]
    fn an_append_that_does_not_follow_replaces_what_waits() {
        let mut loads = Loads::default();
        let old = loads.begin(plan(2, 0, 5));
        for _ in 0..1000 {
            assert!(!loads.queue_behind(plan(2, 2, 5)));
            loads.begin(plan(2, 2, 5));
        }
        assert_eq!(loads.waiting.len(), 1);
        assert!(loads.ended(old.to, old.token).is_none());
    }
}
