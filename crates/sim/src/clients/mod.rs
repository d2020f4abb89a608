//! Clients that contend for a few keys, and the history of what they observed.

pub(crate) mod keys;
pub(crate) mod linearizability;
pub(crate) mod messages;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::ReadMode;
use d_engine_kv::KvReply;
use d_engine_locks::Unpoisoned;
use d_engine_replica::{ProposeError, ReadError};

use crate::clients::keys::{expiring_bytes, expiring_slots, key_bytes, parse_value};
use crate::clients::linearizability::{Action, Operation, Verdict, check};
use crate::monitors::expiry::Expiring;
use crate::monitors::violation::{Rule, Violation};
use crate::prng::Prng;
use crate::profile::Profile;

/// The response to an operation.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The state machine's reply to a command.
    Command(Result<Bytes, ProposeError>),
    /// The outcome of a read barrier.
    Barrier(Result<u64, ReadError>),
}

/// Responses with their operation and node; the replicas' responders fill it.
pub(crate) type Mailbox = Arc<Mutex<Vec<(usize, u64, Answer)>>>;

/// How many keys expire.
const EXPIRING_SLOTS: u64 = 12;
/// The longest time to live of a key that expires.
pub(crate) const LONGEST_TTL_MS: u64 = 3_000;

/// The operation that a client wants to perform.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    /// Set the key to a new value.
    Put(u64),
    /// Remove the key.
    Delete,
    /// Read the key; confirmed in this way.
    Get { mode: ReadMode },
    /// Set the key and its sibling to one new value, in one batch.
    PutBoth(u64),
    /// Read the key and its sibling at the same moment.
    GetBoth,
    /// Set two keys that expire to this value for this many milliseconds, in one batch.
    Expiring(u64, u64),
    /// Read a key that expires.
    GetExpiring(u64),
    /// Change the key from the value that was last seen to a new one.
    Cas(Option<u64>, u64),
}

#[derive(Clone, Debug)]
struct Request {
    client: usize,
    key: u64,
    wish: Wish,
    called: u64,
}

/// One client: at most one operation at a time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// The node it talks to.
    pub(crate) target: u64,
    /// The operation whose response it waits for.
    pub(crate) waiting: Option<usize>,
    last_seen: BTreeMap<u64, Option<u64>>,
}

/// All clients of a run and their history.
#[derive(Debug)]
pub(crate) struct Clients {
    pub(crate) prng: Prng,
    all: Vec<Client>,
    requests: Vec<Request>,
    /// The history of each pair of keys.
    history: BTreeMap<u64, Vec<Operation>>,
    pub(crate) expiring: Expiring,
    next_value: u64,
    mailbox: Mailbox,
    /// Operations that succeeded.
    pub(crate) succeeded: u64,
    /// Operations that certainly did not happen.
    pub(crate) refused: u64,
    /// Operations of unknown outcome.
    pub(crate) unknown: u64,
}

impl Clients {
    /// Creates the clients of a run.
    #[must_use]
    pub(crate) fn new(seed: u64, profile: &Profile) -> Self {
        let mut prng = Prng::stream(seed, "clients");
        let all = (0..profile.clients)
            .map(|_| Client { target: prng.between(1, profile.nodes), ..Client::default() })
            .collect();
        Self {
            prng,
            all,
            requests: Vec::new(),
            history: BTreeMap::new(),
            expiring: Expiring::default(),
            next_value: 0,
            mailbox: Mailbox::default(),
            succeeded: 0,
            refused: 0,
            unknown: 0,
        }
    }

    /// Takes the responses that have come in since the last call: operation, node, response.
    #[must_use]
    pub(crate) fn take_answers(&self) -> Vec<(usize, u64, Answer)> {
        std::mem::take(&mut *self.mailbox.lock().unpoisoned())
    }

    /// Returns the number of calls that were begun.
    pub(crate) fn calls(&self) -> usize {
        self.requests.len()
    }

    /// Returns the node that `client` talks to.
    #[must_use]
    pub(crate) fn target(&self, client: usize) -> u64 {
        self.all.get(client).map_or(1, |client| client.target)
    }

    /// Returns the keys that an operation reads.
    #[must_use]
    pub(crate) fn keys_of(&self, operation: usize) -> Vec<Bytes> {
        let Some(request) = self.requests.get(operation) else { return Vec::new() };
        match request.wish {
            Wish::GetBoth => [0, 1].map(|slot| key_bytes(request.key & !1 | slot)).to_vec(),
            Wish::GetExpiring(slot) => vec![expiring_bytes(slot)],
            _ => vec![key_bytes(request.key)],
        }
    }

    /// Returns whether `operation` is still the one that its client waits for.
    #[must_use]
    pub(crate) fn is_waiting_for(&self, operation: usize) -> bool {
        self.requests
            .get(operation)
            .and_then(|request| self.all.get(request.client))
            .is_some_and(|client| client.waiting == Some(operation))
    }

    /// Returns the operation that `client` waits for.
    #[must_use]
    pub(crate) fn waits_for(&self, client: usize) -> Option<usize> {
        self.all.get(client).and_then(|client| client.waiting)
    }

    /// Returns whether `client` waits for a response.
    #[must_use]
    pub(crate) fn is_busy(&self, client: usize) -> bool {
        self.all.get(client).is_some_and(|client| client.waiting.is_some())
    }

    /// Begins an operation of `client` at `now`; returns its number.
    pub(crate) fn begin(&mut self, client: usize, now: u64, profile: &Profile) -> usize {
        let key = self.prng.below(profile.keys);
        self.next_value += 1;
        let last_seen =
            self.all.get(client).and_then(|client| client.last_seen.get(&key)).copied().flatten();
        let wish = match self.prng.below(100) {
            0..=14 => Wish::Get { mode: ReadMode::Round },
            15..=29 => Wish::Get { mode: ReadMode::Lease },
            30..=35 => Wish::GetBoth,
            36..=41 => Wish::GetExpiring(self.prng.below(EXPIRING_SLOTS)),
            42..=48 => Wish::PutBoth(self.next_value),
            49..=74 => Wish::Put(self.next_value),
            75..=79 => Wish::Delete,
            80..=84 => Wish::Expiring(self.next_value, self.prng.between(1, LONGEST_TTL_MS)),
            _ => Wish::Cas(last_seen, self.next_value),
        };
        let operation = self.requests.len();
        self.requests.push(Request { client, key, wish, called: now });
        if let Some(client) = self.all.get_mut(client) {
            client.waiting = Some(operation);
        }
        operation
    }

    /// Ends an operation that got no response in time: a write may still take effect.
    pub(crate) fn give_up(&mut self, operation: usize, nodes: u64) {
        self.finish(operation, None, None);
        self.retarget(operation, None, nodes);
    }

    /// Handles a response; for a read, with the values found.
    ///
    /// # Errors
    /// The state machine's reply is not one that the command can have.
    pub(crate) fn answered(
        &mut self,
        operation: usize,
        answer: &Answer,
        values: &[Option<Bytes>],
        now: u64,
        nodes: u64,
    ) -> Result<(), Violation> {
        let Some(request) = self.requests.get(operation).cloned() else { return Ok(()) };
        match answer {
            Answer::Barrier(Ok(_)) => {
                self.was_read(operation, &request, values, now)?;
            }
            Answer::Command(Ok(reply)) if matches!(request.wish, Wish::Expiring(..)) => {
                if !matches!(KvReply::decode(reply), Ok(KvReply::BatchDone { .. })) {
                    return Rule::Replies
                        .broken(format_args!("unexpected reply to {:?}: {reply:?}", request.wish));
                }
                self.succeeded += 1;
                self.wrote_expiring(&request, Some(now));
                self.release(operation);
            }
            Answer::Command(Ok(reply)) => {
                let action = self.action(&request, reply)?;
                self.finish(operation, Some(now), Some(action));
            }
            Answer::Command(Err(ProposeError::OutcomeUnknown { .. })) => {
                self.finish(operation, None, None);
                self.retarget(operation, None, nodes);
            }
            Answer::Command(Err(error)) => {
                let hint = match error {
                    ProposeError::NotLeader { leader: Some(leader) } => Some(leader.node.get()),
                    _ => None,
                };
                self.refuse(operation);
                self.retarget(operation, hint, nodes);
            }
            Answer::Barrier(Err(error)) => {
                let hint = match error {
                    ReadError::NotLeader { leader: Some(leader) } => Some(leader.node.get()),
                    _ => None,
                };
                self.refuse(operation);
                self.retarget(operation, hint, nodes);
            }
        }
        Ok(())
    }

    /// Handles the values that a read has found.
    fn was_read(
        &mut self,
        operation: usize,
        request: &Request,
        values: &[Option<Bytes>],
        now: u64,
    ) -> Result<(), Violation> {
        let mut seen = Vec::new();
        for value in values {
            seen.push(value.as_ref().map(parse_value).transpose()?);
        }
        let one = |place: usize| seen.get(place).copied().flatten();
        match request.wish {
            Wish::GetBoth => {
                self.finish(operation, Some(now), Some(Action::GetBoth([one(0), one(1)])));
            }
            Wish::GetExpiring(slot) => {
                self.succeeded += 1;
                self.expiring.read(slot, request.called, now, one(0));
                self.release(operation);
            }
            _ => {
                self.see(request.client, request.key, one(0));
                self.finish(operation, Some(now), Some(Action::Get(one(0))));
            }
        }
        Ok(())
    }

    fn action(&mut self, request: &Request, reply: &Bytes) -> Result<Action, Violation> {
        let reply = KvReply::decode(reply).map_err(|error| {
            Violation::of(Rule::Replies, format_args!("a reply cannot be read: {error}"))
        })?;
        match (request.wish, reply) {
            (Wish::Put(new), KvReply::Done { .. }) => {
                self.see(request.client, request.key, Some(new));
                Ok(Action::Put(new))
            }
            (Wish::PutBoth(new), KvReply::BatchDone { .. }) => {
                self.see(request.client, request.key, Some(new));
                Ok(Action::PutBoth(new))
            }
            (Wish::Delete, KvReply::Done { .. }) => {
                self.see(request.client, request.key, None);
                Ok(Action::Delete)
            }
            (Wish::Cas(expected, new), KvReply::Done { .. }) => {
                self.see(request.client, request.key, Some(new));
                Ok(Action::CasDone { expected, new })
            }
            (Wish::Cas(expected, _), KvReply::CompareFailed { current }) => {
                let found = current.map(|value| parse_value(&value)).transpose()?;
                self.see(request.client, request.key, found);
                Ok(Action::CasRefused { expected, found })
            }
            (wish, reply) => {
                Rule::Replies.broken(format_args!("unexpected reply to {wish:?}: {reply:?}"))
            }
        }
    }

    fn see(&mut self, client: usize, key: u64, value: Option<u64>) {
        if let Some(client) = self.all.get_mut(client) {
            client.last_seen.insert(key, value);
        }
    }

    fn refuse(&mut self, operation: usize) {
        self.refused += 1;
        self.release(operation);
    }

    fn release(&mut self, operation: usize) {
        let client = self.requests.get(operation).map(|request| request.client);
        if let Some(client) = client.and_then(|client| self.all.get_mut(client)) {
            client.waiting = None;
        }
    }

    /// Adds an operation to the history. Without an action its outcome is unknown.
    fn finish(&mut self, operation: usize, returned: Option<u64>, action: Option<Action>) {
        self.release(operation);
        let Some(request) = self.requests.get(operation).cloned() else { return };
        let action = match (action, request.wish) {
            (Some(action), _) => action,
            (None, Wish::Put(new)) => Action::Put(new),
            (None, Wish::PutBoth(new)) => Action::PutBoth(new),
            (None, Wish::Delete) => Action::Delete,
            (None, Wish::Cas(expected, new)) => Action::CasUnknown { expected, new },
            // A read without a response has observed nothing.
            (None, Wish::Get { .. } | Wish::GetBoth | Wish::GetExpiring(_)) => return,
            (None, Wish::Expiring(..)) => {
                self.wrote_expiring(&request, None);
                return;
            }
        };
        if returned.is_some() {
            self.succeeded += 1;
        } else {
            self.unknown += 1;
        }
        let slot = usize::try_from(request.key % 2).unwrap_or(0);
        let operation = Operation { called: request.called, returned, slot, action };
        self.history.entry(request.key / 2).or_default().push(operation);
    }

    fn wrote_expiring(&mut self, request: &Request, returned: Option<u64>) {
        if let Wish::Expiring(value, ttl_ms) = request.wish {
            self.expiring.wrote(&expiring_slots(value), value, ttl_ms, request.called, returned);
        }
    }

    fn retarget(&mut self, operation: usize, hint: Option<u64>, nodes: u64) {
        let anywhere = self.prng.between(1, nodes);
        // Some clients ignore the hint, so that deposed leaders are called too.
        let target = if self.prng.chance(200_000) { anywhere } else { hint.unwrap_or(anywhere) };
        let client = self.requests.get(operation).map(|request| request.client);
        if let Some(client) = client.and_then(|client| self.all.get_mut(client)) {
            client.target = target;
        }
    }

    /// Ends the run: operations that still wait have an unknown outcome.
    pub(crate) fn close(&mut self) {
        let waiting: Vec<usize> = self.all.iter().filter_map(|client| client.waiting).collect();
        for operation in waiting {
            self.finish(operation, None, None);
        }
    }

    /// Checks the histories, pair by pair.
    ///
    /// # Errors
    /// The pair of keys whose history is not linearizable, or too hard to check.
    pub(crate) fn judge(&self) -> Result<(), Violation> {
        for (key, history) in &self.history {
            match check(history, 3_000_000) {
                Verdict::Linearizable => {}
                Verdict::Violation(operation) => {
                    return Rule::Linearizability.broken(format_args!(
                        "the history of keys {} and {} ({} operations) is not \
                         linearizable; no order explains {operation:?}",
                        2 * key,
                        2 * key + 1,
                        history.len()
                    ));
                }
                Verdict::Unknown => {
                    return Rule::Linearizability.broken(format_args!(
                        "the history of keys {} and {} ({} operations) is too \
                         hard to check",
                        2 * key,
                        2 * key + 1,
                        history.len()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Makes `client` talk to `node`.
    pub(crate) fn send_to(&mut self, client: usize, node: u64) {
        if let Some(client) = self.all.get_mut(client) {
            client.target = node;
        }
    }

    /// Sometimes redirects a client's next operation to any node, whatever node it knows as leader.
    pub(crate) fn wander(&mut self, client: usize, nodes: u64) {
        let target = self.prng.between(1, nodes);
        if self.prng.chance(50_000)
            && let Some(client) = self.all.get_mut(client)
        {
            client.target = target;
        }
    }
}
