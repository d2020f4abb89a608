//! The import: many callers at once, through a change of leaders.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use d_engine_client::{Client, ClientError};
use d_engine_kv::{KvCommand, KvReply};
use indicatif::ProgressBar;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::input::Record;
use crate::exit::Failure;

/// Callers at once, each with one put in flight.
pub(super) const CALLERS: usize = 64;
/// How long one record may take, with all its repetitions.
const PATIENCE: Duration = Duration::from_secs(60);

/// The import while it runs. Dropping it ends the callers.
pub(super) struct Import {
    shared: Arc<Shared>,
    callers: JoinSet<Result<(), Failure>>,
}

/// What the callers share.
struct Shared {
    client: Client,
    records: Arc<Vec<Record>>,
    bar: ProgressBar,
    /// The next record that nobody has taken.
    next: AtomicUsize,
    acknowledged: AtomicUsize,
    /// Puts sent again because their outcome was unknown.
    repeated: AtomicUsize,
    /// Told when so many are acknowledged.
    threshold: usize,
    threshold_reached: Notify,
    /// The leader that was killed, and whether it was.
    killed: OnceLock<String>,
    is_killed: AtomicBool,
    /// When another leader acknowledged something, and who.
    succeeded: Mutex<Option<(Instant, String)>>,
    has_succeeded: Notify,
}

impl Import {
    /// Starts the callers.
    pub(super) fn start(
        client: Client,
        records: Arc<Vec<Record>>,
        threshold: usize,
        bar: ProgressBar,
    ) -> Self {
        let shared = Arc::new(Shared {
            client,
            records,
            bar,
            next: AtomicUsize::new(0),
            acknowledged: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            threshold,
            threshold_reached: Notify::new(),
            killed: OnceLock::new(),
            is_killed: AtomicBool::new(false),
            succeeded: Mutex::new(None),
            has_succeeded: Notify::new(),
        });
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            callers.spawn(shared.clone().call());
        }
        Self { shared, callers }
    }

    /// Waits until the threshold is reached.
    pub(super) async fn threshold_reached(&mut self) -> Result<(), Failure> {
        let shared = self.shared.clone();
        self.until(&shared.threshold_reached).await
    }

    /// Records acknowledged so far.
    pub(super) fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Puts sent again so far.
    pub(super) fn repeated(&self) -> usize {
        self.shared.repeated.load(Ordering::Relaxed)
    }

    /// Says that the leader at this address is about to be killed.
    pub(super) fn leader_dies(&self, address: &str) {
        self.shared.killed.set(address.to_owned()).ok();
        self.shared.is_killed.store(true, Ordering::Release);
    }

    /// Waits until another leader has acknowledged something; returns when, and its address.
    pub(super) async fn succeeded(&mut self) -> Result<(Instant, String), Failure> {
        let shared = self.shared.clone();
        self.until(&shared.has_succeeded).await?;
        if shared.successor().is_none()
            && let Some(record) = shared.records.first()
        {
            // All was imported before the kill had an effect: put a record again, with the same value.
            shared.put(record).await?;
        }
        shared.successor().ok_or_else(|| Failure::failed("no new leader acknowledged anything"))
    }

    /// Waits until every record is acknowledged.
    pub(super) async fn finish(&mut self) -> Result<(), Failure> {
        self.until(&Notify::new()).await
    }

    /// Waits for a notification or for the end of all callers; the first failure of one ends it.
    async fn until(&mut self, notify: &Notify) -> Result<(), Failure> {
        loop {
            tokio::select! {
                () = notify.notified() => return Ok(()),
                ended = self.callers.join_next() => match ended {
                    None => return Ok(()),
                    Some(Ok(result)) => result?,
                    Some(Err(panic)) => return Err(Failure::failed(format!("a caller of the demo: {panic}"))),
                },
            }
        }
    }
}

impl Shared {
    /// One caller: takes record after record.
    async fn call(self: Arc<Self>) -> Result<(), Failure> {
        while let Some(record) = self.records.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            self.put(record).await?;
            self.bar.inc(1);
            if self.acknowledged.fetch_add(1, Ordering::AcqRel) + 1 == self.threshold {
                self.threshold_reached.notify_one();
            }
        }
        Ok(())
    }

    /// Puts one record, again and again while the outcome is unknown: a second put of the same value
    /// changes nothing, and every key is put by one caller only.
    async fn put(&self, record: &Record) -> Result<(), Failure> {
        let command = KvCommand::put(record.key.clone(), record.value.clone()).encode();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.client.propose(command.clone()).await {
                Ok(reply) => {
                    self.note_successor();
                    return match KvReply::decode(&reply) {
                        Ok(KvReply::Done { .. }) => Ok(()),
                        other => Err(Failure::failed(format!("a put was answered with {other:?}"))),
                    };
                }
                Err(ClientError::OutcomeUnknown { .. }) if Instant::now() < deadline => {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let key = String::from_utf8_lossy(&record.key);
                    return Err(Failure::failed(format!("the put of {key:?} failed: {error}")));
                }
            }
        }
    }

    /// After an acknowledgement: notes the first one that is by another leader than the killed one.
    ///
    /// A late answer of the killed leader does not count: the client then still has it as the leader.
    fn note_successor(&self) {
        if !self.is_killed.load(Ordering::Acquire) {
            return;
        }
        let mut succeeded = self.succeeded.lock().unwrap_or_else(PoisonError::into_inner);
        if succeeded.is_some() {
            return;
        }
        if let Some(leader) = self.client.leader()
            && self.killed.get() != Some(&leader)
        {
            *succeeded = Some((Instant::now(), leader));
            self.has_succeeded.notify_one();
        }
    }

    fn successor(&self) -> Option<(Instant, String)> {
        self.succeeded.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
