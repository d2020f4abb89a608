//! d-engine on threads, clocks and sockets.

mod config;

pub use config::{Config, ConfigError, Limits, MemberConfig};
