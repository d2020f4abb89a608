//! The bounds of the inbox, and commands that are withdrawn.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;

use d_engine_core::{Instant, ReadMode};
use d_engine_replica::{Proposal, ProposeError, ReadError};

use crate::node::clock::Clock;
use crate::threads::inbox::{Inbox, InboxLimits, Ticket};
use crate::threads::read_gate::ReadGate;

fn inbox() -> Inbox {
    let limits = InboxLimits { proposals: 3, bytes: 10, reads: 2 };
    Inbox::new(limits, Arc::new(ReadGate::new(Clock::start())))
}

/// Enqueues a command of this many bytes. Returns its ticket, and the receiver of its result.
fn propose(inbox: &Inbox, bytes: usize) -> (Option<Ticket>, Receiver<Result<Bytes, ProposeError>>) {
    let (tell, told) = channel();
    let responder = Box::new(move |result| tell.send(result).unwrap());
    (inbox.propose(Proposal::new(Bytes::from(vec![0; bytes]), None, responder)), told)
}

fn busy_with(told: &Receiver<Result<Bytes, ProposeError>>) -> Option<&'static str> {
    match told.try_recv() {
        Ok(Err(ProposeError::Busy { what })) => Some(what),
        _ => None,
    }
}

#[test]
fn commands_that_wait_are_bounded_by_bytes_and_by_number() {
    let bytes = Some("bytes of proposals waiting to be taken up");
    let inbox = inbox();
    assert_eq!(busy_with(&propose(&inbox, 6).1), None);
    assert_eq!(busy_with(&propose(&inbox, 5).1), bytes);
    assert_eq!(busy_with(&propose(&inbox, 4).1), None);
    assert_eq!(busy_with(&propose(&inbox, 1).1), bytes);
    assert_eq!(inbox.take().proposals.len(), 2);
    // A command that is longer than the limit is accepted alone.
    assert_eq!(busy_with(&propose(&inbox, 11).1), None);
    assert_eq!(busy_with(&propose(&inbox, 0).1), bytes);
    inbox.take();
    for _ in 0..3 {
        assert_eq!(busy_with(&propose(&inbox, 1).1), None);
    }
    assert_eq!(busy_with(&propose(&inbox, 1).1), Some("proposals waiting to be taken up"));
}

#[test]
fn reads_that_wait_are_bounded_by_number() {
    let inbox = inbox();
    let read = || {
        let (tell, told) = channel();
        inbox.read(ReadMode::Round, None, Box::new(move |result| tell.send(result).unwrap()));
        told.try_recv().ok()
    };
    assert_eq!((read(), read()), (None, None));
    assert!(matches!(read(), Some(Err(ReadError::Busy { .. }))));
    assert_eq!(inbox.take().reads.len(), 2);
    assert_eq!(read(), None);
}

/// The raft thread has not taken the command, so it will not be proposed.
#[test]
fn a_command_can_be_withdrawn_until_it_is_taken_up() {
    let inbox = inbox();
    let first = propose(&inbox, 1).0.unwrap();
    assert_eq!(inbox.take().proposals.len(), 1);
    let (second, third) = (propose(&inbox, 1).0.unwrap(), propose(&inbox, 1).0.unwrap());
    assert!(!inbox.withdraw(first), "the raft thread has taken it");
    assert!(inbox.withdraw(third));
    let deadlines: Vec<_> = inbox.take().proposals.into_iter().map(|one| one.deadline).collect();
    assert_eq!(deadlines, [None, Some(Instant::from_nanos(0))]);
    assert!(!inbox.withdraw(second) && !inbox.withdraw(third));
}
