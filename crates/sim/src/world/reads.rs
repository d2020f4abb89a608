//! Reads of clients.

use d_engine_replica::{Event, ReadDecision, ReadError, ReadRequest};

use crate::faults::Sometimes;
use crate::monitors::violation::Violation;
use crate::world::World;
use crate::world::stops::shut_down;

impl World {
    /// A read arrives at a node: it is served at once, or goes to the raft thread.
    pub(crate) fn read(&mut self, id: u64, request: ReadRequest) -> Result<(), Violation> {
        let now = self.now;
        let node = self.node(id);
        let clock = node.clock(now);
        let Some(running) = node.running.as_ref() else { return Ok(()) };
        match running.gate.decide(request.mode, clock) {
            ReadDecision::Now(index) => {
                self.counts.reached(Sometimes::ReadAtGate);
                (request.responder)(Ok(index.get()));
                Ok(())
            }
            ReadDecision::Closed => {
                (request.responder)(Err(ReadError::Stopped { reason: shut_down() }));
                Ok(())
            }
            ReadDecision::AskRaftThread => self.tell(id, Event::Read(vec![request])),
        }
    }
}
