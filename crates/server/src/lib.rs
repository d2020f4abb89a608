//! d-engine on threads, clocks and sockets.

mod config;
pub mod transport;

pub use config::{Config, ConfigError, Limits, MemberConfig};
