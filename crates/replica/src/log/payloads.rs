//! The core handles entries without their payloads. This file adds the payloads: from callers and
//! messages for the log, from memory or the log for other nodes.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_core::{
    AppendPlan, Appended, EntryKind, Input, Instant, LogId, NodeId, Now, PersistRequest, RoleKind,
};
use d_engine_storage::{LogEntry, LogSuffix, Membership};

use crate::event::{Install, Jobs, Outgoing, PersistJob};
use crate::replica::{Payload, Replica};
use crate::state_machine::skips;
use crate::{PeerMessage, ProposeError, UnknownBecause};

impl Replica {
    /// Adds the payloads to a persist request of the core and passes it to the log worker.
    pub(crate) fn persist(
        &mut self,
        now: Instant,
        order: PersistRequest,
        payload: Payload,
        jobs: &mut Jobs,
    ) {
        let mut install = None;
        let entries = match (order.appended, payload) {
            (Appended::Nothing, _) => Vec::new(),
            (Appended::Received { skip, .. }, Payload::Received(entries)) => {
                entries.iter().skip(skip).cloned().collect()
            }
            (Appended::Created { first, kind, time_ms, count }, payload) => {
                self.create(first, kind, time_ms, count, payload)
            }
            (Appended::Snapshot { last, suffix }, Payload::Snapshot(membership)) => {
                install = Some(self.begin_anew(last, suffix, membership));
                Vec::new()
            }
            (Appended::Snapshot { .. }, _) => {
                unreachable!("the core installs only a snapshot from its input")
            }
            (Appended::Received { .. }, _) => {
                unreachable!("the core appends only entries from its input")
            }
        };
        for entry in &entries {
            if entry.kind == EntryKind::Membership
                && let Ok(membership) = Membership::decode(&entry.data)
            {
                self.members.push(entry.id.index, membership);
            }
            if entry.kind == EntryKind::Skip
                && let Some(target) = skips::decode(&entry.data)
            {
                self.skips.push(entry.id.index, target);
            }
        }
        self.cache.append(&entries);
        let bytes: usize = entries.iter().map(|entry| entry.data.len()).sum();
        self.snapshots.written = self.snapshots.written.saturating_add(bytes as u64);
        if !self.log_disk().full {
            self.disk.given(now);
        }
        self.unsynced.push(order.id, bytes);
        jobs.persist.push(PersistJob {
            id: order.id,
            hard_state: order.hard_state,
            entries,
            install,
        });
    }

    /// Replaces the log in memory by a snapshot up to `last`; returns the job for the disk.
    fn begin_anew(&mut self, last: LogId, suffix: LogSuffix, membership: Membership) -> Install {
        if suffix == LogSuffix::Drop {
            self.cache.restart_after(last.index);
        }
        self.skips.purge_to(last.index);
        self.members.install(last.index, &membership, suffix);
        self.apply.install(last);
        // These entries will not be applied one by one here, so there are no replies to them.
        for (_, responder) in self.proposals.take_to(last.index) {
            responder(Err(ProposeError::OutcomeUnknown { why: UnknownBecause::LeadershipLost }));
        }
        Install { base: last, suffix }
    }

    fn create(
        &mut self,
        first: LogId,
        kind: EntryKind,
        time_ms: u64,
        count: u64,
        payload: Payload,
    ) -> Vec<LogEntry> {
        let entry = |offset: usize, data: Bytes| LogEntry {
            id: LogId::new(first.term, first.index.plus(offset as u64)),
            kind,
            time_ms,
            session: None,
            version: 0,
            data,
        };
        match payload {
            Payload::Commands(commands) if kind == EntryKind::Command => {
                assert!(
                    commands.len() as u64 == count,
                    "the core accepted {count} of {} commands; it accepts all or none",
                    commands.len()
                );
                let mut entries = Vec::with_capacity(commands.len());
                for (offset, proposal) in commands.into_iter().enumerate() {
                    let entry =
                        LogEntry { version: proposal.version, ..entry(offset, proposal.command) };
                    self.proposals.push(entry.id, proposal.responder);
                    entries.push(entry);
                }
                entries
            }
            Payload::Membership(membership) if kind == EntryKind::Membership => {
                vec![entry(0, membership.encode())]
            }
            Payload::Skip(target) if kind == EntryKind::Skip => {
                vec![entry(0, skips::encode(target))]
            }
            _ => vec![entry(0, Bytes::new())],
        }
    }

    /// Adds the payloads to an append from memory, or requests them from the log.
    pub(crate) fn fill(&mut self, plan: AppendPlan, jobs: &mut Jobs) {
        if self.loads.queue_behind(plan) {
            return;
        }
        match self.entries_of(&plan) {
            Some(entries) => jobs.send.push(append(plan, entries)),
            None => jobs.load.push(self.loads.begin(plan)),
        }
    }

    /// The entries of an append, if they are in memory.
    fn entries_of(&mut self, plan: &AppendPlan) -> Option<Arc<[LogEntry]>> {
        let first = plan.prev.index.next();
        if plan.last.index < first {
            Some(Arc::new([]))
        } else {
            self.cache.slice(first, plan.last.index)
        }
    }

    /// Handles entries that were read from the log. The log may have changed meanwhile: a plan
    /// whose last entry no longer exists, or whose term is over, is dropped together with the plans
    /// that wait for it.
    pub(crate) fn on_loaded(
        &mut self,
        now: Now,
        read: (NodeId, u64),
        entries: &Arc<[LogEntry]>,
        jobs: &mut Jobs,
    ) {
        let Some((plan, mut behind)) = self.loads.ended(read.0, read.1) else { return };
        if self.core.role() != RoleKind::Leader || self.core.term() != plan.term {
            return;
        }
        let is_current = entries.last().is_some_and(|last| last.id == plan.last)
            && self.core.term_at(plan.last.index) == Some(plan.last.term);
        if !is_current {
            let AppendPlan { to, term, prev, .. } = plan;
            let input = Input::AppendNotSent { to, term, prev: prev.index };
            self.step(now, input, Payload::None, jobs);
            return;
        }
        jobs.send.push(append(plan, entries.clone()));
        while let Some(next) = behind.front() {
            let Some(entries) = self.entries_of(next) else { break };
            jobs.send.push(append(*next, entries));
            behind.pop_front();
        }
        jobs.load.extend(self.loads.go_on(behind));
    }
}

fn append(plan: AppendPlan, entries: Arc<[LogEntry]>) -> Outgoing {
    let AppendPlan { to, term, prev, commit, .. } = plan;
    Outgoing { to, message: PeerMessage::Append { term, prev, commit, entries } }
}
