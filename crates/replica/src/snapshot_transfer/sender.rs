//! The leader's side of a transfer.

use d_engine_core::{Duration, Instant, Term};
use d_engine_storage::snapshot::{Offer, SnapshotArchive, SnapshotError};

use super::{OFFERED_HEADER_BYTES_MAX, PIECE_BYTES_MAX, Refusal, SnapshotMessage};

/// How much of a follower's reason is kept.
const REFUSAL_CHARS_MAX: usize = 1_000;

/// How a snapshot is sent.
#[derive(Clone, Copy, Debug)]
pub struct SendLimits {
    /// Bytes in one piece, at most [`PIECE_BYTES_MAX`].
    pub piece_bytes: usize,
    /// Bytes on their way that the follower has not confirmed.
    pub window_bytes: u64,
    /// How long the follower may say nothing.
    pub silence: Duration,
    /// How long the follower may take from having everything to having applied it.
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

/// Why a snapshot did not arrive. It is ordered again; what arrived is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// The follower refused it.
    #[error("the follower refuses the snapshot: {text}")]
    Refused {
        /// What to do about it.
        refusal: Refusal,
        /// Why, in the follower's words.
        text: String,
    },
    /// The follower said nothing for too long.
    #[error("the follower has said nothing for {} ms", silence.as_nanos() / 1_000_000)]
    Silent {
        /// How long was waited.
        silence: Duration,
    },
    /// The follower has everything and has not applied it in time.
    #[error("the follower has not applied the snapshot within {} ms", limit.as_nanos() / 1_000_000)]
    ApplyTooLong {
        /// How long was waited.
        limit: Duration,
    },
    /// The follower's answer has no place in the transfer.
    #[error("the follower's answer has no place here: {0}")]
    Protocol(&'static str),
    /// The archive cannot be read: the disk fails, or it is damaged.
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
    /// Sent up to, and confirmed up to.
    Sending {
        sent: u64,
        confirmed: u64,
    },
    Installing {
        since: Instant,
    },
    Applied,
}

/// The leader's side of one transfer. Give it what the follower says, ask it what to say next, and end it at its
/// deadline.
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
    /// Will send `archive`, which was verified, as the leader of `term`.
    #[must_use]
    pub fn new(archive: SnapshotArchive, term: Term, limits: SendLimits, now: Instant) -> Self {
        let piece_bytes = limits.piece_bytes.clamp(1, PIECE_BYTES_MAX);
        let limits = SendLimits { piece_bytes, ..limits };
        Self { archive, term, limits, state: State::New, heard: now, resumed_at: 0 }
    }

    /// What to send now; `None`: nothing before the follower has answered.
    ///
    /// # Errors
    /// The archive cannot be read any more.
    pub fn poll(&mut self) -> Result<Option<SnapshotMessage>, SendFailure> {
        match self.state {
            State::New => {
                self.state = State::Offered;
                let header = self.archive.header_bytes().clone();
                let header =
                    if header.len() <= OFFERED_HEADER_BYTES_MAX { header } else { Default::default() };
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
                Ok(Some(SnapshotMessage::Piece { offset: piece.offset, bytes: piece.bytes, crc: piece.crc }))
            }
            _ => Ok(None),
        }
    }

    /// The follower has said something.
    ///
    /// # Errors
    /// The transfer has failed.
    pub fn on_message(&mut self, now: Instant, message: SnapshotMessage) -> Result<(), SendFailure> {
        self.heard = now;
        let len = self.archive.len();
        self.state = match (self.state, message) {
            (_, SnapshotMessage::Refused { refusal, text }) => {
                // It is shown to people, and kept until the next attempt.
                let text = text.chars().take(REFUSAL_CHARS_MAX).collect();
                return Err(SendFailure::Refused { refusal, text });
            }
            (state, SnapshotMessage::Working) => state,
            (State::Offered, SnapshotMessage::Accept { offset }) if offset <= len => {
                self.resumed_at = offset;
                State::Sending { sent: offset, confirmed: offset }
            }
            // A piece did not fit: from there again.
            (State::Sending { .. }, SnapshotMessage::Accept { offset }) if offset <= len => {
                State::Sending { sent: offset, confirmed: offset }
            }
            (State::Sending { sent, confirmed }, SnapshotMessage::Received { offset }) if offset <= sent => {
                State::Sending { sent, confirmed: confirmed.max(offset) }
            }
            (State::Sending { sent, .. }, SnapshotMessage::Installing) if sent == len => {
                State::Installing { since: now }
            }
            // The follower had it whole from an earlier transfer.
            (State::Offered, SnapshotMessage::Installing) => State::Installing { since: now },
            (State::Installing { .. }, SnapshotMessage::Applied) => State::Applied,
            (_, SnapshotMessage::Applied) => {
                return Err(SendFailure::Protocol("it applied what it does not have"));
            }
            (_, SnapshotMessage::Installing) => {
                return Err(SendFailure::Protocol("it installs what was not sent"));
            }
            (_, SnapshotMessage::Accept { .. } | SnapshotMessage::Received { .. }) => {
                return Err(SendFailure::Protocol("an offset that it cannot have"));
            }
            (_, SnapshotMessage::Offer { .. } | SnapshotMessage::Piece { .. }) => {
                return Err(SendFailure::Protocol("it sends a snapshot itself"));
            }
        };
        Ok(())
    }

    /// When the transfer has failed if nothing is heard until then.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        let silent = self.heard.plus(self.limits.silence);
        match self.state {
            State::Installing { since } => silent.min(since.plus(self.limits.apply)),
            _ => silent,
        }
    }

    /// Why it has failed at `now`, if its deadline has passed.
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

    /// Whether the follower's state machine holds the snapshot.
    #[must_use]
    pub fn is_applied(&self) -> bool {
        let early = cfg!(mutant = "success-before-apply") && matches!(self.state, State::Installing { .. });
        self.state == State::Applied || early
    }

    /// Whether the follower has everything and installs it.
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

    /// Where the follower wanted it to go on: more than zero when an earlier transfer was cut.
    #[must_use]
    pub fn resumed_at(&self) -> u64 {
        self.resumed_at
    }

    /// The archive.
    #[must_use]
    pub fn archive(&self) -> &SnapshotArchive {
        &self.archive
    }
}
