//! Reads the whole database to find damage while the machine runs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use d_engine_state_machine::Result;

use super::DiskKvStateMachine;
use crate::database::panicked;
use crate::error::Failure;
use crate::snapshot::View;
use crate::state::{ReadError, State};
use crate::tables::{FrozenRecords, Pages};

impl DiskKvStateMachine {
    /// Verifies the state of `view`, unless the machine is stopped or the view is given up.
    pub(super) fn scrub_whole(&self, view: &View) -> Result<()> {
        // The database library may panic on pages that it cannot parse.
        let scrubbed = catch_unwind(AssertUnwindSafe(|| self.scrub_view(view)));
        match scrubbed.unwrap_or_else(|panic| Err(Failure::Damaged(panicked(&*panic)).into())) {
            Ok(()) | Err(Ended::GivenUp) => Ok(()),
            // Another one has taken its place, and this one may be closed: nobody reads from it any
            // more.
            Err(Ended::Failed(_)) if !Arc::ptr_eq(&view.database, &self.database()?) => Ok(()),
            Err(Ended::Failed(failure)) => Err(view.database.failed(failure).into()),
        }
    }

    /// Reads all records and expiries of one state and compares the totals with the stored ones.
    fn scrub_view(&self, view: &View) -> Result<(), Ended> {
        let Some(transaction) = view.frozen.take() else { return Ok(()) };
        let state = State::read(&transaction).map_err(|error| match error {
            ReadError::Failed(failure) => failure,
            ReadError::Damaged(what) => Failure::Damaged(what.to_owned()),
            ReadError::Newer(found) => {
                Failure::Damaged(format!("it has become one of version {found}"))
            }
        })?;
        let records = FrozenRecords::open(&transaction, state.time_ms)?;
        records.verify(state.content_bytes, Pages::Unchecked, || {
            let goes_on =
                self.running.load(Ordering::Acquire) && view.frozen.given_up_at().is_none();
            goes_on.then_some(()).ok_or(Ended::GivenUp)
        })
    }
}

/// Why a scrub stopped early.
enum Ended {
    Failed(Failure),
    /// The machine was stopped, or the file has grown too far during the scrub.
    GivenUp,
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}
