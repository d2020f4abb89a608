//! The messages of d-engine: between nodes ([`peer`]), between clients and nodes ([`client`]), and
//! the commands that the key-value state machine keeps in the log ([`kv`], typed in [`key_value`]).
//!
//! With default features there are only plain messages, so that a client pulls in none of the
//! engine. Feature `engine` adds the `engine` module, which turns engine types into wire bytes and back;
//! feature `grpc` adds the tonic stubs in [`client`] and the errors that travel in a gRPC status.

#[cfg(feature = "engine")]
pub mod engine;
pub mod key_value;
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

/// Commands, replies, questions and answers of the key-value state machine (`proto/kv.proto`), as plain
/// messages; [`key_value`] has them typed.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, clippy::use_self)]
pub mod kv {
    include!(concat!(env!("OUT_DIR"), "/d_engine.kv.v1.rs"));

    /// The format version of everything here that this program writes, and the newest it reads.
    pub const FORMAT_VERSION: u32 = 1;
}

pub use prost::{DecodeError, Message};

/// The version of the peer protocol. Nodes with different versions refuse each other.
pub const PROTOCOL_VERSION: u32 = 1;
