//! The inbox: a caller is answered exactly once, whatever the raft thread does meanwhile, and the
//! raft thread wakes for everything that arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use d_engine_core::Instant;
use d_engine_replica::{Event, Proposal, StopReason};
use loom::thread;

use crate::node::clock::Clock;
use crate::threads::inbox::{Inbox, InboxLimits};
use crate::threads::read_gate::ReadGate;
use crate::{model, run};

fn inbox() -> Arc<Inbox> {
    let limits = InboxLimits { proposals: 3, bytes: 10, reads: 2 };
    Arc::new(Inbox::new(limits, Arc::new(ReadGate::new(Clock))))
}

/// A command whose answers are counted.
fn proposal(answers: &Arc<AtomicU64>) -> Proposal {
    let answers = answers.clone();
    let responder = Box::new(move |_| {
        answers.fetch_add(1, Ordering::Relaxed);
    });
    Proposal::new(Bytes::new(), None, responder)
}

#[test]
fn a_command_is_answered_once_or_taken_while_the_inbox_closes() {
    model(|| {
        let (inbox, answers) = (inbox(), Arc::new(AtomicU64::new(0)));
        let caller = thread::spawn({
            let (inbox, proposal) = (inbox.clone(), proposal(&answers));
            move || inbox.propose(proposal).is_some()
        });
        let taken = inbox.take().proposals.len() as u64;
        inbox.close(&StopReason::new("the node was shut down"));
        caller.join().unwrap();
        assert_eq!(inbox.take().proposals.len(), 0, "a closed inbox is empty");
        assert_eq!(taken + answers.load(Ordering::Relaxed), 1);
    });
}

/// The caller's deadline has passed while the raft thread takes the command. Its outcome is unknown
/// only if the command was taken as it is.
#[test]
fn a_command_is_withdrawn_or_taken_up_and_never_both() {
    model(|| {
        let (inbox, answers) = (inbox(), Arc::new(AtomicU64::new(0)));
        let ticket = inbox.propose(proposal(&answers)).unwrap();
        let raft = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.take().proposals.remove(0).deadline
        });
        let was_withdrawn = inbox.withdraw(ticket);
        let deadline = raft.join().unwrap();
        assert_eq!(deadline == Some(Instant::from_nanos(0)), was_withdrawn);
    });
}

/// A worker's report is never refused, and never left lying.
#[test]
fn the_raft_thread_wakes_for_every_report() {
    model(|| {
        let inbox = inbox();
        let workers = [1, 2].map(|_| {
            let inbox = inbox.clone();
            thread::spawn(move || inbox.report(Event::Deadline))
        });
        let mut reports = 0;
        while reports < workers.len() {
            run(inbox.filled());
            reports += inbox.take().reports.len();
        }
        workers.into_iter().for_each(|worker| worker.join().unwrap());
    });
}

/// The failure that closes the inbox and a request for shutdown may come together.
#[test]
fn a_shutdown_that_is_requested_while_the_inbox_closes_is_seen() {
    model(|| {
        let inbox = inbox();
        let caller = thread::spawn({
            let inbox = inbox.clone();
            move || inbox.shut_down()
        });
        inbox.close(&StopReason::new("a failed sync"));
        run(inbox.filled());
        assert!(inbox.take().shutdown);
        caller.join().unwrap();
    });
}
