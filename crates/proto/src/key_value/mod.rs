//! The key-value machine's commands, replies, questions and answers, typed, and their encoded form
//! (`proto/kv.proto`).
//!
//! One set of types for both ways to the machine: a program that embeds the engine and a client on the
//! network encode the same command and decode the same reply.

mod command;
mod operation;
mod query;
mod reply;
pub mod rules;
#[cfg(feature = "engine")]
pub mod snapshot_file;
#[cfg(test)]
mod tests;

pub use command::{BATCH_OPERATIONS_MAX, KvCommand, PutOptions};
pub use operation::KvOperation;
pub use query::{
    GET_MANY_BYTES_MAX, GET_MANY_KEYS_MAX, Keys, KvAnswer, KvQuery, Page, QueryLimitError, Record,
    SCAN_LIMIT_DEFAULT, SCAN_LIMIT_MAX, SCAN_PAGE_BYTES, Scan,
};
pub use reply::KvReply;

use crate::kv::FORMAT_VERSION;

/// The name of the state machine that carries these commands out, in memory or on disk.
pub const MACHINE_NAME: &str = "d-engine/key-value";

/// Why bytes are no command, reply, question or answer.
///
/// The texts are part of replies, and every replica must give the same reply: they hold nothing
/// that depends on a library's version.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UndecodableError {
    /// Not even a message of this form. Make commands with [`KvCommand::encode`].
    #[error("the bytes are no key-value message")]
    Malformed,
    /// Of another version of the format. Upgrade every node before newer commands are sent.
    #[error("the format version is {found}, this program reads {FORMAT_VERSION}")]
    Format {
        /// The version in the message.
        found: u32,
    },
    /// No verb, outcome, question or answer, or one of a newer version.
    #[error("the message says nothing that this program knows")]
    Unknown,
    /// A batch is too long to be carried out as one. Cut it, if its parts may take effect apart.
    #[error("the batch has {found} operations; at most {BATCH_OPERATIONS_MAX} are carried out as one")]
    TooManyOperations {
        /// Operations in the batch.
        found: usize,
    },
}

fn readable(format: u32) -> Result<(), UndecodableError> {
    if format == FORMAT_VERSION { Ok(()) } else { Err(UndecodableError::Format { found: format }) }
}
