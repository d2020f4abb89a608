//! Committed entries as a state machine sees them, and the replies it gives.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use d_engine_core::{LogId, SessionSerial};
use d_engine_locks::Unpoisoned;

/// A committed command, as a state machine receives it.
///
/// Every replica receives the same entries in the same order. A clone shares the reply slot.
#[derive(Clone)]
pub struct Entry {
    /// The position in the log. Indexes rise by more than one where the log contains entries of the
    /// engine.
    pub index: u64,
    /// The term of the leader that created the entry.
    pub term: u64,
    /// The command, as it was proposed.
    pub data: Bytes,
    time_ms: u64,
    version: u32,
    session: Option<SessionSerial>,
    sink: Option<Arc<ReplySink>>,
    slot: usize,
}

impl Entry {
    /// An entry for tests; its replies are dropped.
    #[must_use]
    pub fn new(index: u64, term: u64, data: impl Into<Bytes>) -> Self {
        Self {
            index,
            term,
            data: data.into(),
            time_ms: 0,
            version: 0,
            session: None,
            sink: None,
            slot: 0,
        }
    }

    /// An entry for tests, and a probe that returns its reply.
    #[must_use]
    pub fn with_reply_probe(index: u64, term: u64, data: impl Into<Bytes>) -> (Self, ReplyProbe) {
        let sink = ReplySink::with_slots(1);
        let mut entry = Self::new(index, term, data);
        entry.sink = Some(sink.clone());
        (entry, ReplyProbe { sink })
    }

    /// The same entry with its log time and session, and its place in a chunk's replies. Used by
    /// the handler.
    #[must_use]
    pub fn in_chunk(
        mut self,
        time_ms: u64,
        session: Option<SessionSerial>,
        sink: Arc<ReplySink>,
        slot: usize,
    ) -> Self {
        self.time_ms = time_ms;
        self.session = session;
        self.sink = Some(sink);
        self.slot = slot;
        self
    }

    /// The same entry as one of a command of this version.
    #[must_use]
    pub fn of_version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    /// The version of the command, as the leader's program determined it
    /// ([`crate::StateMachine::command_version`]). Bytes that are a command only in a later version
    /// must be answered as a program answers that does not know that version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same entry at a log time, for tests.
    #[must_use]
    pub fn at_time_ms(mut self, time_ms: u64) -> Self {
        self.time_ms = time_ms;
        self
    }

    /// Log time in UNIX milliseconds, given by the leader that created the entry; it never goes
    /// back along the log. The only time that a state machine may use.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The client session of the command, if it was sent under one. `None` until sessions exist.
    #[must_use]
    pub fn session(&self) -> Option<SessionSerial> {
        self.session
    }

    /// The term and index together.
    #[must_use]
    pub fn id(&self) -> LogId {
        LogId::of(self.term, self.index)
    }

    /// Replies to the caller that proposed this command, once `apply_chunk` has returned `Ok`.
    /// Without a call the reply is empty. The first reply wins; a later one is ignored and counted.
    pub fn reply(&self, answer: impl Into<Bytes>) {
        if let Some(sink) = &self.sink {
            sink.put(self.slot, answer.into());
        }
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("index", &self.index)
            .field("term", &self.term)
            .field("time_ms", &self.time_ms)
            .field("data_len", &self.data.len())
            .finish_non_exhaustive()
    }
}

/// The replies of one chunk; shared by its entries.
#[derive(Debug)]
pub struct ReplySink {
    slots: Mutex<Option<Vec<Option<Bytes>>>>,
    ignored: Arc<AtomicU64>,
}

impl ReplySink {
    /// A sink for a chunk of `count` entries.
    #[must_use]
    pub fn with_slots(count: usize) -> Arc<Self> {
        Self::counting(count, Arc::default())
    }

    /// The same, adding what it ignores to `ignored`.
    #[must_use]
    pub fn counting(count: usize, ignored: Arc<AtomicU64>) -> Arc<Self> {
        Arc::new(Self { slots: Mutex::new(Some(vec![None; count])), ignored })
    }

    fn put(&self, slot: usize, answer: Bytes) {
        let mut slots = self.slots.lock().unpoisoned();
        match slots.as_mut().and_then(|slots| slots.get_mut(slot)) {
            Some(empty @ None) => *empty = Some(answer),
            _ => {
                self.ignored.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Takes the replies and closes the sink: later replies are ignored and counted.
    #[must_use]
    pub fn take(&self) -> Vec<Option<Bytes>> {
        self.slots.lock().unpoisoned().take().unwrap_or_default()
    }

    /// Replies that came second or too late.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.ignored.load(Ordering::Relaxed)
    }
}

/// Returns the reply to an entry made by [`Entry::with_reply_probe`].
#[derive(Debug)]
pub struct ReplyProbe {
    sink: Arc<ReplySink>,
}

impl ReplyProbe {
    /// The reply, if there was one. Closes the slot: a later reply counts as ignored.
    #[must_use]
    pub fn take(&self) -> Option<Bytes> {
        self.sink.take().into_iter().next().flatten()
    }

    /// Replies that came second or too late.
    #[must_use]
    pub fn ignored(&self) -> u64 {
        self.sink.ignored()
    }
}
