//! FINDINGS C1 over the network: what a client receives while every state machine is halted, and
//! the way out.
#![allow(clippy::unwrap_used)]

#[path = "../../server/tests/support/failing.rs"]
#[allow(dead_code)]
mod failing;
mod support;

use std::sync::Arc;
use std::time::Duration;

use d_engine_client::{ClientError, EntryId, ReadConsistency};
use failing::Failing;
use support::{Cluster, TIMEOUT, client, put, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_told_where_the_nodes_stand_and_can_have_the_entry_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start_of(dir.path(), || Arc::new(Failing::new())).await;
    let client = client(&cluster.addresses);
    client.propose(put("before", "1")).await.unwrap();
    let bad = client.propose("bad").await.unwrap_err();
    assert!(matches!(&bad, ClientError::OutcomeUnknown { .. }), "{bad}");

    let mut entry = None;
    for address in &cluster.addresses {
        let status = wait_until(TIMEOUT, async || {
            client.status(address).await.ok().filter(|status| status.halted_at.is_some())
        })
        .await;
        let reason = status.apply_stopped.clone().unwrap();
        assert!(reason.contains("it is bad, as asked"), "{reason}");
        assert!(!status.ready && status.stopped.is_none() && status.alarms.contains(&reason));
        entry = status.halted_at;
    }
    let EntryId { term, index } = entry.unwrap();
    let hurried = client.with_timeout(Duration::from_millis(500));
    let read = hurried.get("before", ReadConsistency::Linearizable).await.unwrap_err();
    assert!(
        matches!(&read, ClientError::Stopped { reason, .. } if reason.contains("skip-entry")),
        "{read}"
    );

    let wrong = client.skip_entry(term, index - 1).await.unwrap_err();
    assert!(
        matches!(&wrong, ClientError::Invalid { reason, .. } if reason.contains("is not skipped")),
        "{wrong}"
    );
    // A leader elected since then has not yet heard where the other state machines are halted.
    let decided_at = wait_until(TIMEOUT, async || client.skip_entry(term, index).await.ok()).await;
    assert_eq!(
        client.skip_entry(term, index).await.unwrap(),
        decided_at,
        "a repeated request returns the same"
    );
    client.propose(put("after", "2")).await.unwrap();
    let after = client.get("after", ReadConsistency::Linearizable).await.unwrap();
    assert_eq!(after.as_deref(), Some(&b"2"[..]));
    cluster.stop_all().await;
}
