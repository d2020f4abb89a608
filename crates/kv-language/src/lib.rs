//! The language of the key-value machine: its commands, queries and replies, typed, their encoded
//! form (`proto/kv.proto`), and what they mean ([`rules`]). The crate has no part of the engine.
//!
//! A program that embeds the engine and a network client use the same types: they encode the same
//! commands and decode the same replies. The machine in memory (`d-engine-kv`) and the one on disk
//! (`d-engine-kv-disk`) execute the same rules.

mod command;
mod operation;
mod query;
mod reply;
pub mod rules;
#[cfg(test)]
mod tests;

pub use command::{BATCH_OPERATIONS_MAX, KvCommand, PutOptions};
pub use operation::KvOperation;
pub use query::{
    GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvQuery, KvQueryReply, Page, QueryLimitError,
    Record, SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};
pub use reply::KvReply;

/// The encoded form (`proto/kv.proto`).
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::too_many_lines, clippy::use_self)]
mod message {
    include!(concat!(env!("OUT_DIR"), "/d_engine.kv.v1.rs"));
}

/// The format version that this program writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// The name of the state machine that executes these commands, in memory or on disk.
pub const MACHINE_NAME: &str = "d-engine/key-value";

/// Why bytes cannot be decoded as a command, reply, query or query result.
///
/// The texts are part of replies, and every replica must return the same reply: they must not
/// depend on the version of a library.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndecodableError {
    /// The bytes are not a key-value message. Create commands with [`KvCommand::encode`].
    #[error("the bytes are not a key-value message")]
    Malformed,
    /// The message has another format version. Upgrade every node before newer commands are sent.
    #[error("the format version is {found}, this program reads {FORMAT_VERSION}")]
    Format {
        /// The version in the message.
        found: u32,
    },
    /// The message has no verb, outcome, query or query result, or one of a newer version.
    #[error("the message is empty, or of a kind that only a newer program knows")]
    Unknown,
    /// A batch has too many operations. Split it, if its parts may take effect separately.
    #[error("the batch has {found} operations; at most {BATCH_OPERATIONS_MAX} are executed as one")]
    TooManyOperations {
        /// Number of operations in the batch.
        found: usize,
    },
}

fn readable(format: u32) -> Result<(), UndecodableError> {
    if format == FORMAT_VERSION { Ok(()) } else { Err(UndecodableError::Format { found: format }) }
}
