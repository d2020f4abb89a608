//! The messages of d-engine: between nodes ([`peer`]), between clients and nodes ([`client`]), and
//! the commands that the key-value state machine keeps in the log ([`kv`]).
//!
//! With default features there are only plain messages, so that a client pulls in none of the
//! engine. Feature `engine` adds the `engine` module, which turns engine types into wire bytes and back;
//! feature `grpc` adds the tonic stubs in [`client`] and the errors that travel in a gRPC status.

#[cfg(feature = "engine")]
pub mod engine;
#[cfg(feature = "grpc")]
mod status;

/// Messages between nodes and the handshake before them (`proto/peer.proto`).
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod peer {
    include!(concat!(env!("OUT_DIR"), "/d_engine.peer.v1.rs"));
}

/// The service that nodes offer to clients (`proto/client.proto`).
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod client {
    include!(concat!(env!("OUT_DIR"), "/d_engine.v1.rs"));
}

/// Commands and replies of the key-value state machine (`proto/kv.proto`).
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod kv {
    include!(concat!(env!("OUT_DIR"), "/d_engine.kv.v1.rs"));

    /// The format version of commands and replies written by this program, and the newest it reads.
    pub const FORMAT_VERSION: u32 = 1;
}

pub use prost::{DecodeError, Message};

/// The version of the peer protocol. Nodes with different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 1;
