//! Executes faults and calls so that they are recorded, or as they were recorded (`script.rs`).

use crate::monitors::violation::Violation;
use crate::prng::Prng;
use crate::world::World;
use crate::world::event::{Chain, SimEvent};
use crate::world::script::{STREAMS, Streams, Turn};

impl World {
    fn streams(&mut self) -> [&mut Prng; STREAMS] {
        [
            &mut self.prng,
            &mut self.snapshot_prng,
            &mut self.turn_prng,
            &mut self.program_prng,
            &mut self.member_prng,
            &mut self.links.prng,
            &mut self.network.prng,
            &mut self.clients.prng,
        ]
    }

    fn states_of_streams(&mut self) -> Streams {
        self.streams().map(|stream| stream.clone())
    }

    /// Executes an event.
    ///
    /// # Errors
    /// The rule that was broken.
    pub(crate) fn execute(&mut self, what: SimEvent) -> Result<(), Violation> {
        let chain = match what {
            SimEvent::Chain(chain) if self.script.is_on() && !self.healed => chain,
            _ => return self.do_it(what),
        };
        let mine = self.states_of_streams();
        match self.script.begin(chain, self.now, &mine) {
            Turn::Plain => self.do_it(what),
            Turn::Unknown => Ok(()),
            Turn::Recorded(place) => {
                let (counts, calls) = (self.counts.clone(), self.clients.calls());
                let result = self.do_it(what);
                let faults = self.counts.faults_since(&counts);
                let has_effect = match chain {
                    Chain::Client(_) => self.clients.calls() > calls,
                    // Nothing is counted at once.
                    Chain::SnapshotRequest | Chain::ProgramChange => true,
                    _ => !faults.is_empty(),
                };
                let streams = self.states_of_streams();
                self.script.recorded(place, streams, faults, has_effect);
                result
            }
            Turn::Kept { before } => {
                let counts = self.counts.clone();
                for (stream, before) in self.streams().into_iter().zip(&before) {
                    *stream = before.clone();
                }
                let result = self.do_it(what);
                for ((stream, before), mine) in self.streams().into_iter().zip(before).zip(mine) {
                    if before != mine {
                        *stream = mine;
                    }
                }
                let faults = self.counts.faults_since(&counts);
                self.script.followed(chain, faults);
                result
            }
            Turn::LeftOut { before, after } => {
                for ((stream, before), after) in self.streams().into_iter().zip(before).zip(after) {
                    if *stream == before {
                        *stream = after;
                    }
                }
                if let Some(at) = self.script.next_at(chain) {
                    self.after(at.saturating_sub(self.now), SimEvent::Chain(chain));
                }
                Ok(())
            }
        }
    }
}
