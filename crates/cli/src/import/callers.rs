//! The callers of an import: many concurrent puts, through changes of leaders.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use d_engine_client::{ClientError, KvClient, KvError};
use d_engine_locks::Unpoisoned;
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::input::Record;
use crate::exit::Failure;

/// A running import. Dropping it ends the callers.
pub(crate) struct Import {
    shared: Arc<Shared>,
    callers: JoinSet<Result<(), Failure>>,
}

/// Settings of an import.
pub(crate) struct Manner {
    /// Concurrent callers, each with one put in flight.
    pub(crate) callers: usize,
    /// How long the put of one record may take, retries included.
    pub(crate) timeout: Duration,
    /// Called after each acknowledgement with their number so far.
    pub(crate) on_acknowledged: Box<dyn Fn(usize) + Send + Sync>,
}

/// A record that the cluster will never accept.
#[derive(Clone, Serialize, Debug)]
pub(crate) struct Refused {
    pub(crate) key: String,
    pub(crate) reason: String,
}

/// State that the callers share.
struct Shared {
    kv: KvClient,
    records: Arc<Vec<Record>>,
    bar: ProgressBar,
    manner: Manner,
    taken: Mutex<Taken>,
    acknowledged: AtomicUsize,
    /// Puts repeated because their outcome was unknown.
    repeated: AtomicUsize,
    refused: Mutex<Vec<Refused>>,
    stopping: AtomicBool,
}

/// Which records the callers have taken.
#[derive(Default)]
struct Taken {
    /// The next record to take.
    next: usize,
    /// Taken records that are neither acknowledged nor refused.
    open: BTreeSet<usize>,
}

/// Why a record was not put.
enum NotPut {
    /// The record will never be accepted; others may be.
    Refused(String),
    /// The cluster did not answer; other records would fail too.
    Failed(Failure),
}

impl Import {
    /// Starts the callers.
    pub(crate) fn start(
        kv: KvClient,
        records: Arc<Vec<Record>>,
        manner: Manner,
        bar: ProgressBar,
    ) -> Self {
        let callers_wanted = manner.callers;
        let shared = Arc::new(Shared {
            kv,
            records,
            bar,
            manner,
            taken: Mutex::default(),
            acknowledged: AtomicUsize::new(0),
            repeated: AtomicUsize::new(0),
            refused: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let mut callers = JoinSet::new();
        for _ in 0..callers_wanted {
            callers.spawn(shared.clone().call());
        }
        Self { shared, callers }
    }

    /// Returns the number of records acknowledged so far.
    pub(crate) fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Returns the number of puts repeated so far.
    pub(crate) fn repeated(&self) -> usize {
        self.shared.repeated.load(Ordering::Relaxed)
    }

    /// Returns the records that the cluster will never accept.
    pub(crate) fn refused(&self) -> Vec<Refused> {
        self.shared.refused.lock().unpoisoned().clone()
    }

    /// Returns the number of records at the beginning that are all acknowledged or refused, so that
    /// a continued import can skip them.
    pub(crate) fn settled(&self) -> usize {
        let taken = self.shared.taken();
        taken.open.first().copied().unwrap_or(taken.next)
    }

    /// Takes no further records; the puts in flight finish.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
    }

    /// Puts one record, as a caller does.
    pub(crate) async fn put(&self, record: &Record) -> Result<(), Failure> {
        self.shared.put(record).await.map_err(|not_put| match not_put {
            NotPut::Refused(reason) => Failure::failed(reason),
            NotPut::Failed(failure) => failure,
        })
    }

    /// Waits until the callers have ended; returns early with the first failure.
    pub(crate) async fn finish(&mut self) -> Result<(), Failure> {
        self.until(&Notify::new()).await
    }

    /// Waits for a notification or for the end of all callers; returns early with the first
    /// failure.
    pub(crate) async fn until(&mut self, notify: &Notify) -> Result<(), Failure> {
        loop {
            tokio::select! {
                () = notify.notified() => return Ok(()),
                ended = self.callers.join_next() => match ended {
                    None => return Ok(()),
                    Some(Ok(result)) => result?,
                    Some(Err(panic)) => {
                        return Err(Failure::failed(format!(
                            "a caller of the import failed: {panic}"
                        )));
                    }
                },
            }
        }
    }
}

impl Shared {
    /// Runs one caller, which puts one record after the other.
    async fn call(self: Arc<Self>) -> Result<(), Failure> {
        while let Some((index, record)) = self.take() {
            match self.put(record).await {
                Ok(()) => {
                    let acknowledged = self.acknowledged.fetch_add(1, Ordering::AcqRel) + 1;
                    (self.manner.on_acknowledged)(acknowledged);
                }
                Err(NotPut::Refused(reason)) => {
                    let key = String::from_utf8_lossy(&record.key).into_owned();
                    let mut refused = self.refused.lock().unpoisoned();
                    refused.push(Refused { key, reason });
                }
                Err(NotPut::Failed(failure)) => return Err(failure),
            }
            self.bar.inc(1);
            self.taken().open.remove(&index);
        }
        Ok(())
    }

    fn take(&self) -> Option<(usize, &Record)> {
        if self.stopping.load(Ordering::Acquire) {
            return None;
        }
        let mut taken = self.taken();
        let index = taken.next;
        let record = self.records.get(index)?;
        taken.next += 1;
        taken.open.insert(index);
        Some((index, record))
    }

    /// Puts one record and repeats the put while the outcome is unknown. That is safe: a second put
    /// of the same value changes nothing, and only one caller puts each key.
    async fn put(&self, record: &Record) -> Result<(), NotPut> {
        let deadline = Instant::now() + self.manner.timeout;
        loop {
            match self.kv.put(record.key.clone(), record.value.clone()).await {
                Ok(_) => return Ok(()),
                Err(KvError::Client(ClientError::OutcomeUnknown { .. }))
                    if Instant::now() < deadline =>
                {
                    self.repeated.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) => {
                    let key = String::from_utf8_lossy(&record.key);
                    return Err(match error {
                        KvError::Rejected { .. }
                        | KvError::Client(
                            ClientError::TooLarge { .. } | ClientError::Refused { .. },
                        ) => NotPut::Refused(error.to_string()),
                        error => NotPut::Failed(Failure::failed(format!(
                            "the put of {key:?} failed: {error}"
                        ))),
                    });
                }
            }
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unpoisoned()
    }
}
