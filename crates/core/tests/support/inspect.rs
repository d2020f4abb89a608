//! What a test reads from its node.

use d_engine_core::{
    AppendOutcome, AppendPlan, Appended, CoreConfig, EntryKind, FollowerReport, HardState, Message,
    NodeId, PersistRequest, RoleKind,
};

use super::{Node, i};

impl Node {
    /// The report of a follower with the default settings.
    pub(crate) fn report(&self) -> FollowerReport {
        let stickiness = CoreConfig::default().election_timeout_min;
        FollowerReport {
            stickiness,
            wall_ms: self.wall_ms,
            command_version_max: 2,
            ..FollowerReport::default()
        }
    }

    pub(crate) fn commit(&self) -> u64 {
        self.core.log().committed.get()
    }

    pub(crate) fn role(&self) -> RoleKind {
        self.core.role()
    }

    pub(crate) fn term(&self) -> u64 {
        self.core.term().get()
    }

    pub(crate) fn vote(&self) -> Option<u64> {
        self.core.vote().map(NodeId::get)
    }

    pub(crate) fn leader_known(&self) -> Option<u64> {
        self.core.leader().map(NodeId::get)
    }

    /// The messages sent since the last call.
    pub(crate) fn take_sent(&mut self) -> Vec<(u64, Message)> {
        std::mem::take(&mut self.sent)
    }

    /// The appends planned since the last call, as receiver, index before, last index.
    pub(crate) fn take_appends(&mut self) -> Vec<(u64, u64, u64)> {
        let range =
            |plan: AppendPlan| (plan.to.get(), plan.prev.index.get(), plan.last.index.get());
        std::mem::take(&mut self.appends).into_iter().map(range).collect()
    }

    /// The appends planned for `to` since the last call, as index before and last index; those for
    /// other nodes are dropped.
    pub(crate) fn take_appends_to(&mut self, to: u64) -> Vec<(u64, u64)> {
        self.take_appends()
            .into_iter()
            .filter(|plan| plan.0 == to)
            .map(|plan| (plan.1, plan.2))
            .collect()
    }

    /// The replies to appends since the last call; other messages are dropped.
    pub(crate) fn take_acks(&mut self) -> Vec<AppendOutcome> {
        let ack = |message| match message {
            Message::AppendReply { outcome, .. } => Some(outcome),
            _ => None,
        };
        self.take_sent().into_iter().filter_map(|(_, message)| ack(message)).collect()
    }

    /// The entries created since the effects were last taken: kind, first index, count, log time.
    pub(crate) fn created(&self) -> Vec<(EntryKind, u64, u64, u64)> {
        let created = |order: &PersistRequest| match order.appended {
            Appended::Created { first, count, kind, time_ms } => {
                Some((kind, first.index.get(), count, time_ms))
            }
            _ => None,
        };
        self.orders.iter().filter_map(created).collect()
    }

    /// The hard state requested last.
    pub(crate) fn ordered_hard_state(&self) -> Option<HardState> {
        self.orders.iter().rev().find_map(|order| order.hard_state)
    }

    /// The terms of the log.
    pub(crate) fn log_terms(&self) -> Vec<u64> {
        let last = self.core.log().last.index.get();
        (1..=last).map(|index| self.core.term_at(i(index)).unwrap().get()).collect()
    }

    /// The last heartbeat round sent.
    pub(crate) fn last_round(&self) -> u64 {
        let round = self.sent.iter().rev().find_map(|(_, message)| match message {
            Message::Heartbeat { round, .. } => Some(*round),
            _ => None,
        });
        round.unwrap_or(0)
    }

    /// How long until the next deadline, in milliseconds rounded down.
    pub(crate) fn deadline_in_ms(&self) -> Option<u64> {
        self.core.next_deadline().map(|at| at.since(self.now).as_millis() as u64)
    }
}
