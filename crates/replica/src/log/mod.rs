//! The log with payloads: the worker that persists it and the order of
//! its work, the cache, loads for followers, the scrub.

pub(crate) mod cache;
pub(crate) mod load_queue;
pub(crate) mod loads;
pub(crate) mod payloads;
pub(crate) mod scrub;
pub(crate) mod steps;
pub(crate) mod unsynced;
pub(crate) mod worker;
