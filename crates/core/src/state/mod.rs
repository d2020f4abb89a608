//! What a node and a leader keep track of: the log without payloads, followers, quorums, log time.

pub(crate) mod command_version;
pub(crate) mod held;
pub(crate) mod log_clock;
pub(crate) mod log_view;
pub(crate) mod progress;
pub(crate) mod quorum;
