//! A node in a process: builder, embedded engine, status, clock, shutdown.

pub(crate) mod builder;
pub(crate) mod clock;
pub(crate) mod descriptors;
pub(crate) mod embedded;
pub(crate) mod entropy;
pub(crate) mod shutdown;
pub(crate) mod status;
