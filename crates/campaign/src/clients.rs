//! Clients that contend for pairs of keys through the network client.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d_engine_client::{
    BatchOutcome, ClientError, ClientOptions, KvClient, KvError, KvOperation, ReadConsistency,
    SwapOutcome,
};
use d_engine_sim::{Action, Operation, Prng};

use crate::history::{Group, Pair};
use crate::net::founders;
use crate::record::Record;
use crate::shell::{Outcome, doing};
use crate::view::View;

/// A call's timeout: longer than an election, shorter than most faults.
const DEADLINE: Duration = Duration::from_secs(3);
/// The longest pause between two operations of a client, in milliseconds.
const PAUSE_MAX_MS: u64 = 100;
/// The longest padding of a value, in bytes; some values have nearly as much.
const VALUE_MAX: u64 = 200_000;

/// The next value to write; every value is written once.
static NEXT_VALUE: AtomicU64 = AtomicU64::new(1);

/// Connects a client to the nodes at these addresses.
pub(crate) fn connect(addresses: impl IntoIterator<Item = String>) -> Outcome<KvClient> {
    let options = ClientOptions::default().timeout(DEADLINE);
    KvClient::connect(addresses, options).map_err(doing("a client"))
}

/// A client; it runs one operation at a time.
pub(crate) struct Client {
    record: Arc<Record>,
    group: Arc<Group>,
    prng: Prng,
    view: Arc<View>,
    /// Receives the addresses of the founders, and follows the members from there.
    writer: KvClient,
    /// One client for each address, which calls the node there first.
    readers: BTreeMap<String, KvClient>,
    /// Whether reads are eventual: a planted fault that the checks must find.
    reads_stale: bool,
}

impl Client {
    /// Creates client `number` of a group.
    pub(crate) fn new(
        record: Arc<Record>,
        view: Arc<View>,
        group: Arc<Group>,
        seed: u64,
        number: u64,
        reads_stale: bool,
    ) -> Outcome<Self> {
        let mut nodes = founders();
        let first = usize::try_from(number).unwrap_or_default() % nodes.len();
        nodes.rotate_left(first);
        let prng = Prng::stream(seed, &format!("client {number}"));
        let (writer, readers) = (connect(nodes)?, BTreeMap::new());
        Ok(Self { record, group, prng, view, writer, readers, reads_stale })
    }

    /// Runs operations until the run ends.
    pub(crate) async fn work(mut self) {
        while !self.record.is_over() {
            let pair = self.group.pair();
            self.step(&pair).await;
            tokio::time::sleep(Duration::from_millis(self.prng.below(PAUSE_MAX_MS))).await;
        }
    }

    async fn step(&mut self, pair: &Pair) {
        let slot = usize::from(self.prng.chance(500_000));
        match self.prng.below(100) {
            0..30 => self.put(pair, slot).await,
            30..40 => self.put_both(pair).await,
            40..50 => self.swap(pair, slot).await,
            50..85 => self.get(pair, slot).await,
            _ => self.get_both(pair).await,
        }
    }

    /// Returns a new value and its bytes.
    fn value(&mut self) -> (u64, Bytes) {
        let value = NEXT_VALUE.fetch_add(1, Ordering::Relaxed);
        let length = if self.prng.chance(50_000) { VALUE_MAX } else { 2_000 };
        let padding = usize::try_from(self.prng.below(length)).unwrap_or_default();
        let mut bytes = format!("{value} ").into_bytes();
        bytes.resize(bytes.len() + padding, b'.');
        (value, bytes.into())
    }

    fn reader(&mut self) -> (KvClient, ReadConsistency) {
        // Reads through the writer's client go to the leader that it knows.
        let client = if self.prng.chance(400_000) { None } else { self.client_of_one() };
        let consistency = match self.prng.below(100) {
            _ if self.reads_stale => ReadConsistency::Eventual,
            0..60 => ReadConsistency::Linearizable,
            _ => ReadConsistency::Lease,
        };
        (client.unwrap_or_else(|| self.writer.clone()), consistency)
    }

    /// Returns the client of an address that is drawn.
    fn client_of_one(&mut self) -> Option<KvClient> {
        let addresses = self.view.addresses();
        self.readers.retain(|address, _| addresses.contains(address));
        let address = self.prng.pick(&addresses)?;
        if !self.readers.contains_key(address) {
            self.readers.insert(address.clone(), connect([address.clone()]).ok()?);
        }
        self.readers.get(address).cloned()
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.record.now().as_nanos()).unwrap_or(u64::MAX)
    }

    fn done(&self, pair: &Pair, called: u64, slot: usize, action: Action, is_write: bool) {
        pair.note(Operation { called, returned: Some(self.nanos()), slot, action });
        self.record.ok.fetch_add(1, Ordering::Relaxed);
        if is_write {
            self.record.acknowledged();
        }
    }

    /// Records an operation that failed. If it certainly did not take effect, it is left out of the
    /// history, so that the checker finds it if it took effect after all.
    fn not_done(
        &self,
        pair: &Pair,
        called: u64,
        slot: usize,
        action: Option<Action>,
        error: &KvError,
    ) {
        match action {
            Some(action) if error.is_unknown() => {
                self.record.unknown.fetch_add(1, Ordering::Relaxed);
                pair.note(Operation { called, returned: None, slot, action });
            }
            _ => {
                self.record.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        let is_strange = !matches!(
            error,
            KvError::Client(
                ClientError::NoLeader { .. }
                    | ClientError::Busy { .. }
                    | ClientError::TransferInProgress { .. }
                    | ClientError::OutcomeUnknown { .. }
                    | ClientError::Stopped { .. }
                    | ClientError::Unreachable { .. }
                    | ClientError::DeadlineElapsed { .. }
            )
        );
        if is_strange {
            self.record.finding(&format!("an error that no fault explains: {error}"));
        }
    }

    async fn put(&mut self, pair: &Pair, slot: usize) {
        let (value, bytes) = self.value();
        let (called, action) = (self.nanos(), Action::Put(value));
        match self.writer.put(pair.key(slot), bytes).await {
            Ok(_) => self.done(pair, called, slot, action, true),
            Err(error) => self.not_done(pair, called, slot, Some(action), &error),
        }
    }

    async fn put_both(&mut self, pair: &Pair) {
        let (value, bytes) = self.value();
        let (called, action) = (self.nanos(), Action::PutBoth(value));
        let puts = [0, 1].map(|slot| KvOperation::put(pair.key(slot), bytes.clone()));
        match self.writer.batch(puts).await {
            Ok(BatchOutcome::Done { .. }) => self.done(pair, called, 0, action, true),
            Ok(BatchOutcome::Failed { .. }) => {
                self.record.finding("a batch without a compare failed")
            }
            Err(error) => self.not_done(pair, called, 0, Some(action), &error),
        }
    }

    async fn swap(&mut self, pair: &Pair, slot: usize) {
        // The swap compares with the value's bytes, which are long: read them first, as an
        // operation of its own.
        let Some(found) = self.get_bytes(pair, slot).await else { return };
        let (new, bytes) = self.value();
        let expected = found.as_deref().and_then(number);
        let called = self.nanos();
        match self.writer.compare_and_swap(pair.key(slot), found, Some(bytes)).await {
            Ok(SwapOutcome::Done) => {
                self.done(pair, called, slot, Action::CasDone { expected, new }, true)
            }
            Ok(SwapOutcome::Failed { current }) => {
                let found = current.as_deref().and_then(number);
                self.done(pair, called, slot, Action::CasRefused { expected, found }, true);
            }
            Err(error) => {
                let action = Action::CasUnknown { expected, new };
                self.not_done(pair, called, slot, Some(action), &error);
            }
        }
    }

    async fn get(&mut self, pair: &Pair, slot: usize) {
        self.get_bytes(pair, slot).await;
    }

    /// Returns the value that was read, or `None` if the read failed.
    async fn get_bytes(&mut self, pair: &Pair, slot: usize) -> Option<Option<Bytes>> {
        let (client, consistency) = self.reader();
        let called = self.nanos();
        match client.get(pair.key(slot), consistency).await {
            Ok(found) => {
                let seen = found.as_deref().and_then(number);
                self.done(pair, called, slot, Action::Get(seen), false);
                Some(found)
            }
            Err(error) => {
                self.not_done(pair, called, slot, None, &error);
                None
            }
        }
    }

    async fn get_both(&mut self, pair: &Pair) {
        let (client, consistency) = self.reader();
        let called = self.nanos();
        match client.get_many([pair.key(0), pair.key(1)], consistency).await {
            Ok(found) => {
                let mut seen = found.iter().map(|value| value.as_deref().and_then(number));
                let seen = [seen.next().flatten(), seen.next().flatten()];
                self.done(pair, called, 0, Action::GetBoth(seen), false);
            }
            Err(error) => self.not_done(pair, called, 0, None, &error),
        }
    }
}

/// Returns the number at the beginning of a value. Bytes that no client has written become a number
/// that no client has written.
fn number(bytes: &[u8]) -> Option<u64> {
    let text = bytes.split(|byte| *byte == b' ').next().unwrap_or_default();
    Some(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(u64::MAX))
}

/// Reads every pair once more after the end of all faults, through each node in turn.
pub(crate) async fn read_all(groups: &[Arc<Group>], record: &Record, view: &View) -> Outcome<()> {
    let addresses = view.addresses().into_iter();
    let clients: Vec<KvClient> =
        addresses.map(|address| connect([address])).collect::<Outcome<_>>()?;
    let pairs: Vec<Arc<Pair>> = groups.iter().flat_map(|group| group.pairs()).collect();
    for (pair, client) in pairs.iter().zip(clients.iter().cycle()) {
        let called = u64::try_from(record.now().as_nanos()).unwrap_or(u64::MAX);
        let found = client.with_timeout(Duration::from_secs(20));
        let found = found.get_many([pair.key(0), pair.key(1)], ReadConsistency::Linearizable).await;
        let found = found.map_err(doing("the final reads"))?;
        let mut seen = found.iter().map(|value| value.as_deref().and_then(number));
        let action = Action::GetBoth([seen.next().flatten(), seen.next().flatten()]);
        let returned = Some(u64::try_from(record.now().as_nanos()).unwrap_or(u64::MAX));
        pair.note(Operation { called, returned, slot: 0, action });
    }
    Ok(())
}
