//! One node's raft thread: it handles all waiting events together, then gives out all jobs that
//! they requested, as `crates/server/src/threads/raft.rs` does. The monitors check the node after
//! every single event.

use std::time::Duration;

use d_engine_core::{EntryKind, Instant, RoleKind, Term};
use d_engine_replica::{Event, Jobs};

use crate::faults::Sometimes;
use crate::monitors::disturbance as role;
use crate::monitors::leases;
use crate::monitors::skips::SkipMonitor;
use crate::monitors::traffic::weight;
use crate::monitors::violation::{Rule, Violation};
use crate::time::MS;
use crate::world::World;
use crate::world::event::SimEvent;
use crate::world::link_model::Sent;
use crate::world::links::is_append;

/// The jobs that a turn had requested before an event.
struct Before {
    persists: usize,
    sends: usize,
    snapshots: usize,
    purge: Option<d_engine_core::LogId>,
}

impl World {
    /// Passes an event to a node: at once, or through its intake if the profile has turns or the
    /// node no longer serves callers.
    pub(crate) fn tell(&mut self, id: u64, event: Event) -> Result<(), Violation> {
        if self.profile.limits.turn_mean == 0 && !self.turns_away(id, &event) {
            return self.tell_now(id, event);
        }
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let plans = !std::mem::replace(&mut running.intake.planned, true);
        let limits = self.profile.limits.clone();
        if let Some(running) = self.node(id).running.as_mut() {
            running.intake.put(event, &limits);
        }
        if plans {
            let delay = self.turn_prng.tail(limits.turn_mean);
            self.after(delay, SimEvent::Turn { node: id, boot });
        }
        Ok(())
    }

    /// Returns whether the event is a caller's and the node is shutting down.
    fn turns_away(&mut self, id: u64, event: &Event) -> bool {
        let is_of_caller =
            matches!(event, Event::Propose(_) | Event::Read(_) | Event::TransferLeadership { .. });
        is_of_caller && self.node(id).running.as_ref().is_some_and(|it| it.stops_by.is_some())
    }

    /// A turn of the raft thread: it handles all waiting events.
    pub(crate) fn turn(&mut self, id: u64) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let events = running.intake.take();
        if events.len() > 1 {
            self.counts.reached(Sometimes::TurnOfMany);
        }
        self.handle_all(id, events)
    }

    /// Passes an event to a node's replica at once, and executes the jobs that it requests.
    pub(crate) fn tell_now(&mut self, id: u64, event: Event) -> Result<(), Violation> {
        self.handle_all(id, vec![event])
    }

    fn handle_all(&mut self, id: u64, events: Vec<Event>) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let mut jobs = std::mem::take(&mut running.jobs);
        for event in events {
            self.handle(id, event, &mut jobs)?;
        }
        if self.is_due(id) {
            self.handle(id, Event::Deadline, &mut jobs)?;
        }
        let result = self.carry_out(id, &mut jobs);
        jobs.clear();
        if let Some(running) = self.node(id).running.as_mut() {
            running.jobs = jobs;
        }
        result?;
        self.schedule_deadline(id);
        let running = self.node(id).running.as_ref();
        match running.filter(|it| !it.told_to_stop).and_then(|it| it.replica.stopped()) {
            Some(reason) => {
                Rule::Replica.broken_by(id, format_args!("node {id} stops unexpectedly: {reason}"))
            }
            None => Ok(()),
        }
    }

    fn is_due(&mut self, id: u64) -> bool {
        let now = self.now;
        let together = self.profile.limits.turn_mean > 0;
        let node = self.node(id);
        let clock = node.clock(now);
        let due = node.running.as_ref().and_then(|it| it.replica.next_deadline());
        together && due.is_some_and(|due| due <= clock)
    }

    pub(crate) fn deadline(&mut self, node: u64) -> Result<(), Violation> {
        let now = self.now;
        let state = self.node(node);
        let clock = state.clock(now);
        let Some(running) = state.running.as_mut() else { return Ok(()) };
        running.deadline = None;
        if running.replica.next_deadline().is_some_and(|due| due <= clock) {
            return self.tell(node, Event::Deadline);
        }
        self.schedule_deadline(node);
        Ok(())
    }

    fn schedule_deadline(&mut self, id: u64) {
        let now = self.now;
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return };
        let Some(due) = running.replica.next_deadline() else { return };
        if running.deadline.is_some_and(|scheduled| scheduled <= due) {
            return;
        }
        running.deadline = Some(due);
        let delay = node.true_time(due).saturating_sub(now);
        self.after(delay, SimEvent::Deadline { node: id, boot });
    }

    /// Handles one event, then checks the rules.
    fn handle(&mut self, id: u64, event: Event, jobs: &mut Jobs) -> Result<(), Violation> {
        let now = self.now;
        let timeout = Duration::from_millis(self.profile.snapshots.purge_timeout_ms);
        let node = self.node(id);
        let time = node.time(now);
        let clock = time.monotonic;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let before = (running.replica.core().role(), running.replica.core().term());
        let asked = Before {
            persists: jobs.persist.len(),
            sends: jobs.send.len(),
            snapshots: jobs.snapshots.len(),
            purge: jobs.purge,
        };
        let (bindings, log) = (running.replica.bound_incarnations(), running.replica.core().log());
        let role = role::Before::of(&event, running.replica.core());
        let received = running.installing;
        let there =
            received.and_then(|last_included| running.replica.core().term_at(last_included.index));
        let carries_entries = is_append(&event);
        let asked_at = matches!(event, Event::ChangeMembers(_)).then(|| running.known.id());
        running.note_event(&event, clock);
        running.told_to_stop |= matches!(event, Event::Failed(_));
        running.replica.handle(time, event, jobs);
        running.gate.publish(running.replica.core());
        running.note_orders(
            jobs.snapshots.get(asked.snapshots..).unwrap_or_default(),
            clock,
            timeout,
        );
        let now_there = running.replica.core().term_at(log.last.index);
        let superseded = now_there.is_some_and(|term| term != log.last.term);
        let bound = running.replica.bound_incarnations() > bindings;
        if superseded {
            self.counts.reached(Sometimes::SuffixSuperseded);
        }
        if bound {
            self.counts.reached(Sometimes::IncarnationsBound);
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let after = (running.replica.core().role(), running.replica.core().term());
        let is_deposed = running.sent_in < after.1;
        self.observe(id, before, after, (role, clock))?;
        let installs = jobs.persist.iter().skip(asked.persists).filter_map(|job| job.install);
        for install in installs.collect::<Vec<_>>() {
            self.note_install(id, install, log.last, there);
            if is_deposed {
                self.counts.reached(Sometimes::SnapshotOfDeposedInstalled);
            }
        }
        self.look_at_jobs(id, jobs, &asked, carries_entries)?;
        asked_at.into_iter().for_each(|before| self.request_was_handled(before));
        self.note_membership(id)
    }

    /// Checks the jobs that the event has added to the turn.
    fn look_at_jobs(
        &mut self,
        id: u64,
        jobs: &Jobs,
        asked: &Before,
        carries_entries: bool,
    ) -> Result<(), Violation> {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        for job in jobs.persist.iter().skip(asked.persists) {
            if core.role() == RoleKind::Leader && job.entries.iter().any(|entry| entry.version > 0)
            {
                self.counts.reached(Sometimes::NewerCommandTaken);
            }
            if job.entries.iter().any(|entry| entry.kind == EntryKind::Tick) {
                self.counts.reached(Sometimes::TickWritten);
            }
            if carries_entries {
                self.monitors.traffic.stored(id, weight(&job.entries));
            }
            if job.entries.iter().any(|entry| SkipMonitor::is_decision(core, entry)) {
                self.counts.reached(Sometimes::EntrySkipped);
            }
            self.monitors.on_write(id, core, job, self.now)?;
        }
        for outgoing in jobs.send.iter().skip(asked.sends) {
            self.monitors.on_send(id, core, outgoing.to, &outgoing.message)?;
        }
        self.monitors.after_writes(id, &running.replica)?;
        match jobs.purge {
            Some(through) if jobs.purge != asked.purge => self.check_purge_order(id, through),
            _ => Ok(()),
        }
    }

    fn observe(
        &mut self,
        id: u64,
        before: (RoleKind, Term),
        after: (RoleKind, Term),
        (role, clock): (role::Before, Instant),
    ) -> Result<(), Violation> {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        self.monitors.after_step(id, &running.replica, &self.profile, self.now)?;
        self.monitors.check_role(id, core, role, clock)?;
        let running = self.nodes.iter().filter_map(|node| {
            node.running.as_ref().map(|it| (node.id, node.clock(self.now), it.replica.core()))
        });
        leases::check(&self.profile, running)?;
        if self.monitors.is_old_term_on_majority(core) {
            self.counts.reached(Sometimes::OldTermEntryOnMajority);
        }
        if before == after {
            return Ok(());
        }
        self.trace.role(self.now, id, after.0, after.1);
        let is_joint = core.configuration().is_joint();
        self.check_overlap()?;
        if after.0 == RoleKind::Leader && before.0 != RoleKind::Leader {
            self.elections += 1;
            if is_joint {
                self.counts.reached(Sometimes::NewLeaderInJoint);
            }
            self.excuse_all();
            let leaders = self.nodes.iter().filter_map(|node| node.running.as_ref());
            if leaders.filter(|it| it.replica.core().role() == RoleKind::Leader).count() > 1 {
                self.counts.reached(Sometimes::TwoLeadersAtOnce);
                if self.profile.rush {
                    self.after(MS, SimEvent::Rush { times_left: 20 });
                }
            }
            if self.monitors.has_led_before(id, after.1) {
                self.counts.reached(Sometimes::LeaderReelectedInLaterTerm);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, id: u64, jobs: &mut Jobs) -> Result<(), Violation> {
        let mut not_sent = Vec::new();
        for outgoing in std::mem::take(&mut jobs.send) {
            if self.transmit_message(id, &outgoing) != Sent::Queued {
                not_sent.extend(outgoing.not_sent());
            }
        }
        // These events only correct the leader's record of what was sent; they produce no message.
        for event in not_sent {
            self.handle(id, event, jobs)?;
        }
        self.order_snapshots(id, jobs);
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        jobs.load.drain(..).for_each(|job| running.loads.put(job));
        running.log_work.add(&mut jobs.persist, jobs.purge.take());
        running.apply_work.jobs.extend(jobs.apply.drain(..));
        running.apply_work.hard_state_saved |= jobs.hard_state_saved;
        running.apply_work.snapshot_due |= jobs.snapshot_due;
        let has_log_work = running.has_log_work();
        let log_begins = has_log_work && !running.log_busy;
        running.log_busy |= log_begins;
        if log_begins {
            let delay = self.prng.below(200_000);
            self.after(delay, SimEvent::LogBegin { node: id, boot });
        }
        self.wake_apply(id);
        Ok(())
    }
}
