//! What the clients send to the nodes.

use std::time::Duration;

use d_engine_core::{Instant, ReadMode};
use d_engine_kv::{KvCommand, KvOperation};
use d_engine_locks::Unpoisoned;
use d_engine_replica::{Proposal, ReadRequest};

use crate::clients::keys::{expiring_bytes, expiring_slots, key_bytes, value_bytes};
use crate::clients::{Answer, Clients, Wish};
use crate::profile::Profile;

/// The operation number of all commands of a burst.
const OF_BURST: usize = usize::MAX;

/// What a client sends to a node.
pub(crate) enum ToNode {
    /// A command.
    Propose(Proposal),
    /// A read barrier.
    Read(ReadRequest),
}

impl Clients {
    /// Builds the message of `operation` to `node`. The node drops it after `deadline`.
    #[must_use]
    pub(crate) fn message(
        &self,
        operation: usize,
        node: u64,
        profile: &Profile,
        deadline: Option<Instant>,
    ) -> Option<ToNode> {
        let request = self.requests.get(operation)?;
        let mailbox = self.mailbox.clone();
        let put = move |answer| {
            mailbox.lock().unpoisoned().push((operation, node, answer));
        };
        let key = key_bytes(request.key);
        let value = |value| value_bytes(value, profile.value_bytes);
        let command = match request.wish {
            Wish::Get { mode } => {
                let responder = Box::new(move |result| put(Answer::Barrier(result)));
                return Some(ToNode::Read(ReadRequest { mode, deadline, responder }));
            }
            Wish::GetBoth | Wish::GetExpiring(_) => {
                let responder = Box::new(move |result| put(Answer::Barrier(result)));
                return Some(ToNode::Read(ReadRequest {
                    mode: ReadMode::Round,
                    deadline,
                    responder,
                }));
            }
            Wish::Put(new) => KvCommand::put(key, value(new)),
            Wish::PutBoth(new) => {
                let one = |slot| KvOperation::put(key_bytes(request.key & !1 | slot), value(new));
                KvCommand::batch([one(0), one(1)])
            }
            Wish::Delete => KvCommand::delete(key),
            Wish::Expiring(new, ttl_ms) => {
                let ttl = Duration::from_millis(ttl_ms);
                let put =
                    |slot: u64| KvOperation::put_with_ttl(expiring_bytes(slot), value(new), ttl);
                KvCommand::batch(expiring_slots(new).map(put))
            }
            Wish::Cas(expected, new) => {
                KvCommand::compare_and_swap(key, expected.map(value), Some(value(new)))
            }
        };
        let responder = Box::new(move |result| put(Answer::Command(result)));
        Some(ToNode::Propose(Proposal::new(command.encode(), deadline, responder)))
    }

    /// Builds commands that are proposed together, on keys that no client reads.
    #[must_use]
    pub(crate) fn burst(&self, node: u64, count: u64, profile: &Profile) -> Vec<Proposal> {
        let one = |number: u64| {
            let mailbox = self.mailbox.clone();
            let responder = Box::new(move |result| {
                let answer = (OF_BURST, node, Answer::Command(result));
                mailbox.lock().unpoisoned().push(answer);
            });
            let value = value_bytes(number, profile.value_bytes);
            let command = KvCommand::put(format!("burst-{}", number % 20), value).encode();
            Proposal::new(command, None, responder)
        };
        (0..count).map(one).collect()
    }
}
