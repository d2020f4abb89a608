//! The sending side, on the leader.

use std::time::Duration;

use d_engine_core::{Instant, Term};
use d_engine_storage::snapshot::{Offer, SnapshotArchive, SnapshotError};

use super::{OFFERED_HEADER_BYTES_MAX, PIECE_BYTES_MAX, Refusal, SnapshotMessage};

/// The longest text of a refusal that is kept, in characters.
const REFUSAL_CHARS_MAX: usize = 1_000;

/// The limits for sending a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// Bytes in one piece, at most [`PIECE_BYTES_MAX`].
    pub piece_bytes: usize,
    /// Bytes in flight that the follower has not confirmed.
    pub window_bytes: u64,
    /// How long the follower may be silent.
    pub silence: Duration,
    /// How long the follower may take to apply the snapshot once it has received everything.
    pub apply: Duration,
}

impl Default for SendLimits {
    fn default() -> Self {
        Self {
            piece_bytes: 256 << 10,
            window_bytes: 4 << 20,
            silence: Duration::from_millis(30_000),
            apply: Duration::from_millis(600_000),
        }
    }
}

/// How far a [`SnapshotSender`] has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SendProgress {
    /// Bytes that the follower has confirmed.
    pub confirmed: u64,
    /// The offset at which the attempt began.
    pub resumed_at: u64,
    /// Whether the follower has everything and is installing it.
    pub is_installing: bool,
}

/// Why sending a snapshot failed. It is requested again; the follower keeps what it has received.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// The follower refused the snapshot.
    #[error("the follower refuses the snapshot: {text}")]
    Refused {
        /// The kind of refusal.
        refusal: Refusal,
        /// The follower's reason.
        text: String,
    },
    /// The follower was silent for too long.
    #[error("the follower has been silent for {} ms", silence.as_millis())]
    Silent {
        /// How long the sender waited.
        silence: Duration,
    },
    /// The follower has received everything and has not applied it in time.
    #[error("the follower has not applied the snapshot within {} ms", limit.as_millis())]
    ApplyTooLong {
        /// How long the sender waited.
        limit: Duration,
    },
    /// The follower violated the protocol.
    #[error("the follower violated the snapshot protocol: {0}")]
    Protocol(&'static str),
    /// The archive cannot be read: the disk fails, or the archive is damaged.
    #[error("the snapshot cannot be read: {0}")]
    Archive(String),
}

impl SendFailure {
    fn archive(error: &SnapshotError) -> Self {
        Self::Archive(error.to_string())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    New,
    Offered,
    /// The offsets up to which bytes were sent and confirmed.
    Sending {
        sent: u64,
        confirmed: u64,
    },
    Installing {
        since: Instant,
    },
    Applied,
}

/// Sends one snapshot. Pass the follower's messages to [`Self::on_message`], send what
/// [`Self::poll`] returns, and end it at its [`Self::deadline`].
#[derive(Debug)]
pub struct SnapshotSender {
    archive: SnapshotArchive,
    term: Term,
    limits: SendLimits,
    state: State,
    heard: Instant,
    resumed_at: u64,
}

impl SnapshotSender {
    /// Creates a sender of `archive`, which was verified, for the leader of `term`.
    #[must_use]
    pub fn new(archive: SnapshotArchive, term: Term, limits: SendLimits, now: Instant) -> Self {
        let piece_bytes = limits.piece_bytes.clamp(1, PIECE_BYTES_MAX);
        let limits = SendLimits { piece_bytes, ..limits };
        Self { archive, term, limits, state: State::New, heard: now, resumed_at: 0 }
    }

    /// The next message to send; `None`: wait for the follower.
    ///
    /// # Errors
    /// The archive can no longer be read.
    pub fn poll(&mut self) -> Result<Option<SnapshotMessage>, SendFailure> {
        match self.state {
            State::New => {
                self.state = State::Offered;
                let header = self.archive.header_bytes().clone();
                let header = if header.len() <= OFFERED_HEADER_BYTES_MAX {
                    header
                } else {
                    Default::default()
                };
                Ok(Some(SnapshotMessage::Offer {
                    term: self.term,
                    archive: Offer::from(&self.archive),
                    header,
                }))
            }
            State::Sending { sent, confirmed }
                if sent < self.archive.len() && sent - confirmed < self.limits.window_bytes =>
            {
                let piece = self
                    .archive
                    .read_at(sent, self.limits.piece_bytes)
                    .map_err(|error| SendFailure::archive(&error))?;
                self.state = State::Sending { sent: sent + piece.bytes.len() as u64, confirmed };
                Ok(Some(SnapshotMessage::Piece {
                    offset: piece.offset,
                    bytes: piece.bytes,
                    crc: piece.crc,
                }))
            }
            _ => Ok(None),
        }
    }

    /// Handles a message of the follower.
    ///
    /// # Errors
    /// Sending has failed.
    pub fn on_message(
        &mut self,
        now: Instant,
        message: SnapshotMessage,
    ) -> Result<(), SendFailure> {
        self.heard = now;
        let len = self.archive.len();
        self.state = match (self.state, message) {
            (_, SnapshotMessage::Refused { refusal, text }) => {
                // The text is shown to operators and kept until the next attempt.
                let text = text.chars().take(REFUSAL_CHARS_MAX).collect();
                return Err(SendFailure::Refused { refusal, text });
            }
            (state, SnapshotMessage::Working) => state,
            (State::Offered, SnapshotMessage::Accept { offset }) if offset <= len => {
                self.resumed_at = offset;
                State::Sending { sent: offset, confirmed: offset }
            }
            // A piece was out of place: resume from there.
            (State::Sending { .. }, SnapshotMessage::Accept { offset }) if offset <= len => {
                State::Sending { sent: offset, confirmed: offset }
            }
            (State::Sending { sent, confirmed }, SnapshotMessage::Received { offset })
                if offset <= sent =>
            {
                State::Sending { sent, confirmed: confirmed.max(offset) }
            }
            (State::Sending { sent, .. }, SnapshotMessage::Installing) if sent == len => {
                State::Installing { since: now }
            }
            // The follower had received the whole archive in an earlier attempt.
            (State::Offered, SnapshotMessage::Installing) => State::Installing { since: now },
            (State::Installing { .. }, SnapshotMessage::Applied) => State::Applied,
            (_, SnapshotMessage::Applied) => {
                return Err(SendFailure::Protocol("it reports Applied before it has everything"));
            }
            (_, SnapshotMessage::Installing) => {
                return Err(SendFailure::Protocol(
                    "it reports Installing before it has everything",
                ));
            }
            (_, SnapshotMessage::Accept { .. } | SnapshotMessage::Received { .. }) => {
                return Err(SendFailure::Protocol("it reports an offset that was not sent"));
            }
            (_, SnapshotMessage::Offer { .. } | SnapshotMessage::Piece { .. }) => {
                return Err(SendFailure::Protocol("it sends a message that only a leader sends"));
            }
        };
        Ok(())
    }

    /// When sending fails if nothing is heard from the follower until then.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let silent = self.heard.plus(self.limits.silence);
        match self.state {
            State::Installing { since } => silent.min(since.plus(self.limits.apply)),
            _ => silent,
        }
    }

    /// The reason of the failure, if the deadline has passed at `now`.
    #[must_use]
    pub fn expired(&self, now: Instant) -> Option<SendFailure> {
        if now < self.deadline() || self.is_applied() {
            return None;
        }
        match self.state {
            State::Installing { since } if now >= since.plus(self.limits.apply) => {
                Some(SendFailure::ApplyTooLong { limit: self.limits.apply })
            }
            _ => Some(SendFailure::Silent { silence: self.limits.silence }),
        }
    }

    /// Whether the follower's state machine has installed the snapshot.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        self.state == State::Applied
    }

    /// Whether the follower has received everything and is installing it.
    #[must_use]
    pub fn is_installing(&self) -> bool {
        matches!(self.state, State::Installing { .. } | State::Applied)
    }

    /// Bytes that the follower has confirmed.
    #[must_use]
    pub fn confirmed(&self) -> u64 {
        match self.state {
            State::New | State::Offered => 0,
            State::Sending { confirmed, .. } => confirmed,
            State::Installing { .. } | State::Applied => self.archive.len(),
        }
    }

    /// The offset from which the follower wanted the archive: more than zero if an earlier attempt
    /// was cut off.
    #[must_use]
    pub fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    /// How far it has come, for [`SnapshotSends::moved`](crate::SnapshotSends::moved).
    #[must_use]
    pub fn progress(&self) -> SendProgress {
        SendProgress {
            confirmed: self.confirmed(),
            resumed_at: self.resumed_at,
            is_installing: self.is_installing(),
        }
    }

    /// The archive.
    #[must_use]
    pub fn archive(&self) -> &SnapshotArchive {
        &self.archive
    }
}
