//! A service registry on the key-value machine.
//!
//! An instance is a key `service/<name>/<instance>` with its address as the value and a time to
//! live. A running instance renews it. Without renewal the key expires, on every node at the same
//! log position.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use d_engine::{
    EmbeddedEngine, KvCommand, KvQuery, KvQueryReply, KvReply, ProposeError, PutOptions,
    ReadConsistency, ReadError, Scan,
};
use tokio::time::{interval, timeout};

/// How long a call may take, for example while a new leader is elected.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The delay between two rounds over the nodes when none was the leader.
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// An instance of a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Instance {
    pub(crate) id: String,
    pub(crate) address: String,
}

/// A registry on these nodes. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry {
    nodes: Vec<EmbeddedEngine>,
    ttl: Duration,
}

impl Registry {
    /// A registry whose registrations expire after `ttl` unless they are renewed.
    pub(crate) fn new(nodes: Vec<EmbeddedEngine>, ttl: Duration) -> Self {
        Self { nodes, ttl }
    }

    /// Registers an instance, or renews it: both are a put with a time to live. Returns whether it
    /// was new.
    pub(crate) async fn register(&self, service: &str, id: &str, address: &str) -> Outcome<bool> {
        let options = PutOptions::default().ttl(self.ttl);
        let command = KvCommand::put_with(key(service, id), address.to_owned(), options);
        match KvReply::decode(&self.propose(command.encode()).await?)? {
            KvReply::Done { existed } => Ok(!existed),
            other => Err(format!("unexpected reply to the registration: {other:?}").into()),
        }
    }

    /// The registered instances of a service, in the order of their ids.
    pub(crate) async fn instances(&self, service: &str) -> Outcome<Vec<Instance>> {
        let prefix = key(service, "");
        let mut found = Vec::new();
        let mut scan = Scan::prefix(prefix.clone());
        loop {
            let KvQueryReply::Page(page) =
                KvQueryReply::decode(&self.query(&KvQuery::Scan(scan.clone())).await?)?
            else {
                return Err("unexpected reply to a scan".into());
            };
            found.extend(page.records.iter().map(|record| Instance {
                id: text(record.key.get(prefix.len()..).unwrap_or_default()),
                address: text(record.value.as_deref().unwrap_or_default()),
            }));
            match page.next {
                Some(next) => scan = scan.after(next),
                None => return Ok(found),
            }
        }
    }

    /// Proposes to each node until the leader accepts. A renewal may take effect twice, so it is
    /// also retried when its outcome is unknown.
    async fn propose(&self, command: Bytes) -> Outcome<Bytes> {
        let asked = async {
            let mut rounds = interval(PAUSE);
            loop {
                rounds.tick().await;
                for node in &self.nodes {
                    match node.propose(command.clone()).await {
                        Ok(reply) => return Ok(reply),
                        Err(ProposeError::TooLarge { size, limit }) => {
                            return Err(format!(
                                "the command has {size} bytes; at most {limit} are allowed"
                            )
                            .into());
                        }
                        // Not the leader, busy, stopped, or outcome unknown: try the next node.
                        Err(_) => {}
                    }
                }
            }
        };
        timeout(TIMEOUT, asked).await?
    }

    async fn query(&self, query: &KvQuery) -> Outcome<Bytes> {
        let question = query.encode();
        let asked = async {
            let mut rounds = interval(PAUSE);
            loop {
                rounds.tick().await;
                for node in &self.nodes {
                    match node.query(&question, ReadConsistency::Linearizable).await {
                        Ok(answer) => return Ok(answer),
                        Err(ReadError::StateMachine(reason)) => return Err(reason.into()),
                        Err(_) => {}
                    }
                }
            }
        };
        timeout(TIMEOUT, asked).await?
    }
}

fn key(service: &str, id: &str) -> String {
    format!("service/{service}/{id}")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
