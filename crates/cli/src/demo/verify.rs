//! Checks every acknowledged record on one node.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use d_engine_client::{Client, ClientError, ClientOptions, ReadConsistency};
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use crate::exit::Failure;
use crate::import::Record;

/// Concurrent callers, each with one put or get in flight.
pub(super) const CALLERS: usize = 64;

/// A record that is missing or has another value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    pub(super) node: u64,
    pub(super) key: Bytes,
    /// The value found instead.
    pub(super) found: Option<Bytes>,
}

/// Reads every record from the node at `address` alone, with eventual reads, which a node serves
/// from what it has applied. Returns what is lost.
pub(super) async fn verify(
    node: u64,
    address: &str,
    records: &Arc<Vec<Record>>,
    bar: &ProgressBar,
) -> Result<Vec<Lost>, Failure> {
    let client = Client::new([address], ClientOptions::default())?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..CALLERS {
        let (client, records, next, bar) =
            (client.clone(), records.clone(), next.clone(), bar.clone());
        readers.spawn(async move {
            let mut lost = Vec::new();
            while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = client.get(record.key.clone(), ReadConsistency::Eventual).await?;
                if found.as_ref() != Some(&record.value) {
                    lost.push(Lost { node, key: record.key.clone(), found });
                }
                bar.inc(1);
            }
            Ok::<_, ClientError>(lost)
        });
    }
    let mut lost = Vec::new();
    while let Some(ended) = readers.join_next().await {
        lost.extend(
            ended.map_err(|panic| {
                Failure::failed(format!("a reader of the demo failed: {panic}"))
            })??,
        );
    }
    lost.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(lost)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use d_engine_client::KvCommand;
    use d_engine_server::{Config, EmbeddedEngine, NodeBuilder};

    use super::*;

    async fn node(dir: &std::path::Path) -> (EmbeddedEngine, tokio::sync::watch::Sender<()>) {
        let config = Config {
            data_dir: dir.to_owned(),
            client_listen: Some("127.0.0.1:0".to_owned()),
            ..Config::default()
        };
        let (keep, shutdown) = tokio::sync::watch::channel(());
        let engine = NodeBuilder::new(config, shutdown).build().unwrap().start().await.unwrap();
        engine.wait_ready(Duration::from_secs(30)).await.unwrap();
        (engine, keep)
    }

    /// The demo proves nothing if its check cannot fail.
    #[tokio::test(flavor = "multi_thread")]
    async fn missing_and_changed_records_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let (engine, _keep) = node(dir.path()).await;
        let record = |key: String, value: &'static str| Record {
            key: Bytes::from(key),
            value: Bytes::from_static(value.as_bytes()),
        };
        let records: Vec<Record> = (0..200).map(|n| record(format!("k{n:03}"), "right")).collect();
        for one in &records {
            let value = match one.key.as_ref() {
                b"k007" => continue,
                b"k100" => Bytes::from_static(b"wrong"),
                _ => one.value.clone(),
            };
            engine.propose(KvCommand::put(one.key.clone(), value).encode()).await.unwrap();
        }
        let address = engine.client_addr().unwrap().to_string();
        let lost = verify(1, &address, &Arc::new(records), &ProgressBar::hidden()).await.unwrap();
        let lost_with = |key: &'static [u8], found: Option<&'static [u8]>| Lost {
            node: 1,
            key: Bytes::from_static(key),
            found: found.map(Bytes::from_static),
        };
        assert_eq!(lost, [lost_with(b"k007", None), lost_with(b"k100", Some(b"wrong"))]);
        engine.stop().await;
    }
}
