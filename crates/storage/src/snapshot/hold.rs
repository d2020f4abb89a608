//! Snapshots that must stay although newer ones have come.

use std::sync::Arc;

use d_engine_core::LogId;

use super::directory::Inner;

/// While it lives, pruning leaves the snapshot with this label alone: somebody is about to install it.
#[derive(Debug)]
#[must_use = "dropping it lets the snapshot go"]
pub struct Hold {
    inner: Arc<Inner>,
    label: LogId,
}

impl Hold {
    pub(super) fn new(inner: &Arc<Inner>, label: LogId) -> Self {
        inner.busy().held.push(label);
        Self { inner: Arc::clone(inner), label }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let held = &mut self.inner.busy().held;
        if let Some(place) = held.iter().position(|label| *label == self.label) {
            held.swap_remove(place);
        }
    }
}
