//! The receiving end of the connections on which snapshots are sent. Which offer is accepted is
//! decided by `decide_offer`.

use d_engine_core::LogIndex;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{
    Event, OfferDecision, ReceiverStep, Refusal, SnapshotMessage, SnapshotReceiver, decide_offer,
};
use d_engine_storage::snapshot::FullSpeed;

use crate::faults::Sometimes;
use crate::monitors::violation::{Rule, Violation};
use crate::names::node_id;
use crate::world::World;
use crate::world::connections::Way;

/// The largest archive that a node receives, in bytes.
const ARCHIVE_BYTES_MAX: u64 = 1 << 30;

impl World {
    /// A message has arrived at the receiving end.
    pub(crate) fn at_follower(
        &mut self,
        number: u64,
        id: u64,
        message: SnapshotMessage,
    ) -> Result<(), Violation> {
        if message.offered().is_some() && !self.take_place(number, id)? {
            return Ok(());
        }
        self.arm(id, 10);
        let receiver = self.node(id).running.as_mut().and_then(|it| it.receives.get_mut(&number));
        let Some(receiver) = receiver else { return Ok(()) };
        let step = receiver.on_message(message, &mut FullSpeed);
        if self.died_in(id, Sometimes::CrashInReceive) {
            return Ok(());
        }
        match step {
            ReceiverStep::Answer(answer) => {
                self.transmit(number, Way::ToLeader, &answer);
                Ok(())
            }
            ReceiverStep::Refuse(answer) => {
                self.refuse(number, id, &answer);
                Ok(())
            }
            ReceiverStep::Finish => self.received(number, id),
        }
    }

    fn refuse(&mut self, number: u64, id: u64, answer: &SnapshotMessage) {
        self.transmit(number, Way::ToLeader, answer);
        if let Some(running) = self.node(id).running.as_mut() {
            running.receives.remove(&number);
        }
    }

    /// The archive is complete: it is verified, gets its final name, and is passed to the replica.
    fn received(&mut self, number: u64, id: u64) -> Result<(), Violation> {
        self.arm(id, 20);
        let receiver = self.node(id).running.as_mut().and_then(|it| it.receives.get_mut(&number));
        let Some(receiver) = receiver else { return Ok(()) };
        let finished = receiver.finish(&mut FullSpeed);
        if self.died_in(id, Sometimes::CrashInReceive) {
            return Ok(());
        }
        let snapshot = match finished {
            Ok(snapshot) => snapshot,
            Err(answer) => {
                if !self.node(id).may_refuse_files() {
                    return Rule::SnapshotSend.broken_by(
                        id,
                        format_args!(
                            "node {id} cannot use the archive that it received: {answer:?}"
                        ),
                    );
                }
                self.refuse(number, id, &answer);
                return Ok(());
            }
        };
        let last_included = snapshot.last_included;
        let committed = self.exchange.open.get(&number).map_or(LogIndex::ZERO, |it| it.committed);
        let is_stored = last_included.index > committed;
        if let Some(node) =
            self.nodes.get(usize::try_from(id - 1).unwrap_or(usize::MAX)).filter(|_| is_stored)
        {
            self.monitors.snapshots.on_snapshot(id, &node.fs, last_included)?;
        }
        if let Some(running) = self.node(id).running.as_mut() {
            running.installing = Some(last_included);
            running.sent_in = snapshot.term;
        }
        self.transmit(number, Way::ToLeader, &SnapshotMessage::Installing);
        let outcomes = self.exchange.outcomes.clone();
        let responder = Box::new(move |outcome| {
            outcomes.lock().unpoisoned().push((number, outcome));
        });
        self.tell(id, Event::SnapshotReceived { snapshot, responder })
    }

    /// Sends the outcomes of installs since the last call to the senders.
    pub(crate) fn take_outcomes(&mut self) {
        let outcomes = std::mem::take(&mut *self.exchange.outcomes.lock().unpoisoned());
        for (number, outcome) in outcomes {
            let Some(to) = self.exchange.open.get(&number).map(|it| it.to) else { continue };
            if let Some(running) = self.node(to).running.as_mut() {
                running.installing = None;
                running.receives.remove(&number);
            }
            self.transmit(number, Way::ToLeader, &SnapshotReceiver::outcome(outcome));
        }
    }

    /// Handles an offer as [`decide_offer`] decides. Returns whether it is accepted.
    fn take_place(&mut self, number: u64, id: u64) -> Result<bool, Violation> {
        let Some((from, term)) = self.exchange.open.get(&number).map(|it| (it.from, it.term))
        else {
            return Ok(false);
        };
        let receiving: Vec<u64> = match self.node(id).running.as_ref() {
            Some(running) => running.receives.keys().copied().collect(),
            None => return Ok(false),
        };
        for before in receiving {
            self.counts.reached(Sometimes::ReceivesAtOnce);
            let receiving = self.exchange.open.get(&before).map(|it| it.term);
            if let OfferDecision::Refuse(why) = decide_offer(receiving, term) {
                let text = why.to_owned();
                self.refuse(number, id, &SnapshotMessage::Refused { refusal: Refusal::Busy, text });
                return Ok(false);
            }
            self.break_off(before)?;
        }
        let Some(running) = self.node(id).running.as_mut() else { return Ok(false) };
        let (store, committed) =
            (running.snapshots.clone(), running.replica.core().log().committed);
        let receiver = SnapshotReceiver::new(store, node_id(from), ARCHIVE_BYTES_MAX, committed);
        running.receives.insert(number, receiver);
        if let Some(connection) = self.exchange.open.get_mut(&number) {
            connection.committed = committed;
        }
        Ok(true)
    }
}
