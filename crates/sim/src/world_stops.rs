//! Orderly shutdowns: callers are turned away, leadership is handed over, what was ordered is done, the state machine
//! is flushed; the process ends and the machine lives. As `crates/server/src/raft_thread.rs` and
//! `crates/server/src/worker_threads.rs` do it.

use d_engine_replica::{Event, StopReason};

use crate::faults::{Fault, Sometimes};
use crate::profile::{MS, SECOND};
use crate::world::{Happening, World};

/// How long a shutdown waits for commands and reads that are on their way.
const PATIENCE: u64 = 2 * SECOND;
/// How often it looks; the server looks after every event.
const LOOKS_EVERY: u64 = MS;

fn reason() -> StopReason {
    StopReason::new("the node was shut down")
}

impl World {
    /// Some node is shut down.
    pub(crate) fn stop_some(&mut self) -> Result<(), String> {
        if self.healed {
            return Ok(());
        }
        let node = self.turn_prng.between(1, self.profile.nodes);
        self.plan(self.profile.stop_every, Happening::StopSome);
        self.stop(node)
    }

    /// A node is asked to shut down.
    pub(crate) fn stop(&mut self, id: u64) -> Result<(), String> {
        let (now, leads) = (self.now, self.leads(id));
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut().filter(|it| it.stops_by.is_none()) else { return Ok(()) };
        running.stops_by = Some(now + PATIENCE);
        running.intake.close(&reason());
        self.counts.fault(Fault::Shutdown);
        if leads {
            self.counts.reached(Sometimes::LeaderShutDown);
        }
        self.trace.note(now, format_args!("node {id} shuts down"));
        self.tell_now(id, Event::TransferLeadership { to: None, responder: Box::new(|_| {}) })?;
        self.after(LOOKS_EVERY, Happening::StopsYet { node: id, life });
        Ok(())
    }

    /// Whether a shutdown has come to its end.
    pub(crate) fn stops_yet(&mut self, id: u64) -> Result<(), String> {
        let now = self.now;
        let node = self.node(id);
        let life = node.life;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let core = running.replica.core();
        let is_done = !running.replica.has_callers() && !core.is_handing_over() && core.held_messages() == 0;
        if !is_done && running.stops_by.is_some_and(|by| now < by) {
            self.after(LOOKS_EVERY, Happening::StopsYet { node: id, life });
            return Ok(());
        }
        if !is_done {
            self.counts.reached(Sometimes::ShutdownOutOfPatience);
        }
        self.tell_now(id, Event::Failed(reason()))?;
        self.finish_work(id)
    }

    /// The workers finish what they have been given and close what they have.
    fn finish_work(&mut self, id: u64) -> Result<(), String> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let writes = std::mem::take(&mut running.writes);
        let jobs = std::mem::take(&mut running.applies);
        if !writes.is_empty() {
            self.monitors.on_write_begun(id, &writes);
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let ended = running.log.persist(&writes).and_then(|stored| running.log.idle().map(|()| stored));
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        match ended {
            Ok(stored) => self.log_has_stored(id, stored),
            Err(reason) => return self.stopped_by_disk(id, reason, false),
        }
        for job in jobs {
            self.monitors.on_apply(id, &job)?;
            let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
            if let Err(reason) = running.run_apply(job) {
                if reason.needs_newer_program() {
                    return self.stopped_as_too_old(id, reason);
                }
                return self.died_or_stopped(id, reason);
            }
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        match running.apply.handler().close() {
            Ok(()) if !self.node(id).fs.is_halted() => {
                self.end(id);
                Ok(())
            }
            Ok(()) => {
                self.crash(id);
                Ok(())
            }
            Err(reason) => self.died_or_stopped(id, reason),
        }
    }

    fn died_or_stopped(&mut self, id: u64, reason: StopReason) -> Result<(), String> {
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        let lacks_room = self.node(id).machine_lacks_room();
        self.stopped_by_disk(id, reason, lacks_room)
    }

    /// The process has ended in an orderly way.
    fn end(&mut self, id: u64) {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} has shut down"));
        self.break_off_all(id);
        self.drop_links(id);
        let node = self.node(id);
        node.disk_fails = false;
        // A group that waited for room may be there in part.
        node.stopped_orderly = node.running.as_ref().is_none_or(|it| !it.log.waits());
        node.running = None;
        node.fs.kill();
        node.life += 1;
        let delay =
            if self.healed { 100 * MS } else { 5 * MS + self.turn_prng.tail(self.profile.crash_length) };
        self.after(delay, Happening::Start(id));
    }
}
