//! Throttles long work on snapshots, and can stop it.

use std::ops::ControlFlow;

use super::SnapshotError;

/// Called after every piece of long work (reading, writing and checking archives). It may block, to
/// leave the disk to the log, and it may stop the work.
///
/// ```
/// use std::ops::ControlFlow;
/// use d_engine_storage::snapshot::Pace;
///
/// let mut budget = 1_000_u64;
/// let mut at_most_1000_bytes = |bytes: u64| match budget.checked_sub(bytes) {
///     Some(rest) => {
///         budget = rest;
///         ControlFlow::Continue(())
///     }
///     None => ControlFlow::Break(()),
/// };
/// assert!(at_most_1000_bytes.step(900).is_continue());
/// assert!(at_most_1000_bytes.step(900).is_break());
/// ```
pub trait Pace {
    /// Reports that `bytes` more have been read, written or both. `Break` stops the work with
    /// [`SnapshotError::Aborted`].
    fn step(&mut self, bytes: u64) -> ControlFlow<()>;
}

impl<F: FnMut(u64) -> ControlFlow<()>> Pace for F {
    fn step(&mut self, bytes: u64) -> ControlFlow<()> {
        self(bytes)
    }
}

/// A [`Pace`] that never throttles and never stops the work.
#[derive(Clone, Copy, Debug, Default)]
pub struct FullSpeed;

impl Pace for FullSpeed {
    fn step(&mut self, _bytes: u64) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// Calls [`Pace::step`] and converts its answer to a result.
pub(super) fn keep_pace(pace: &mut dyn Pace, bytes: u64) -> Result<(), SnapshotError> {
    match pace.step(bytes) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(SnapshotError::Aborted),
    }
}
