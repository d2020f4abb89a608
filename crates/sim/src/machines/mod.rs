//! The state machines that simulated nodes run.

pub(crate) mod choice;
pub(crate) mod choking;
pub(crate) mod durable;
