//! Reads a data directory or a snapshot file and says what is in it, and what of it is damaged.
//!
//! Nothing is created, repaired, truncated or locked, so it may be used on the only copy of a
//! directory that a node refuses to start on.
