//! When a snapshot is due.

use std::sync::Arc;
use std::time::Duration;

use crate::LogId;

/// What a policy may base its decision on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SnapshotContext {
    /// The last entry applied.
    pub applied: LogId,
    /// The last included entry of the newest snapshot; zero if there is none.
    pub last_snapshot: LogId,
    /// Bytes that the log has grown by since the newest snapshot, or since the node's start,
    /// padding included.
    pub log_bytes: u64,
    /// Bytes of the newest snapshot; 0 if there is none.
    pub snapshot_bytes: u64,
    /// Time since the newest snapshot, or since the first entry applied after the node's start, by
    /// the node's monotonic clock.
    pub elapsed: Duration,
    /// This node's stagger, in thousandths of the policy's own measure: its first snapshot is later
    /// by that, so that the nodes of a cluster do not build at once. Zero once this node has built
    /// one itself; equal intervals keep the nodes apart from then on.
    pub stagger_permille: u32,
}

impl SnapshotContext {
    /// `measure`, later by this node's stagger.
    #[must_use]
    pub fn staggered(&self, measure: u64) -> u64 {
        let share = u128::from(measure) * u128::from(self.stagger_permille) / 1_000;
        measure.saturating_add(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

/// Decides when a snapshot is due. Called on the apply thread after every job, which is one chunk
/// or a few, and after a snapshot has ended; apply waits, so it must be fast. Not called while a
/// snapshot is being built, nor for a while after one has failed.
pub trait SnapshotPolicy: Send + Sync + 'static {
    /// Whether a snapshot is due now.
    fn should_snapshot(&self, context: &SnapshotContext) -> bool;
}

/// Never: the log keeps everything unless a snapshot is requested.
#[derive(Clone, Copy, Debug, Default)]
pub struct Never;

impl SnapshotPolicy for Never {
    fn should_snapshot(&self, _context: &SnapshotContext) -> bool {
        false
    }
}

/// After this many applied entries since the last snapshot.
#[derive(Clone, Copy, Debug)]
pub struct AfterEntries(pub u64);

impl SnapshotPolicy for AfterEntries {
    fn should_snapshot(&self, context: &SnapshotContext) -> bool {
        let entries = context.applied.index.since(context.last_snapshot.index);
        entries > 0 && entries >= context.staggered(self.0)
    }
}

/// After the log has grown by this many bytes since the last snapshot. If the last snapshot was
/// larger than that, after as many bytes as it had, but at most twice this: writing a large state
/// often for little log would cost more disk than it frees.
#[derive(Clone, Copy, Debug)]
pub struct AfterBytes(pub u64);

impl SnapshotPolicy for AfterBytes {
    fn should_snapshot(&self, context: &SnapshotContext) -> bool {
        let measure = context.snapshot_bytes.clamp(self.0, self.0.saturating_mul(2));
        let stagger = context.staggered(self.0).saturating_sub(self.0);
        context.log_bytes > 0 && context.log_bytes >= measure.saturating_add(stagger)
    }
}

/// After this much time since the last snapshot, if anything was applied since. The policy is
/// called at the next entry, so an idle cluster takes no snapshots.
#[derive(Clone, Copy, Debug)]
pub struct AfterTime(pub Duration);

impl SnapshotPolicy for AfterTime {
    fn should_snapshot(&self, context: &SnapshotContext) -> bool {
        let wait = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        context.log_bytes > 0 && context.elapsed.as_millis() >= u128::from(context.staggered(wait))
    }
}

/// When any of several policies says that a snapshot is due.
#[derive(Clone)]
pub struct AnyOf(pub Vec<Arc<dyn SnapshotPolicy>>);

impl SnapshotPolicy for AnyOf {
    fn should_snapshot(&self, context: &SnapshotContext) -> bool {
        self.0.iter().any(|policy| policy.should_snapshot(context))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(applied: u64, last: u64) -> SnapshotContext {
        SnapshotContext {
            applied: LogId::of(1, applied),
            last_snapshot: LogId::of(1, last),
            ..SnapshotContext::default()
        }
    }

    #[test]
    fn entries_are_counted_from_the_last_snapshot() {
        assert!(!AfterEntries(10).should_snapshot(&context(29, 20)));
        assert!(AfterEntries(10).should_snapshot(&context(30, 20)));
        assert!(!AfterEntries(0).should_snapshot(&context(20, 20)), "there is nothing new");
    }

    #[test]
    fn bytes_and_time_count_once_something_was_applied() {
        let grown = SnapshotContext { log_bytes: 100, ..context(5, 0) };
        assert!(AfterBytes(100).should_snapshot(&grown));
        assert!(!AfterBytes(101).should_snapshot(&grown));
        let of_a_large_state = SnapshotContext { snapshot_bytes: 130, ..grown };
        assert!(AfterBytes(50).should_snapshot(&of_a_large_state), "twice as many at most");
        assert!(!AfterBytes(51).should_snapshot(&of_a_large_state));
        assert!(AfterBytes(100).should_snapshot(&SnapshotContext { snapshot_bytes: 99, ..grown }));
        let later = SnapshotContext { elapsed: Duration::from_secs(60), ..grown };
        assert!(AfterTime(Duration::from_secs(60)).should_snapshot(&later));
        assert!(!AfterTime(Duration::from_secs(61)).should_snapshot(&later));
        assert!(
            !AfterTime(Duration::ZERO).should_snapshot(&SnapshotContext { log_bytes: 0, ..later })
        );
    }

    #[test]
    fn a_stagger_puts_the_first_one_off() {
        let second_of_three = SnapshotContext { stagger_permille: 333, ..context(1_332, 0) };
        assert!(!AfterEntries(1_000).should_snapshot(&second_of_three));
        assert!(
            AfterEntries(1_000)
                .should_snapshot(&SnapshotContext { stagger_permille: 0, ..second_of_three })
        );
        let reached = SnapshotContext { stagger_permille: 333, ..context(1_333, 0) };
        assert!(AfterEntries(1_000).should_snapshot(&reached));
    }

    #[test]
    fn any_of_several_is_enough_and_none_is_never() {
        let any = AnyOf(vec![Arc::new(AfterEntries(10)), Arc::new(AfterBytes(1_000))]);
        assert!(any.should_snapshot(&context(10, 0)));
        assert!(any.should_snapshot(&SnapshotContext { log_bytes: 1_000, ..context(1, 0) }));
        assert!(!any.should_snapshot(&context(9, 0)));
        assert!(!AnyOf(Vec::new()).should_snapshot(&context(9, 0)));
        assert!(!Never.should_snapshot(&context(u64::MAX, 0)));
    }
}
