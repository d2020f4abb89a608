//! Orderly shutdowns: callers are refused, leadership is transferred, jobs already requested are
//! done, the state machine is flushed. The process ends and the machine keeps running, so that
//! nothing unsynced is lost. As in `crates/server/src/threads/raft.rs` and
//! `crates/server/src/threads/workers.rs`.

use d_engine_replica::{ApplyRun, ApplyStep, Event, LogWork, StopReason};

use crate::faults::{Fault, Sometimes};
use crate::monitors::violation::Violation;
use crate::time::{MS, SECOND};
use crate::world::World;
use crate::world::event::{Chain, SimEvent};

/// How long a shutdown waits for pending commands and reads.
const TIMEOUT: u64 = 2 * SECOND;
/// How often the shutdown checks whether it is done; the server checks after every event.
const LOOKS_EVERY: u64 = MS;

/// The reason why a node that was shut down has stopped.
pub(crate) fn shut_down() -> StopReason {
    StopReason::new("the node was shut down")
}

impl World {
    /// Shuts some node down.
    pub(crate) fn stop_some(&mut self) -> Result<(), Violation> {
        let node = self.turn_prng.between(1, self.profile.nodes);
        self.plan(self.profile.stop_every, Chain::Shutdown);
        self.stop(node)
    }

    /// Asks a node to shut down.
    pub(crate) fn stop(&mut self, id: u64) -> Result<(), Violation> {
        let (now, leads) = (self.now, self.leads(id));
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut().filter(|it| it.stops_by.is_none()) else {
            return Ok(());
        };
        running.stops_by = Some(now + TIMEOUT);
        running.intake.close(&shut_down());
        running.gate.is_closed = true;
        self.counts.fault(Fault::Shutdown);
        if leads {
            self.counts.reached(Sometimes::LeaderShutDown);
        }
        self.trace.note(now, format_args!("node {id} shuts down"));
        self.tell_now(id, Event::TransferLeadership { to: None, responder: Box::new(|_| {}) })?;
        self.after(LOOKS_EVERY, SimEvent::StopsYet { node: id, boot });
        Ok(())
    }

    /// Checks whether a shutdown may end: its pending calls are done, or its timeout has passed.
    pub(crate) fn stops_yet(&mut self, id: u64) -> Result<(), Violation> {
        let now = self.now;
        let node = self.node(id);
        let boot = node.boot;
        let Some(running) = node.running.as_mut() else { return Ok(()) };
        let core = running.replica.core();
        let is_done = !running.replica.has_callers()
            && !core.is_transferring_leadership()
            && core.held_messages() == 0;
        if !is_done && running.stops_by.is_some_and(|by| now < by) {
            self.after(LOOKS_EVERY, SimEvent::StopsYet { node: id, boot });
            return Ok(());
        }
        if !is_done {
            self.counts.reached(Sometimes::ShutdownOutOfPatience);
        }
        self.tell_now(id, Event::Failed(shut_down()))?;
        self.finish_work(id)
    }

    /// The workers finish their queued jobs and close their files.
    fn finish_work(&mut self, id: u64) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let LogWork { writes, .. } = std::mem::take(&mut running.log_work);
        if !writes.is_empty() {
            self.monitors.disks.on_write_begun(id, &writes);
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let ended =
            running.log.persist(&writes).and_then(|stored| running.log.idle().map(|()| stored));
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        match ended {
            Ok(stored) => self.log_has_stored(id, stored),
            Err(reason) => return self.stopped_by_disk(id, reason, false),
        }
        self.finish_apply(id)?;
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

    /// The apply worker executes its last batch.
    fn finish_apply(&mut self, id: u64) -> Result<(), Violation> {
        let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
        let last = std::mem::take(&mut running.apply_work);
        running.steps.start_last(last);
        loop {
            let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
            let done = match running.steps.next(&running.apply) {
                ApplyStep::SaveHardState => {
                    running.apply.handler().hard_state_saved();
                    Ok(())
                }
                // The replica is stopped and the snapshot worker ends.
                ApplyStep::EndSnapshot(built) => {
                    running.steps.end_snapshot(&mut running.apply, built).map(drop)
                }
                ApplyStep::Prune | ApplyStep::BeginSnapshot(_) => Ok(()),
                ApplyStep::Apply(job) => {
                    self.monitors.on_apply(id, &job)?;
                    let Some(running) = self.node(id).running.as_mut() else { return Ok(()) };
                    match running.apply.unpack(&job) {
                        Ok(None) => match running.run_apply(job) {
                            Ok(ApplyRun::Done(_)) => Ok(()),
                            Ok(ApplyRun::Waits { job, .. }) => {
                                running.steps.postpone(job);
                                running.steps.drop_jobs();
                                Ok(())
                            }
                            Err(reason) => Err(reason),
                        },
                        Ok(Some(_)) => {
                            running.steps.postpone(job);
                            running.steps.drop_jobs();
                            Ok(())
                        }
                        Err(reason) => Err(reason),
                    }
                }
                ApplyStep::Wait | ApplyStep::Close => return Ok(()),
            };
            match done {
                Ok(()) => {}
                Err(reason) if reason.needs_newer_program() => {
                    return self.stopped_as_too_old(id, reason);
                }
                Err(reason) => return self.died_or_stopped(id, reason),
            }
        }
    }

    fn died_or_stopped(&mut self, id: u64, reason: StopReason) -> Result<(), Violation> {
        if self.node(id).fs.is_halted() {
            self.crash(id);
            return Ok(());
        }
        let lacks_room = self.node(id).machine_lacks_room();
        self.stopped_by_disk(id, reason, lacks_room)
    }

    /// Ends the process after an orderly shutdown.
    fn end(&mut self, id: u64) {
        let now = self.now;
        self.trace.note(now, format_args!("node {id} has shut down"));
        self.break_off_all(id);
        self.drop_links(id);
        let node = self.node(id);
        node.disk_fails = false;
        // A write group that waited for disk space may be written in part, which leaves a torn
        // tail.
        node.stopped_orderly = node.running.as_ref().is_none_or(|it| !it.log.waits());
        node.running = None;
        node.fs.kill();
        node.boot += 1;
        let delay = if self.healed {
            100 * MS
        } else {
            5 * MS + self.turn_prng.tail(self.profile.crash_length)
        };
        self.after(delay, SimEvent::Start(id));
    }
}
