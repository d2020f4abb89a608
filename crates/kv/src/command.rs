//! Commands and replies, typed, and their stored form (`proto/kv.proto` of `d-engine-proto`).

use bytes::Bytes;
use d_engine_proto::Message as _;
use d_engine_proto::kv::{self as wire, FORMAT_VERSION, kv_command::Verb, kv_reply::Outcome};

/// What a client can ask the key-value machine to do.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvCommand {
    /// Gives `key` a value, whatever it had before.
    Put {
        /// The key.
        key: Bytes,
        /// Its new value; may be empty.
        value: Bytes,
    },
    /// Takes the value of `key` away. No error when there is none.
    Delete {
        /// The key.
        key: Bytes,
    },
    /// Changes `key` only if it has the expected value.
    CompareAndSwap {
        /// The key.
        key: Bytes,
        /// The value that must be there; `None`: the key must be absent.
        expected: Option<Bytes>,
        /// The new value; `None`: the key is deleted.
        value: Option<Bytes>,
    },
}

/// What the key-value machine answers. The same on every replica.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvReply {
    /// The command took effect.
    Done {
        /// Whether the key had a value before.
        existed: bool,
    },
    /// A compare-and-swap found another value. Nothing changed; decide anew with what was found.
    CompareFailed {
        /// The value found; `None`: the key is absent.
        current: Option<Bytes>,
    },
    /// This version of the machine cannot carry the command out. Nothing changed; do not retry.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// Why bytes are no command or no reply.
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
    /// No verb or outcome, or one of a newer version.
    #[error("the message says nothing that this program knows")]
    Unknown,
}

impl KvCommand {
    /// Gives `key` a value.
    #[must_use]
    pub fn put(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self::Put { key: key.into(), value: value.into() }
    }

    /// Takes the value of `key` away.
    #[must_use]
    pub fn delete(key: impl Into<Bytes>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Gives `key` the value `value` (`None`: none) if it has `expected` (`None`: none) now.
    #[must_use]
    pub fn compare_and_swap(key: impl Into<Bytes>, expected: Option<Bytes>, value: Option<Bytes>) -> Self {
        Self::CompareAndSwap { key: key.into(), expected, value }
    }

    /// The bytes to propose.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let verb = match self.clone() {
            Self::Put { key, value } => Verb::Put(wire::Put { key, value }),
            Self::Delete { key } => Verb::Delete(wire::Delete { key }),
            Self::CompareAndSwap { key, expected, value } => {
                Verb::CompareAndSwap(wire::CompareAndSwap { key, expected, value })
            }
        };
        wire::KvCommand { format: FORMAT_VERSION, verb: Some(verb) }.encode_to_vec().into()
    }

    /// Reads what [`KvCommand::encode`] wrote. Keys and values are slices of `data`.
    ///
    /// # Errors
    /// See [`UndecodableError`]; the machine answers such a command with [`KvReply::Rejected`].
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let command = wire::KvCommand::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(command.format)?;
        Ok(match command.verb.ok_or(UndecodableError::Unknown)? {
            Verb::Put(wire::Put { key, value }) => Self::Put { key, value },
            Verb::Delete(wire::Delete { key }) => Self::Delete { key },
            Verb::CompareAndSwap(wire::CompareAndSwap { key, expected, value }) => {
                Self::CompareAndSwap { key, expected, value }
            }
        })
    }
}

impl KvReply {
    /// The bytes of the reply.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let outcome = match self.clone() {
            Self::Done { existed } => Outcome::Done(wire::Done { existed }),
            Self::CompareFailed { current } => Outcome::CompareFailed(wire::CompareFailed { current }),
            Self::Rejected { reason } => Outcome::Rejected(wire::Rejected { reason }),
        };
        wire::KvReply { format: FORMAT_VERSION, outcome: Some(outcome) }.encode_to_vec().into()
    }

    /// Reads the reply to a proposed command.
    ///
    /// # Errors
    /// See [`UndecodableError`]: the node is of another version, or runs another state machine.
    pub fn decode(data: &Bytes) -> Result<Self, UndecodableError> {
        let reply = wire::KvReply::decode(data.clone()).map_err(|_| UndecodableError::Malformed)?;
        readable(reply.format)?;
        Ok(match reply.outcome.ok_or(UndecodableError::Unknown)? {
            Outcome::Done(wire::Done { existed }) => Self::Done { existed },
            Outcome::CompareFailed(wire::CompareFailed { current }) => Self::CompareFailed { current },
            Outcome::Rejected(wire::Rejected { reason }) => Self::Rejected { reason },
        })
    }
}

fn readable(format: u32) -> Result<(), UndecodableError> {
    if format == FORMAT_VERSION { Ok(()) } else { Err(UndecodableError::Format { found: format }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }

    #[test]
    fn commands_and_replies_survive_encoding() {
        let none_and_empty = [None, Some(Bytes::new()), Some(bytes("v"))];
        let mut commands = vec![KvCommand::put("k", ""), KvCommand::put("", "v"), KvCommand::delete("k")];
        for expected in &none_and_empty {
            for value in &none_and_empty {
                commands.push(KvCommand::compare_and_swap("k", expected.clone(), value.clone()));
            }
        }
        for command in commands {
            assert_eq!(KvCommand::decode(&command.encode()), Ok(command));
        }
        let mut replies = vec![
            KvReply::Done { existed: false },
            KvReply::Done { existed: true },
            KvReply::Rejected { reason: "no".to_owned() },
        ];
        replies.extend(none_and_empty.map(|current| KvReply::CompareFailed { current }));
        for reply in replies {
            assert_eq!(KvReply::decode(&reply.encode()), Ok(reply));
        }
    }

    /// Stored in logs: these bytes may never change.
    #[test]
    fn the_stored_form_of_commands_is_the_golden_one() {
        assert_eq!(&KvCommand::put("k", "v").encode()[..], b"\x08\x01\x12\x06\x0a\x01k\x12\x01v");
        assert_eq!(&KvCommand::delete("k").encode()[..], b"\x08\x01\x1a\x03\x0a\x01k");
        let swap = KvCommand::compare_and_swap("k", Some(bytes("a")), Some(bytes("b")));
        assert_eq!(&swap.encode()[..], b"\x08\x01\x22\x09\x0a\x01k\x12\x01a\x1a\x01b");
        let absent = KvCommand::compare_and_swap("k", None, None);
        assert_eq!(&absent.encode()[..], b"\x08\x01\x22\x03\x0a\x01k");
    }

    #[test]
    fn what_is_no_command_is_told_apart() {
        let of_format = |format| {
            let verb = Some(Verb::Delete(wire::Delete { key: bytes("k") }));
            KvCommand::decode(&wire::KvCommand { format, verb }.encode_to_vec().into())
        };
        assert!(of_format(FORMAT_VERSION).is_ok());
        assert_eq!(of_format(2), Err(UndecodableError::Format { found: 2 }));
        assert_eq!(of_format(0), Err(UndecodableError::Format { found: 0 }));
        assert_eq!(KvCommand::decode(&bytes("\u{1}text")), Err(UndecodableError::Malformed));
        // Format 1, and a verb with the number 9.
        let newer_verb = Bytes::from_static(b"\x08\x01\x4a\x01x");
        assert_eq!(KvCommand::decode(&newer_verb), Err(UndecodableError::Unknown));
        assert_eq!(KvReply::decode(&Bytes::new()), Err(UndecodableError::Format { found: 0 }));
    }
}
