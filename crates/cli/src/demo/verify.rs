//! The check: every acknowledged record, on one node by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use d_engine_client::{Client, ClientError, ClientOptions, Consistency};
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use super::import::CALLERS;
use super::input::Record;
use crate::exit::Failure;

/// A record that is not there, or not with its value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Lost {
    pub(super) node: u64,
    pub(super) key: Bytes,
    /// What is there instead.
    pub(super) found: Option<Bytes>,
}

/// Reads every record from the node at `address` and from no other: eventual reads, which a node
/// answers from what it has applied. Returns what is lost.
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
        let (client, records, next, bar) = (client.clone(), records.clone(), next.clone(), bar.clone());
        readers.spawn(async move {
            let mut lost = Vec::new();
            while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = client.get(record.key.clone(), Consistency::Eventual).await?;
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
        lost.extend(ended.map_err(|panic| Failure::failed(format!("a reader of the demo: {panic}")))??);
    }
    lost.sort_by(|one, other| one.key.cmp(&other.key));
    Ok(lost)
}
