//! The gRPC service for clients, and the bounds on its connections and bytes.

mod backup;
pub(crate) mod bytes;
pub(crate) mod connections;
mod errors;
mod members;
pub(crate) mod service;
