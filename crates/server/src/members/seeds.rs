//! Asks the addresses in `join` which nodes listen there, as long as this node knows no leader: all
//! nodes may have moved, and then no address in the log is right any more.

use std::sync::Arc;
use std::time::Duration;

use d_engine_replica::Event;

use crate::threads::shared::Shared;
use crate::transport::{self, PeerEvents as _};

/// How long to wait between two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);

/// Runs until the future is dropped.
pub(crate) async fn find_members(shared: Arc<Shared>, seeds: Vec<String>) {
    let own = &shared.identity;
    let mut leader = shared.leader.subscribe();
    loop {
        // The sender lives as long as `shared`.
        leader.wait_for(|(_, leader)| leader.is_none()).await.map(|_| ()).unwrap_or_default();
        for seed in &seeds {
            let probed = transport::probe(seed, own.cluster, own.group, own.incarnation);
            let Ok(found) = probed.await else { continue };
            if let Some(node) = found.node.filter(|node| *node != own.node) {
                let (peer_addr, knows_nobody) =
                    (seed.clone(), shared.members.borrow().in_force.is_nobody());
                if knows_nobody {
                    // It may be the leader, which learns where this node is when it is dialled.
                    shared.as_ref().provisional(node, peer_addr);
                } else {
                    shared.inbox.report(Event::FoundAt { node, peer_addr });
                }
            }
        }
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
}
