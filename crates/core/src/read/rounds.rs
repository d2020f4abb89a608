//! Linearizable reads without log entries (Raft thesis, section 6.4).
//!
//! A read is confirmed by a round of heartbeats *sent after the read arrived*. Reads wait; the next
//! round takes all of them along with the commit index of that moment, and replies of a quorum to
//! this round or a later one confirm them. Rounds are numbered within a term, so a reply to an
//! earlier round, however late or often it arrives, confirms nothing (etcd-io/raft pull 397).

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::{LogIndex, NodeId, ReadId};

/// A waiting reader.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reader {
    /// A read of this node's driver.
    Own(ReadId),
    /// A follower, for all reads of its request `token`.
    Follower { node: NodeId, token: u64 },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ReadRounds {
    /// The number of the last round sent; the first is 1.
    last_round: u64,
    waiting: Vec<Reader>,
    in_flight: VecDeque<Round>,
}

#[derive(Clone, Debug)]
struct Round {
    number: u64,
    index: LogIndex,
    reads: Vec<Reader>,
}

impl ReadRounds {
    pub(crate) fn last_round(&self) -> u64 {
        self.last_round
    }

    pub(crate) fn wait(&mut self, reader: Reader) {
        self.waiting.push(reader);
    }

    /// How many reads wait or are being confirmed.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len() + self.in_flight.iter().map(|round| round.reads.len()).sum::<usize>()
    }

    /// Whether reads wait and no round is in flight whose end the next one should await.
    pub(crate) fn wants_round(&self) -> bool {
        !self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// Begins a round and returns its number. Waiting reads join it if `read_index` is known: the
    /// commit index, once an entry of the leader's own term is committed.
    pub(crate) fn begin(&mut self, read_index: Option<LogIndex>) -> u64 {
        self.last_round += 1;
        if let Some(index) = read_index
            && !self.waiting.is_empty()
        {
            let reads = core::mem::take(&mut self.waiting);
            self.in_flight.push_back(Round { number: self.last_round, index, reads });
        }
        self.last_round
    }

    /// A quorum has replied to `round` or a later one.
    pub(crate) fn confirmed(&mut self, round: u64) -> Vec<(Reader, LogIndex)> {
        let mut confirmed = Vec::new();
        while let Some(done) = self.in_flight.pop_front_if(|waiting| waiting.number <= round) {
            confirmed.extend(done.reads.into_iter().map(|reader| (reader, done.index)));
        }
        confirmed
    }

    /// Leadership is lost: nothing can be confirmed any more. Followers notice by themselves.
    pub(crate) fn lose(self, out: &mut Vec<ReadId>) {
        let own = |reader| match reader {
            Reader::Own(read) => Some(read),
            Reader::Follower { .. } => None,
        };
        out.extend(self.in_flight.into_iter().flat_map(|round| round.reads).filter_map(own));
        out.extend(self.waiting.into_iter().filter_map(own));
    }
}
