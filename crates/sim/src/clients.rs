//! Clients that fight over a few keys, and the history of what they saw.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use d_engine_core::Instant;
use d_engine_kv::{KvCommand, KvOperation, KvReply};
use d_engine_replica::{Proposal, ProposeError, ReadError, ReadRequest};

use crate::expiry::Expiring;
use crate::linearizability::{Action, Operation, Verdict, check};
use crate::prng::Prng;
use crate::profile::Profile;

/// What came back for an operation.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The state machine's reply to a command.
    Command(Result<Bytes, ProposeError>),
    /// The outcome of a read barrier.
    Barrier(Result<u64, ReadError>),
}

/// Answers by operation, filled by the replicas' responders.
pub(crate) type Mailbox = Arc<Mutex<Vec<(usize, u64, Answer)>>>;

/// The operation of commands that came in a burst.
pub(crate) const OF_BURST: usize = usize::MAX;
/// Keys that expire.
const EXPIRING_SLOTS: u64 = 12;
/// No key that expires lives longer.
pub(crate) const LONGEST_TTL_MS: u64 = 3_000;

/// What a client wants.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    /// Set the key to a new value.
    Put(u64),
    /// Remove the key.
    Delete,
    /// Read the key; the lease may confirm it or not.
    Get { lease: bool },
    /// Set the key and its sibling to one new value, in one batch.
    PutBoth(u64),
    /// Read the key and its sibling at one moment.
    GetBoth,
    /// Set two keys of their own for this many milliseconds, in one batch.
    Expiring(u64, u64),
    /// Read a key that expires.
    GetExpiring(u64),
    /// Change the key from a value seen before to a new one.
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
    /// The operation it waits for.
    pub(crate) waiting: Option<usize>,
    last_seen: BTreeMap<u64, Option<u64>>,
}

/// All clients of a run and their history.
#[derive(Debug)]
pub(crate) struct Clients {
    prng: Prng,
    all: Vec<Client>,
    requests: Vec<Request>,
    /// By pair of keys.
    history: BTreeMap<u64, Vec<Operation>>,
    pub(crate) expiring: Expiring,
    next_value: u64,
    mailbox: Mailbox,
    /// Operations answered with success.
    pub(crate) succeeded: u64,
    /// Operations that certainly did not happen.
    pub(crate) refused: u64,
    /// Operations of unknown outcome.
    pub(crate) unknown: u64,
}

/// What goes to a node.
pub(crate) enum ToNode {
    /// A command.
    Propose(Proposal),
    /// A read barrier.
    Read(ReadRequest),
}

impl Clients {
    /// The clients of a run.
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

    /// Answers that have come in since the last call: operation, node, answer.
    #[must_use]
    pub(crate) fn take_answers(&self) -> Vec<(usize, u64, Answer)> {
        std::mem::take(&mut *self.mailbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The node that `client` talks to.
    #[must_use]
    pub(crate) fn target(&self, client: usize) -> u64 {
        self.all.get(client).map_or(1, |client| client.target)
    }

    /// The keys that an operation reads.
    #[must_use]
    pub(crate) fn keys_of(&self, operation: usize) -> Vec<Bytes> {
        let Some(request) = self.requests.get(operation) else { return Vec::new() };
        match request.wish {
            Wish::GetBoth => [0, 1].map(|slot| key_bytes(request.key & !1 | slot)).to_vec(),
            Wish::GetExpiring(slot) => vec![expiring_bytes(slot)],
            _ => vec![key_bytes(request.key)],
        }
    }

    /// Whether `operation` is still the one its client waits for.
    #[must_use]
    pub(crate) fn is_waiting_for(&self, operation: usize) -> bool {
        self.requests
            .get(operation)
            .and_then(|request| self.all.get(request.client))
            .is_some_and(|client| client.waiting == Some(operation))
    }

    /// The operation that `client` waits for.
    #[must_use]
    pub(crate) fn waits_for(&self, client: usize) -> Option<usize> {
        self.all.get(client).and_then(|client| client.waiting)
    }

    /// Whether `client` waits for an answer.
    #[must_use]
    pub(crate) fn is_busy(&self, client: usize) -> bool {
        self.all.get(client).is_some_and(|client| client.waiting.is_some())
    }

    /// Begins an operation of `client` at `now`; returns its number.
    pub(crate) fn begin(&mut self, client: usize, now: u64, profile: &Profile) -> usize {
        let key = self.prng.below(profile.keys);
        self.next_value += 1;
        let last_seen = self.all.get(client).and_then(|client| client.last_seen.get(&key)).copied().flatten();
        let wish = match self.prng.below(100) {
            0..=14 => Wish::Get { lease: false },
            15..=29 => Wish::Get { lease: true },
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

    /// What `operation` sends to `node`; of no use after `deadline`.
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
            mailbox.lock().unwrap_or_else(PoisonError::into_inner).push((operation, node, answer));
        };
        let key = key_bytes(request.key);
        let value = |value| value_bytes(value, profile.value_bytes);
        let command = match request.wish {
            Wish::Get { lease } => {
                let responder = Box::new(move |result| put(Answer::Barrier(result)));
                return Some(ToNode::Read(ReadRequest { lease, deadline, responder }));
            }
            Wish::GetBoth | Wish::GetExpiring(_) => {
                let responder = Box::new(move |result| put(Answer::Barrier(result)));
                return Some(ToNode::Read(ReadRequest { lease: false, deadline, responder }));
            }
            Wish::Put(new) => KvCommand::put(key, value(new)),
            Wish::PutBoth(new) => {
                let one = |slot| KvOperation::put(key_bytes(request.key & !1 | slot), value(new));
                KvCommand::batch([one(0), one(1)])
            }
            Wish::Delete => KvCommand::delete(key),
            Wish::Expiring(new, ttl_ms) => {
                let ttl = Duration::from_millis(ttl_ms);
                let put = |slot: u64| KvOperation::put_with_ttl(expiring_bytes(slot), value(new), ttl);
                KvCommand::batch(expiring_slots(new).map(put))
            }
            Wish::Cas(expected, new) => {
                KvCommand::compare_and_swap(key, expected.map(value), Some(value(new)))
            }
        };
        let responder = Box::new(move |result| put(Answer::Command(result)));
        Some(ToNode::Propose(Proposal::new(command.encode(), deadline, responder)))
    }

    /// Commands that come in together, on keys that nobody reads.
    #[must_use]
    pub(crate) fn burst(&self, node: u64, count: u64, profile: &Profile) -> Vec<Proposal> {
        let one = |number: u64| {
            let mailbox = self.mailbox.clone();
            let responder = Box::new(move |result| {
                let answer = (OF_BURST, node, Answer::Command(result));
                mailbox.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
            });
            let value = value_bytes(number, profile.value_bytes);
            let command = KvCommand::put(format!("burst-{}", number % 20), value).encode();
            Proposal::new(command, None, responder)
        };
        (0..count).map(one).collect()
    }

    /// Nobody answered in time: a write may yet take effect.
    pub(crate) fn give_up(&mut self, operation: usize, nodes: u64) {
        self.finish(operation, None, None);
        self.retarget(operation, None, nodes);
    }

    /// An answer has come; for a read, with the value found. Returns whether it was a success, or
    /// why the answer cannot be right.
    ///
    /// # Errors
    /// The reply of the state machine is not one that its command can have.
    pub(crate) fn answered(
        &mut self,
        operation: usize,
        answer: &Answer,
        values: &[Option<Bytes>],
        now: u64,
        nodes: u64,
    ) -> Result<(), String> {
        let Some(request) = self.requests.get(operation).cloned() else { return Ok(()) };
        match answer {
            Answer::Barrier(Ok(_)) => {
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
            }
            Answer::Command(Ok(reply)) if matches!(request.wish, Wish::Expiring(..)) => {
                if !matches!(KvReply::decode(reply), Ok(KvReply::BatchDone { .. })) {
                    return Err(format!("{:?} was answered with {reply:?}", request.wish));
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

    fn action(&mut self, request: &Request, reply: &Bytes) -> Result<Action, String> {
        let reply = KvReply::decode(reply).map_err(|error| format!("a reply cannot be read: {error}"))?;
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
            (wish, reply) => Err(format!("{wish:?} was answered with {reply:?}")),
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

    /// Writes an operation into the history. Without an action the outcome is unknown.
    fn finish(&mut self, operation: usize, returned: Option<u64>, action: Option<Action>) {
        self.release(operation);
        let Some(request) = self.requests.get(operation).cloned() else { return };
        let action = match (action, request.wish) {
            (Some(action), _) => action,
            (None, Wish::Put(new)) => Action::Put(new),
            (None, Wish::PutBoth(new)) => Action::PutBoth(new),
            (None, Wish::Delete) => Action::Delete,
            (None, Wish::Cas(expected, new)) => Action::CasUnknown { expected, new },
            // A read without an answer has observed nothing.
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
        // Some clients ignore the hint: old leaders must be asked too.
        let target = if self.prng.chance(200_000) { anywhere } else { hint.unwrap_or(anywhere) };
        let client = self.requests.get(operation).map(|request| request.client);
        if let Some(client) = client.and_then(|client| self.all.get_mut(client)) {
            client.target = target;
        }
    }

    /// The run is over: whoever waits never learns the outcome.
    pub(crate) fn close(&mut self) {
        let waiting: Vec<usize> = self.all.iter().filter_map(|client| client.waiting).collect();
        for operation in waiting {
            self.finish(operation, None, None);
        }
    }

    /// Judges the history, key by key.
    ///
    /// # Errors
    /// The key whose history is not linearizable, or too hard to judge.
    pub(crate) fn judge(&self) -> Result<(), String> {
        for (key, history) in &self.history {
            match check(history, 3_000_000) {
                Verdict::Linearizable => {}
                Verdict::Violation(operation) => {
                    return Err(format!(
                        "linearizability: the history of keys {} and {} ({} operations) has no order; stuck at {operation:?}",
                        2 * key,
                        2 * key + 1,
                        history.len()
                    ));
                }
                Verdict::Unknown => {
                    return Err(format!(
                        "linearizability: the history of keys {} and {} ({} operations) is too hard to judge",
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

    /// Turns a client's next operation loose on another node now and then, whatever it knows.
    pub(crate) fn wander(&mut self, client: usize, nodes: u64) {
        let target = self.prng.between(1, nodes);
        if self.prng.chance(50_000)
            && let Some(client) = self.all.get_mut(client)
        {
            client.target = target;
        }
    }
}

/// The two keys of a batch that expires.
fn expiring_slots(value: u64) -> [u64; 2] {
    [value % 5, 5 + value % 7]
}

fn expiring_bytes(slot: u64) -> Bytes {
    Bytes::from(format!("expiring-{slot}"))
}

fn key_bytes(key: u64) -> Bytes {
    Bytes::from(format!("key-{key}"))
}

/// The number, then padding: equal numbers give equal bytes.
fn value_bytes(value: u64, length: u64) -> Bytes {
    let mut bytes = value.to_be_bytes().to_vec();
    bytes.resize(usize::try_from(length.max(8)).unwrap_or(8), 0x5a);
    Bytes::from(bytes)
}

fn parse_value(bytes: &Bytes) -> Result<u64, String> {
    let head: [u8; 8] = bytes
        .get(..8)
        .and_then(|head| head.try_into().ok())
        .ok_or_else(|| format!("a value of {} bytes was read that nobody wrote", bytes.len()))?;
    Ok(u64::from_be_bytes(head))
}
