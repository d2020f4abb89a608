//! "lease": no node leads a later term beside a valid lease while the clocks keep their bound (Raft
//! thesis, section 6.4.1), whether or not a client could notice.

use d_engine_core::{Instant, RaftCore};

use crate::monitors::violation::{Rule, Violation};
use crate::profile::Profile;

/// Checks the running nodes: their ids, what their clocks show, and their cores.
///
/// # Errors
/// A node holds a lease although a later term has a leader.
pub(crate) fn check<'a>(
    profile: &Profile,
    nodes: impl Iterator<Item = (u64, Instant, &'a RaftCore)> + Clone,
) -> Result<(), Violation> {
    if profile.clock_drift > u64::from(profile.clock_drift_percent_max) * 10_000 {
        return Ok(());
    }
    for (holder, clock, core) in nodes.clone() {
        let Some(until) = core.lease_until().filter(|until| clock < *until) else { continue };
        let is_later = |other: &RaftCore| other.leads_with_commit() && other.term() > core.term();
        if nodes.clone().any(|(_, _, other)| is_later(other)) {
            return Rule::Lease.broken_by(
                holder,
                format_args!(
                    "node {holder} holds a lease of term {} until {until:?} although a later term \
                     has a leader",
                    core.term()
                ),
            );
        }
    }
    Ok(())
}
