//! One node's raft thread: what has come in is handled together, then everything that it asks for is given out at
//! once, as `crates/server/src/raft_thread.rs` does. Monitors look after every single event.

use d_engine_core::{Duration, EntryKind, RoleKind, Term};
use d_engine_replica::{Event, Jobs};

use crate::faults::Sometimes;
use crate::links::Sent;
use crate::profile::MS;
use crate::traffic::weight;
use crate::world::{Happening, World};
use crate::world_links::is_append;

/// What a turn had asked for before an event.
struct Before {
    persists: usize,
    sends: usize,
    snapshots: usize,
    purge: Option<d_engine_core::LogId>,
}

impl World {
    /// Something has come in for a node.
    pub(crate) fn tell(&mut self, id: u64, event: Event) -> Result<(), String> {
        if self.profile.limits.turn_mean == 0 && !self.turns_away(id, &event) {
            return self.tell_now(id, event);
        }
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let plans = !std::mem::replace(&mut running.intake.planned, true);
        let limits = self.profile.limits.clone();
        if let Some(running) = self.node(id).running.as_mut() {
            running.intake.put(event, &limits);
        }
        if plans {
            let delay = self.turn_prng.tail(limits.turn_mean);
            self.after(delay, Happening::Turn { node: id, life });
        }
        Ok(())
    }

    /// Whether a node that shuts down has no ear for this caller.
    fn turns_away(&mut self, id: u64, event: &Event) -> bool {
        let is_of_caller =
            matches!(event, Event::Propose(_) | Event::Read(_) | Event::TransferLeadership { .. });
        is_of_caller && self.node(id).running.as_ref().is_some_and(|it| it.stops_by.is_some())
    }

    /// The raft thread looks.
    pub(crate) fn turn(&mut self, id: u64) -> Result<(), String> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let events = running.intake.take();
        if events.len() > 1 {
            self.counts.reached(Sometimes::TurnOfMany);
        }
        self.handle_all(id, events)
    }

    /// Gives an event to a node's replica and does what it asks for.
    pub(crate) fn tell_now(&mut self, id: u64, event: Event) -> Result<(), String> {
        self.handle_all(id, vec![event])
    }

    fn handle_all(&mut self, id: u64, events: Vec<Event>) -> Result<(), String> {
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
            Some(reason) => Err(format!("replica: node {id} stops by itself: {reason}")),
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

    pub(crate) fn deadline(&mut self, node: u64) -> Result<(), String> {
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
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return };
        let Some(due) = running.replica.next_deadline() else { return };
        if running.deadline.is_some_and(|scheduled| scheduled <= due) {
            return;
        }
        running.deadline = Some(due);
        let delay = node.true_time(due).saturating_sub(now);
        self.after(delay, Happening::Deadline { node: id, life });
    }

    /// One event, and the rules after it.
    fn handle(&mut self, id: u64, event: Event, jobs: &mut Jobs) -> Result<(), String> {
        let now = self.now;
        let patience = Duration::from_millis(self.profile.snapshots.purge_patience_ms);
        let node = self.node(id);
        let (clock, wall_ms) = (node.clock(now), node.wall_ms(now));
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let before = (running.replica.core().role(), running.replica.core().term());
        let asked = Before {
            persists: jobs.persist.len(),
            sends: jobs.send.len(),
            snapshots: jobs.snapshots.len(),
            purge: jobs.purge,
        };
        let (bindings, log) = (running.replica.bound_incarnations(), running.replica.core().log());
        let received = running.installing;
        let there = received.and_then(|label| running.replica.core().term_at(label.index));
        let carries_entries = is_append(&event);
        running.note_event(&event, clock);
        running.told_to_stop |= matches!(event, Event::Failed(_));
        running.replica.handle(clock, wall_ms, event, jobs);
        running.note_orders(jobs.snapshots.get(asked.snapshots..).unwrap_or_default(), clock, patience);
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
        self.observe(id, before, after)?;
        let installs = jobs.persist.iter().skip(asked.persists).filter_map(|job| job.install);
        for install in installs.collect::<Vec<_>>() {
            let conflicts = there.is_some_and(|term| term != install.base.term);
            self.note_install(id, install, log.last, conflicts);
            if is_deposed {
                self.counts.reached(Sometimes::SnapshotOfDeposedInstalled);
            }
        }
        self.look_at_jobs(id, jobs, &asked, carries_entries)
    }

    /// What the event has added to the turn's jobs.
    fn look_at_jobs(
        &mut self,
        id: u64,
        jobs: &Jobs,
        asked: &Before,
        carries_entries: bool,
    ) -> Result<(), String> {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        for job in jobs.persist.iter().skip(asked.persists) {
            if core.role() == RoleKind::Leader && job.entries.iter().any(|entry| entry.version > 0) {
                self.counts.reached(Sometimes::NewerCommandTaken);
            }
            if job.entries.iter().any(|entry| entry.kind == EntryKind::Tick) {
                self.counts.reached(Sometimes::TickWritten);
            }
            if carries_entries {
                self.monitors.traffic.stored(id, weight(&job.entries));
            }
            self.monitors.on_write(id, core, job)?;
        }
        for job in jobs.persist.iter().skip(asked.persists) {
            self.judge_skips(id, job)?;
        }
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        for outgoing in jobs.send.iter().skip(asked.sends) {
            self.monitors.on_send(id, core, outgoing.to, &outgoing.message)?;
        }
        match jobs.purge {
            Some(through) if jobs.purge != asked.purge => self.check_purge_order(id, through),
            _ => Ok(()),
        }
    }

    fn observe(&mut self, id: u64, before: (RoleKind, Term), after: (RoleKind, Term)) -> Result<(), String> {
        let position = usize::try_from(id - 1).unwrap_or(usize::MAX);
        let Some(running) = self.nodes.get(position).and_then(|node| node.running.as_ref()) else {
            return Ok(());
        };
        let core = running.replica.core();
        self.monitors.after_step(id, core)?;
        self.monitors.bounds.check(id, &running.replica, &self.profile)?;
        self.monitors.bound_directories.check(id, &running.replica)?;
        self.check_leases()?;
        if self.monitors.old_term_on_majority(core) {
            self.counts.reached(Sometimes::OldTermEntryOnMajority);
        }
        if before == after {
            return Ok(());
        }
        self.trace.role(self.now, id, after.0, after.1);
        if after.0 == RoleKind::Leader && before.0 != RoleKind::Leader {
            self.elections += 1;
            self.excuse_all();
            let leaders = self.nodes.iter().filter_map(|node| node.running.as_ref());
            if leaders.filter(|it| it.replica.core().role() == RoleKind::Leader).count() > 1 {
                self.counts.reached(Sometimes::TwoLeadersAtOnce);
                self.after(MS, Happening::Rush { times_left: 20 });
            }
            let earlier = (1..after.1.get()).rev().map(Term::new);
            if earlier.take(4).any(|term| self.monitors.leader_of(term) == Some(id)) {
                self.counts.reached(Sometimes::LeaderReelectedInLaterTerm);
            }
        }
        Ok(())
    }

    fn carry_out(&mut self, id: u64, jobs: &mut Jobs) -> Result<(), String> {
        let mut not_sent = Vec::new();
        for outgoing in std::mem::take(&mut jobs.send) {
            if self.transmit_message(id, &outgoing) != Sent::Queued {
                not_sent.extend(outgoing.not_sent());
            }
        }
        // These only correct the leader's account: no message comes of them.
        for event in not_sent {
            self.handle(id, event, jobs)?;
        }
        self.order_snapshots(id, jobs)?;
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        running.writes.append(&mut jobs.persist);
        for load in jobs.load.drain(..) {
            // It replaces one for the same follower that has not begun.
            running.loads.retain(|queued| queued.to != load.to);
            running.loads.push(load);
        }
        running.purge = jobs.purge.take().or(running.purge);
        running.applies.extend(jobs.apply.drain(..));
        let has_log_work = running.has_log_work();
        let log_begins = has_log_work && !running.log_busy;
        let apply_begins = !running.apply_busy && !running.applies.is_empty();
        running.log_busy |= log_begins;
        running.apply_busy |= apply_begins;
        if log_begins {
            let delay = self.prng.below(200_000);
            self.after(delay, Happening::LogBegin { node: id, life });
        }
        if apply_begins {
            let delay = self.prng.tail(self.profile.apply_mean);
            self.after(delay, Happening::ApplyBegin { node: id, life });
        }
        Ok(())
    }

    /// While clocks keep their bound, nobody leads a later term beside a valid lease (Raft thesis, section
    /// 6.4.1), whether a client notices or not.
    fn check_leases(&self) -> Result<(), String> {
        if self.profile.clock_drift > u64::from(self.profile.clock_drift_percent_max) * 10_000 {
            return Ok(());
        }
        for holder in &self.nodes {
            let Some(core) = holder.running.as_ref().map(|it| it.replica.core()) else { continue };
            let until = core.lease_until().filter(|until| holder.clock(self.now) < *until);
            let later =
                self.nodes.iter().filter_map(|node| node.running.as_ref()).find(|it| {
                    it.replica.core().leads_with_commit() && it.replica.core().term() > core.term()
                });
            if let (Some(until), Some(_)) = (until, later) {
                return Err(format!(
                    "lease: node {} holds one of term {} until {until:?} beside a later leader",
                    holder.id,
                    core.term()
                ));
            }
        }
        Ok(())
    }
}
