//! What callers request: proposals, reads, their limits and versions.

pub(crate) mod command_version;
pub(crate) mod intake;
pub(crate) mod proposals;
pub(crate) mod reads;
pub(crate) mod throttle;
