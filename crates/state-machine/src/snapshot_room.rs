//! Checks that there is still space for the files of a snapshot that is being written.

use std::cell::Cell;
use std::fmt;

use crate::Result;

/// Bytes written between two checks of the free space.
const LOOK_EVERY_BYTES: u64 = 4 << 20;

/// Receives from a [`SnapshotView`](crate::SnapshotView) how much it writes, so that a snapshot
/// that does not fit is abandoned while there is still space for the log.
pub struct SnapshotRoom<'a> {
    check: Option<&'a dyn Fn() -> Result<()>>,
    unseen: Cell<u64>,
}

impl fmt::Debug for SnapshotRoom<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotRoom").field("unseen", &self.unseen).finish_non_exhaustive()
    }
}

impl<'a> SnapshotRoom<'a> {
    /// Calls `check` from time to time, which returns an error when too little space is free.
    #[must_use]
    pub fn checked_by(check: &'a dyn Fn() -> Result<()>) -> Self {
        Self { check: Some(check), unseen: Cell::new(0) }
    }
}

impl SnapshotRoom<'_> {
    /// Never checks the free space.
    #[must_use]
    pub fn unlimited() -> SnapshotRoom<'static> {
        SnapshotRoom { check: None, unseen: Cell::new(0) }
    }

    /// Reports that `bytes` more were written or are about to be. Checks the free space every few
    /// MiB.
    ///
    /// # Errors
    /// Less space is free than snapshots must leave to the log (`snapshots.reserve_bytes`). Return
    /// this error; the files written so far are removed.
    pub fn written(&self, bytes: u64) -> Result<()> {
        let unseen = self.unseen.get().saturating_add(bytes);
        self.unseen.set(unseen);
        match self.check {
            Some(check) if unseen >= LOOK_EVERY_BYTES => {
                self.unseen.set(0);
                check()
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn the_space_is_checked_every_few_mib_and_a_refusal_reaches_the_view() {
        let checks = Cell::new(0);
        let check = || {
            checks.set(checks.get() + 1);
            if checks.get() < 3 { Ok(()) } else { Err(Error::msg("too little space")) }
        };
        let room = SnapshotRoom::checked_by(&check);
        room.written(LOOK_EVERY_BYTES - 1).unwrap();
        assert_eq!(checks.get(), 0);
        room.written(1).unwrap();
        room.written(LOOK_EVERY_BYTES).unwrap();
        assert_eq!(checks.get(), 2);
        assert!(room.written(u64::MAX).is_err());
        SnapshotRoom::unlimited().written(u64::MAX).unwrap();
    }
}
