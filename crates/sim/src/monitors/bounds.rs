//! The memory that a node holds for others is bounded (`docs/durability.md`, section 8). Checked
//! after every event.
//!
//! | what | bound |
//! |---|---|
//! | commands and reads in flight | their limits |
//! | reads that wait for confirmation | their limit, once as leader and once as follower |
//! | appends in flight to a follower | the window; in bytes, one append may exceed it |
//! | uncommitted bytes of a leader | the limit or one larger command, and what leaders add |
//! | recent entries | the limit, not counting entries that are not synced |
//! | apply jobs | their limit |
//! | messages that wait for the disk | two per append of the window, and 16 per peer |
//! | loads under way | one for each follower |

use d_engine_replica::{CACHED_ENTRY_COST, Gauges, Replica};

use crate::monitors::violation::{Rule, Violation};
use crate::profile::Profile;

/// Bytes that the log counts for an entry without a command.
const ENTRY_COST: u64 = 64;
/// The largest membership entry, in bytes.
const MEMBERSHIP_BYTES: u64 = 1_024;

/// Checks a node that has handled an event.
///
/// # Errors
/// The bound that is exceeded.
pub(crate) fn check(node: u64, replica: &Replica, profile: &Profile) -> Result<(), Violation> {
    let gauges = replica.gauges();
    let limits = &profile.limits;
    let peers = usize::try_from(profile.nodes).unwrap_or(usize::MAX) - 1;
    let largest_append =
        profile.append_bytes.max(limits.command_bytes as u64).max(MEMBERSHIP_BYTES);
    let mut counted = vec![
        ("commands in flight", gauges.proposals, limits.proposals),
        ("reads in flight", gauges.reads, limits.reads),
        ("reads that wait for confirmation", gauges.core.waiting_reads, 2 * limits.waiting_reads),
        ("appends in flight", gauges.core.inflight_appends, limits.inflight_appends),
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
        ("bytes in flight", gauges.core.inflight_bytes, limits.inflight_bytes + largest_append),
        (
            "bytes of recent entries",
            synced_weight(replica, gauges),
            profile.cache_bytes as u64 + largest_append,
        ),
        ("uncommitted bytes", uncommitted(replica, gauges), { uncommitted_max(replica, profile) }),
    ];
    for (what, found, bound) in bytes {
        if found > bound {
            return exceeded(node, what, found, bound, gauges);
        }
    }
    Ok(())
}

fn exceeded(
    node: u64,
    what: &str,
    found: u64,
    bound: u64,
    gauges: Gauges,
) -> Result<(), Violation> {
    Rule::Bounds.broken_by(
        node,
        format_args!("node {node} holds {found} {what}, more than {bound}; {gauges:?}"),
    )
}

/// Returns the bytes in the cache, not counting entries that are not synced: those must stay in it.
fn synced_weight(replica: &Replica, gauges: Gauges) -> u64 {
    let log = replica.core().log();
    let unsynced = log.last.index.since(log.persisted) * CACHED_ENTRY_COST as u64;
    (gauges.cache_bytes as u64).saturating_sub(gauges.unsynced_bytes as u64 + unsynced)
}

/// Returns the uncommitted bytes of a leader that has committed an entry of its term. Before that,
/// a leader does not know how much of its log is committed, and no more does a follower after a
/// restart.
fn uncommitted(replica: &Replica, gauges: Gauges) -> u64 {
    match replica.core().leads_with_commit() {
        true => gauges.core.uncommitted_bytes,
        false => 0,
    }
}

/// Returns the limit, or the size of one larger command that was accepted alone, plus what leaders
/// add by themselves. That is, for each term, a no-op, one tick at a time, and one membership entry
/// at a time.
fn uncommitted_max(replica: &Replica, profile: &Profile) -> u64 {
    let limits = &profile.limits;
    let alone = limits.command_bytes as u64 + ENTRY_COST;
    let terms = replica.core().term().get();
    limits.uncommitted_bytes.max(alone) + terms * (3 * ENTRY_COST + MEMBERSHIP_BYTES)
}
