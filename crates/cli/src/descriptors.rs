//! Raises the limit on file descriptors. Only for `serve`, whose process runs nothing but a node.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limit to set if the hard limit allows it; more than any node needs.
const WANTED: u64 = 65_536;

/// Raises the soft limit as far as the hard limit allows. If that is not enough, the engine logs a
/// warning: it bounds the number of client connections by the limit.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        Ok(()) => {
            tracing::debug!(from = current, to = wanted, "the limit on file descriptors was raised")
        }
        Err(error) => {
            tracing::warn!(%error, current, wanted, "the limit on file descriptors cannot be raised");
        }
    }
}
