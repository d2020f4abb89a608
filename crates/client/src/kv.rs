//! The calls of the key-value machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use d_engine_proto::key_value::{
    BATCH_OPERATIONS_MAX, KvAnswer, KvCommand, KvOperation, KvQuery, KvReply, Page, PutOptions,
    QueryLimitError, Scan, UndecodableError,
};

use crate::{Client, ClientError, ClientOptions, Consistency};

/// A client of a cluster that runs the key-value machine. Cheap to clone, as [`Client`] is, and with the same
/// deadlines and retries.
///
/// ```no_run
/// # async fn example() -> Result<(), d_engine_client::KvError> {
/// use std::time::Duration;
/// use d_engine_client::{ClientOptions, Consistency, KvClient, PutOptions, Scan};
///
/// let kv = KvClient::connect(["127.0.0.1:7001"], ClientOptions::default())?;
/// kv.put("greeting", "hello").await?;
/// kv.put_with("service/a", "10.0.0.1:80", PutOptions::default().ttl(Duration::from_secs(30))).await?;
/// let value = kv.get("greeting", Consistency::Linearizable).await?;
/// let page = kv.scan(Scan::prefix("service/"), Consistency::Linearizable).await?;
/// # let _ = (value, page);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct KvClient {
    client: Client,
    repeats: Repeats,
    /// Whether the cluster has answered a question of the key-value machine; for all clones.
    is_known: Arc<AtomicBool>,
}

/// What becomes of a command whose outcome is unknown.
#[derive(Clone, Copy, Debug)]
enum Repeats {
    Never,
    UntilTheDeadline,
}

/// What a put came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PutOutcome {
    /// Whether the key had a value before.
    pub existed: bool,
    /// The value before, if [`PutOptions::previous`] asked for it and there was one.
    pub previous: Option<Bytes>,
}

/// What a compare-and-swap came to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a swap may have failed"]
pub enum SwapOutcome {
    /// It took effect.
    Done,
    /// Another value was there, and nothing changed. Decide anew with what was found.
    Failed {
        /// The value found; `None`: the key is absent.
        current: Option<Bytes>,
    },
}

/// What a batch came to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[must_use = "a batch may have failed"]
pub enum BatchOutcome {
    /// All of it took effect.
    Done {
        /// For each operation in turn, whether its key had a value before it.
        existed: Vec<bool>,
    },
    /// A compare failed, and nothing changed.
    Failed {
        /// The first operation whose compare failed, counted from 0.
        operation: u32,
        /// The value found there; `None`: the key is absent.
        current: Option<Bytes>,
    },
}

/// Why a call of the key-value machine has no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KvError {
    /// The call itself failed; the error says whether the command may have taken effect.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The machine cannot carry the command out, for example because it is older. Not done; do not retry.
    #[error("the machine rejected the command: {reason}")]
    Rejected {
        /// Why.
        reason: String,
    },
    /// The cluster runs another state machine. Nothing was proposed; use its own commands.
    #[error(
        "the cluster runs another state machine than the key-value machine: {reason}; nothing was sent to its log"
    )]
    OtherMachine {
        /// What it answered to a question of the key-value machine.
        reason: String,
    },
    /// A question beyond what is answered at once. Nothing was sent; ask for less.
    #[error(transparent)]
    Limit(#[from] QueryLimitError),
    /// A batch too long to be carried out as one. Nothing was sent.
    #[error("the batch has {operations} operations; at most {BATCH_OPERATIONS_MAX} are carried out as one")]
    BatchTooLong {
        /// Operations in it.
        operations: usize,
    },
    /// The answer cannot be read. A command may have taken effect. Does the cluster run the key-value machine,
    /// in a version no newer than this client's?
    #[error("the answer cannot be read: {0}; does the cluster run the key-value machine?")]
    Unreadable(#[from] UndecodableError),
}

impl KvError {
    /// Whether the command may have taken effect, or may still do so.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Client(ClientError::OutcomeUnknown { .. }) | Self::Unreadable(_))
    }
}

impl KvClient {
    /// The key-value calls through `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, repeats: Repeats::Never, is_known: Arc::default() }
    }

    /// A client of the cluster that has nodes at `endpoints`; see [`Client::new`].
    ///
    /// # Errors
    /// [`ClientError::BadEndpoint`].
    pub fn connect(
        endpoints: impl IntoIterator<Item = impl AsRef<str>>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        Client::new(endpoints, options).map(Self::new)
    }

    /// The client underneath.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same client with another deadline for its calls.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { client: self.client.with_timeout(timeout), ..self.clone() }
    }

    /// The same client, whose commands the caller says may take effect more than once: see
    /// [`Client::propose_idempotent`] for what that means.
    #[must_use]
    pub fn idempotent(&self) -> Self {
        Self { repeats: Repeats::UntilTheDeadline, ..self.clone() }
    }

    /// Gives `key` a value; returns whether it had one before. It has no expiry afterwards.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<bool, KvError> {
        Ok(self.put_with(key, value, PutOptions::default()).await?.existed)
    }

    /// Gives `key` a value with a time to live, or asks for the value before, or both.
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
            KvReply::Replaced { previous } => Ok(PutOutcome { existed: previous.is_some(), previous }),
            _ => Err(unexpected()),
        }
    }

    /// Takes the value of `key` away; returns whether it had one.
    ///
    /// # Errors
    /// See [`KvError`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<bool, KvError> {
        match self.command(&KvCommand::delete(key)).await? {
            KvReply::Done { existed } => Ok(existed),
            _ => Err(unexpected()),
        }
    }

    /// Gives `key` the value `value` (`None`: none) if it has `expected` (`None`: none) now.
    ///
    /// # Errors
    /// See [`KvError`]; a failed compare is an outcome, not an error.
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

    /// Carries out operations as one, in order, each seeing what the ones before it did; or none of them, if a
    /// compare fails.
    ///
    /// # Errors
    /// See [`KvError`]; a failed compare is an outcome, not an error.
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
            KvReply::BatchFailed { operation, current } => Ok(BatchOutcome::Failed { operation, current }),
            _ => Err(unexpected()),
        }
    }

    /// The value under `key`.
    ///
    /// # Errors
    /// See [`KvError`]; a read may always be asked again.
    pub async fn get(
        &self,
        key: impl Into<Bytes>,
        consistency: Consistency,
    ) -> Result<Option<Bytes>, KvError> {
        Ok(self.client.get(key, consistency).await?)
    }

    /// The values under several keys, in their order, all of one applied state.
    ///
    /// # Errors
    /// See [`KvError`]; a read may always be asked again.
    pub async fn get_many(
        &self,
        keys: impl IntoIterator<Item = impl Into<Bytes>>,
        consistency: Consistency,
    ) -> Result<Vec<Option<Bytes>>, KvError> {
        match self.question(&KvQuery::get_many(keys), consistency).await? {
            KvAnswer::Values(values) => Ok(values),
            _ => Err(unexpected()),
        }
    }

    /// One page of records in the order of their keys. [`KvClient::pages`] goes on by itself.
    ///
    /// # Errors
    /// See [`KvError`]; a read may always be asked again.
    pub async fn scan(&self, scan: Scan, consistency: Consistency) -> Result<Page, KvError> {
        match self.question(&KvQuery::Scan(scan), consistency).await? {
            KvAnswer::Page(page) => Ok(page),
            _ => Err(unexpected()),
        }
    }

    /// All pages of a scan, one after the other. Each is of one applied state, but what is written meanwhile
    /// shows in the pages behind it.
    #[must_use]
    pub fn pages(&self, scan: Scan, consistency: Consistency) -> Pages {
        Pages { kv: self.clone(), scan: Some(scan), consistency }
    }

    /// Before the first command: another machine may take anything for a command of its own.
    async fn check_machine(&self) -> Result<(), KvError> {
        if self.is_known.load(Ordering::Relaxed) {
            return Ok(());
        }
        let question = KvQuery::get_many([Bytes::new()]);
        match self.question(&question, Consistency::Eventual).await {
            Ok(_) => self.is_known.store(true, Ordering::Relaxed),
            Err(
                error @ (KvError::Unreadable(_)
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

    async fn question(&self, query: &KvQuery, consistency: Consistency) -> Result<KvAnswer, KvError> {
        query.check()?;
        let answer = self.client.query(query.encode(), consistency).await?;
        Ok(KvAnswer::decode(&answer)?)
    }
}

/// An answer of another kind than was asked for: whoever answers is not the machine that this client knows.
fn unexpected() -> KvError {
    KvError::Unreadable(UndecodableError::Unknown)
}

/// The pages of a scan; see [`KvClient::pages`].
#[derive(Clone, Debug)]
pub struct Pages {
    kv: KvClient,
    /// `None` once the last page was given.
    scan: Option<Scan>,
    consistency: Consistency,
}

impl Pages {
    /// The next page; `None` behind the last one. After an error the same page may be asked for again.
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
