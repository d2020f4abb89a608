//! Bugs of other implementations, as scenarios. The number is the row in the project's catalogue of
//! real bugs; `docs/testing.md` says which test stands for which row.
#![allow(clippy::unwrap_used)]

mod support;

use d_engine_core::{AppendOutcome, LogIndex, Message, RoleKind, Term};
use support::{Node, id};

/// Row 42 (openraft 1500, CCF 6016): a leader that is elected again receives an ack of its earlier
/// term. The follower's log may have been changed in between, so the ack means nothing now.
#[test]
fn row_42_an_ack_of_an_earlier_term_does_not_count_after_re_election() {
    let mut node = Node::leader(3, 0, &[]);
    assert_eq!((node.role(), node.core.term()), (RoleKind::Leader, Term::new(1)));
    node.propose(3).unwrap();
    node.store();
    // Deposed before any ack arrives, and elected again in term 3.
    node.receive(
        2,
        Message::AppendReply {
            term: Term::new(2),
            outcome: AppendOutcome::Conflict { refused: LogIndex::new(1), hint: id(0, 0) },
        },
    )
    .unwrap();
    node.store();
    node.campaign();
    node.store();
    node.receive(2, Message::VoteReply { term: Term::new(3), granted: true }).unwrap();
    node.store();
    assert_eq!((node.role(), node.core.term()), (RoleKind::Leader, Term::new(3)));
    // The follower has the no-op of term 3 at the index that its old ack names.
    let old = Message::AppendReply { term: Term::new(1), outcome: AppendOutcome::Stored(LogIndex::new(5)) };
    node.receive(3, old).unwrap();
    assert_eq!(node.commit(), 0);
    node.stored_by(3, 5).unwrap();
    assert_eq!(node.commit(), 5);
}
