//! [`KvClient`]: the calls of the key-value machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d_engine_kv_language::{
    BATCH_OPERATIONS_MAX, KvCommand, KvOperation, KvQuery, KvQueryReply, KvReply, Page, PutOptions,
    QueryLimitError, Scan, UndecodableError,
};

use crate::{Client, ClientError, ClientOptions, ReadConsistency};

/// A client of a cluster that runs the key-value machine. Cheap to clone, with the deadlines and
/// retries of [`Client`].
///
/// ```no_run
/// # async fn example() -> Result<(), d_engine_client::KvError> {
/// use std::time::Duration;
/// use d_engine_client::{ClientOptions, ReadConsistency, KvClient, PutOptions, Scan};
///
/// let kv = KvClient::connect(["127.0.0.1:7001"], ClientOptions::default())?;
/// kv.put("greeting", "hello").await?;
/// let thirty_seconds = PutOptions::default().ttl(Duration::from_secs(30));
/// kv.put_with("service/a", "10.0.0.1:80", thirty_seconds).await?;
/// let value = kv.get("greeting", ReadConsistency::Linearizable).await?;
/// let page = kv.scan(Scan::prefix("service/"), ReadConsistency::Linearizable).await?;
/// # let _ = (value, page);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KvClient {
    client: Client,
    repeats: Repeats,
    /// Whether the cluster has answered a query of the key-value machine; shared by all clones.
    is_known: Arc<AtomicBool>,
}

/// Whether a command whose outcome is unknown is resent.
#[derive(Clone, Copy, Debug)]
enum Repeats {
    Never,
    UntilTheDeadline,
}

/// The outcome of a put.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutOutcome {
    /// Whether the key had a value before.
    pub existed: bool,
    /// The previous value, if [`PutOptions::previous`] requested it and there was one.
    pub previous: Option<Bytes>,
}

/// The outcome of a compare-and-swap.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a swap may have failed"]
pub enum SwapOutcome {
    /// The value was changed.
    Done,
    /// The key has another value, and nothing was changed. Decide again, given the current value.
    Failed {
        /// The current value; `None` if the key is absent.
        current: Option<Bytes>,
    },
}

/// The outcome of a batch.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a batch may have failed"]
pub enum BatchOutcome {
    /// All operations took effect.
    Done {
        /// For each operation in order, whether its key had a value before it.
        existed: Vec<bool>,
    },
    /// A compare failed, and nothing was changed.
    Failed {
        /// The first operation whose compare failed, counted from 0.
        operation: u32,
        /// The current value of its key; `None` if the key is absent.
        current: Option<Bytes>,
    },
}

/// Why a call of the key-value machine failed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The call itself failed; the error says whether the command may have taken effect.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The machine cannot execute the command, for example because its version is older. Not done;
    /// do not retry.
    #[error("the key-value machine rejected the command: {reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// The cluster runs another state machine. Nothing was proposed; use [`Client`] with that
    /// machine's own commands.
    #[error(
        "the cluster runs another state machine, not the key-value machine: {reason}; nothing was \
         proposed"
    )]
    OtherMachine {
        /// How it answered a query of the key-value machine.
        reason: String,
    },
    /// The query is larger than what one query may return. Nothing was sent; request less.
    #[error(transparent)]
    Limit(#[from] QueryLimitError),
    /// The batch has too many operations. Nothing was sent; split it, if its parts may take effect
    /// separately.
    #[error("the batch has {operations} operations; at most {BATCH_OPERATIONS_MAX} are allowed")]
    BatchTooLong {
        /// Number of operations in it.
        operations: usize,
    },
    /// The reply cannot be decoded. A command may have taken effect. Check that the cluster runs
    /// the key-value machine, in a version no newer than this client's.
    #[error("the reply cannot be decoded: {0}; check that the cluster runs the key-value machine")]
    Unreadable(#[from] UndecodableError),
    /// The reply to a read cannot be decoded. Nothing was changed. Check as for
    /// [`KvError::Unreadable`].
    #[error(
        "the reply to the read cannot be decoded: {0}; check that the cluster runs the key-value \
         machine"
    )]
    UnreadableRead(UndecodableError),
}

impl KvError {
    /// Whether the command may have taken effect or may still take effect.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Client(ClientError::OutcomeUnknown { .. }) | Self::Unreadable(_))
    }
}

impl KvClient {
    /// Creates a key-value client that sends its calls through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, repeats: Repeats::Never, is_known: Arc::default() }
    }

    /// Creates a client of the cluster that has nodes at `endpoints`; see [`Client::new`].
    ///
    /// # Errors
    /// [`ClientError::BadEndpoint`] if an address is invalid or none is given.
    pub fn connect(
        endpoints: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Client::new(endpoints, options).map(Self::new)
    }

    /// Returns the underlying client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Returns this client with another timeout for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), ..self.clone() }
    }

    /// Returns this client with commands that may safely take effect more than once: while the
    /// outcome of one is unknown, it is resent until the deadline, as with
    /// [`Client::propose_idempotent`].
    #[must_use]
    pub fn idempotent(&self) -> Self {
        Self { repeats: Repeats::UntilTheDeadline, ..self.clone() }
    }

    /// Sets the value of `key`; returns whether it had one before. The value does not expire.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<bool, KvError> {
        Ok(self.put_with(key, value, PutOptions::default()).await?.existed)
    }

    /// Sets the value of `key`, with a time to live, or returning the previous value, or both.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn put_with(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<PutOutcome, KvError> {
        match self.command(&KvCommand::put_with(key, value, options)).await? {
            KvReply::Done { existed } => Ok(PutOutcome { existed, previous: None }),
            KvReply::Replaced { previous } => {
                Ok(PutOutcome { existed: previous.is_some(), previous })
            }
            _ => Err(unexpected()),
        }
    }

    /// Deletes `key`; returns whether it had a value.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, KvError> {
        match self.command(&KvCommand::delete(key)).await? {
            KvReply::Done { existed } => Ok(existed),
            _ => Err(unexpected()),
        }
    }

    /// Sets `key` to `value` (`None` deletes it) if its current value is `expected` (`None`: it has
    /// none).
    ///
    /// # Errors
    /// See [`KvError`]. A failed compare is an outcome, not an error.
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        value: Option<Bytes>,
    ) -> Result<SwapOutcome, KvError> {
        match self.command(&KvCommand::compare_and_swap(key, expected, value)).await? {
            KvReply::Done { .. } => Ok(SwapOutcome::Done),
            KvReply::CompareFailed { current } => Ok(SwapOutcome::Failed { current }),
            _ => Err(unexpected()),
        }
    }

    /// Executes operations atomically and in order, each seeing the effects of those before it; if
    /// a compare fails, none takes effect.
    ///
    /// # Errors
    /// See [`KvError`]. A failed compare is an outcome, not an error.
    pub async fn batch(
        &self,
        operations: impl IntoIterator<Item = KvOperation>,
    ) -> Result<BatchOutcome, KvError> {
        let operations: Vec<KvOperation> = operations.into_iter().collect();
        if operations.len() > BATCH_OPERATIONS_MAX {
            return Err(KvError::BatchTooLong { operations: operations.len() });
        }
        match self.command(&KvCommand::Batch(operations)).await? {
            KvReply::BatchDone { existed } => Ok(BatchOutcome::Done { existed }),
            KvReply::BatchFailed { operation, current } => {
                Ok(BatchOutcome::Failed { operation, current })
            }
            _ => Err(unexpected()),
        }
    }

    /// Returns the value of `key`.
    ///
    /// # Errors
    /// See [`KvError`]. A read may always be retried.
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
        consistency: ReadConsistency,
    ) -> Result<Option<Bytes>, KvError> {
        Ok(self.client.get(key, consistency).await?)
    }

    /// Returns the values of several keys, in the order of the keys, all from one applied state.
    ///
    /// # Errors
    /// See [`KvError`]. A read may always be retried.
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<Bytes>>,
        consistency: ReadConsistency,
    ) -> Result<Vec<Option<Bytes>>, KvError> {
        match self.question(&KvQuery::get_many(keys), consistency).await? {
            KvQueryReply::Values(values) => Ok(values),
            _ => Err(unexpected_read()),
        }
    }

    /// Returns one page of records in the order of their keys. [`KvClient::pages`] fetches all
    /// pages.
    ///
    /// # Errors
    /// See [`KvError`]. A read may always be retried.
    pub async fn scan(&self, scan: Scan, consistency: ReadConsistency) -> Result<Page, KvError> {
        match self.question(&KvQuery::Scan(scan), consistency).await? {
            KvQueryReply::Page(page) => Ok(page),
            _ => Err(unexpected_read()),
        }
    }

    /// Returns the pages of a scan, one after the other. Each page is from one applied state;
    /// writes between two pages show in the later one.
    #[must_use]
    pub fn pages(&self, scan: Scan, consistency: ReadConsistency) -> Pages {
        Pages { kv: self.clone(), scan: Some(scan), consistency }
    }

    /// Checks, before the first command, that the cluster runs the key-value machine: another state
    /// machine could execute the command's bytes as a command of its own.
    async fn check_machine(&self) -> Result<(), KvError> {
        if self.is_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let question = KvQuery::get_many([Bytes::new()]);
        match self.question(&question, ReadConsistency::Eventual).await {
            Ok(_) => self.is_known.store(true, Ordering::Relaxed),
            Err(
                error @ (KvError::UnreadableRead(_)
                | KvError::Client(
                    ClientError::Unsupported { .. } | ClientError::StateMachineFailed { .. },
                )),
            ) => return Err(KvError::OtherMachine { reason: error.to_string() }),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn command(&self, command: &KvCommand) -> Result<KvReply, KvError> {
        let bytes = command.encode();
        self.client.check_size(&bytes)?;
        self.check_machine().await?;
        let reply = match self.repeats {
            Repeats::Never => self.client.propose(bytes).await?,
            Repeats::UntilTheDeadline => self.client.propose_idempotent(bytes).await?,
        };
        match KvReply::decode(&reply)? {
            KvReply::Rejected { reason } => Err(KvError::Rejected { reason }),
            reply => Ok(reply),
        }
    }

    async fn question(
        &self,
        query: &KvQuery,
        consistency: ReadConsistency,
    ) -> Result<KvQueryReply, KvError> {
        query.check()?;
        let answer = self.client.query(query.encode(), consistency).await?;
        KvQueryReply::decode(&answer).map_err(KvError::UnreadableRead)
    }
}

/// The error for a reply of the wrong kind, which the key-value machine in this version does not
/// return.
fn unexpected() -> KvError {
    KvError::Unreadable(UndecodableError::Unknown)
}

/// The same for a reply to a query.
fn unexpected_read() -> KvError {
    KvError::UnreadableRead(UndecodableError::Unknown)
}

/// The pages of a scan; see [`KvClient::pages`].
#[derive(Clone, Debug)]
pub struct Pages {
    kv: KvClient,
    /// `None` after the last page.
    scan: Option<Scan>,
    consistency: ReadConsistency,
}

impl Pages {
    /// Returns the next page; `None` after the last one. After an error, call it again for the same
    /// page.
    ///
    /// # Errors
    /// As [`KvClient::scan`].
    pub async fn next_page(&mut self) -> Result<Option<Page>, KvError> {
        let Some(scan) = &self.scan else { return Ok(None) };
        let page = self.kv.scan(scan.clone(), self.consistency).await?;
        self.scan = page.next.clone().map(|next| scan.clone().after(next));
        Ok(Some(page))
    }
}
