//! Snapshots that must not be pruned although newer ones exist.

use std::sync::Arc;

use d_engine_core::LogId;

use super::directory::Inner;

/// While this value exists, the snapshot with this last included entry is not pruned: it is about
/// to be installed.
#[derive(Debug)]
#[must_use = "dropping it allows the snapshot to be pruned"]
pub struct Hold {
    inner: Arc<Inner>,
    last_included: LogId,
}

impl Hold {
    pub(super) fn new(inner: &Arc<Inner>, last_included: LogId) -> Self {
        inner.busy().held.push(last_included);
        Self { inner: Arc::clone(inner), last_included }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = &mut self.inner.busy().held;
        if let Some(place) =
            held.iter().position(|last_included| *last_included == self.last_included)
        {
            held.swap_remove(place);
        }
    }
}
