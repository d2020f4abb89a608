//! What goes into the core and what comes out: configuration, inputs, effects, messages, status.

pub(crate) mod config;
pub(crate) mod effects;
pub(crate) mod gauges;
pub(crate) mod input;
pub(crate) mod message;
pub(crate) mod status;
