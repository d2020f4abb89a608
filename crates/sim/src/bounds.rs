//! What a node holds in memory for others is bounded: `docs/durability.md`, section 8, checked after every event.
//!
//! | what | bound |
//! |---|---|
//! | commands and reads on their way | their limits |
//! | reads that wait for confirmation | their limit, at the leader and for the one that a follower asks |
//! | appends on their way to a follower | the window, and the append that goes beyond it |
//! | uncommitted bytes | the limit, one command that is let in alone, and what has no payload of a caller |
//! | recent entries | the limit, beside what is not synced |
//! | apply jobs | their limit |
//! | messages that wait for the disk | an answer for each message of the window, and a few for each peer and term |
//! | loads under way | one for each follower |

use d_engine_replica::{Gauges, Replica};
use d_engine_storage::LogEntry;

use crate::monitors::{Broken, broken};
use crate::profile::Profile;

/// What an entry without a command counts in the log.
const ENTRY_COST: u64 = 64;
/// A membership entry is no longer than this.
const MEMBERSHIP_BYTES: u64 = 1_024;

/// The most that any node has held.
#[derive(Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) held_messages_max: usize,
    pub(crate) loads_max: usize,
}

impl Bounds {
    /// A node has handled an event.
    ///
    /// # Errors
    /// The bound that is broken.
    pub(crate) fn check(&mut self, node: u64, replica: &Replica, profile: &Profile) -> Result<(), Broken> {
        let gauges = replica.gauges();
        self.held_messages_max = self.held_messages_max.max(gauges.core.held_messages);
        self.loads_max = self.loads_max.max(gauges.loads);
        let limits = &profile.limits;
        let peers = usize::try_from(profile.nodes).unwrap_or(usize::MAX) - 1;
        let largest_append = profile.append_bytes.max(limits.command_bytes as u64).max(MEMBERSHIP_BYTES);
        let mut counted = vec![
            ("commands on their way", gauges.proposals, limits.proposals),
            ("reads on their way", gauges.reads, limits.reads),
            ("reads that wait for confirmation", gauges.core.waiting_reads, 2 * limits.waiting_reads),
            ("appends on their way", gauges.core.inflight_appends, limits.inflight_appends),
            ("apply jobs", gauges.apply_jobs, limits.apply_jobs),
        ];
        if profile.judges_bounds {
            counted.push(("loads under way", gauges.loads, peers));
            let window = limits.inflight_appends;
            counted.push((
                "messages that wait for the disk",
                gauges.core.held_messages,
                2 * window + 16 * peers,
            ));
        }
        for (what, found, bound) in counted {
            if found > bound {
                return exceeded(node, what, found as u64, bound as u64, gauges);
            }
        }
        let bytes = [
            ("bytes on their way", gauges.core.inflight_bytes, limits.inflight_bytes + largest_append),
            (
                "bytes of recent entries",
                synced_weight(replica, gauges),
                profile.cache_bytes as u64 + largest_append,
            ),
            ("uncommitted bytes", gauges.core.uncommitted_bytes, uncommitted_max(replica, profile)),
        ];
        for (what, found, bound) in bytes {
            if found > bound {
                return exceeded(node, what, found, bound, gauges);
            }
        }
        Ok(())
    }
}

fn exceeded(node: u64, what: &str, found: u64, bound: u64, gauges: Gauges) -> Result<(), Broken> {
    broken("bounds", format_args!("node {node} holds {found} {what}, {bound} are bearable; {gauges:?}"))
}

/// What the cache holds beside what is not synced, which it must.
fn synced_weight(replica: &Replica, gauges: Gauges) -> u64 {
    let log = replica.core().log();
    let unsynced = log.last.index.since(log.persisted) * size_of::<LogEntry>() as u64;
    (gauges.cache_bytes as u64).saturating_sub(gauges.unsynced_bytes as u64 + unsynced)
}

/// The limit, or one command that was let in alone; and what leaders add by themselves: each a no-op, ticks one at a
/// time, and a membership entry at a time.
fn uncommitted_max(replica: &Replica, profile: &Profile) -> u64 {
    let limits = &profile.limits;
    let alone = limits.command_bytes as u64 + ENTRY_COST;
    let terms = replica.core().term().get();
    limits.uncommitted_bytes.max(alone) + terms * (3 * ENTRY_COST + MEMBERSHIP_BYTES)
}
