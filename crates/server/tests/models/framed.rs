//! The outbox of a peer: the writing task wakes for every frame, and nothing is queued for a
//! connection that is gone.

use std::sync::Arc;

use bytes::Bytes;
use d_engine_wire::EncodedFrame;
use loom::thread;

use batch::Batch;
use outbox::{Lane, Outbox};

use crate::transport::Sent;
use crate::{model, run};

#[path = "../../src/transport/framed/outbox.rs"]
mod outbox;

mod wire {
    pub(super) const PART_BYTES: usize = 16 << 10;

    pub(super) enum Piece {
        Whole,
        Part,
        LastPart,
    }
}

/// The frames that were taken, as the transport writes them.
mod batch {
    use d_engine_wire::EncodedFrame;

    #[derive(Default)]
    pub(super) struct Batch(pub(super) Vec<EncodedFrame>);

    impl Batch {
        pub(super) fn push(&mut self, frame: EncodedFrame) {
            self.0.push(frame);
        }

        pub(super) fn push_piece(&mut self, _: super::wire::Piece, frame: EncodedFrame) {
            self.0.push(frame);
        }
    }
}

fn outbox() -> Arc<Outbox> {
    let outbox = Arc::new(Outbox::new(10, 1_000));
    assert!(outbox.open());
    outbox
}

fn frame(byte: u8) -> EncodedFrame {
    EncodedFrame { head: Bytes::from(vec![byte]), entries: Bytes::new() }
}

fn taken(outbox: &Outbox) -> Vec<u8> {
    let mut batch = Batch::default();
    outbox.take(&mut batch, 1_000);
    batch.0.iter().map(|frame| frame.head[0]).collect()
}

#[test]
fn the_writing_task_wakes_for_every_frame_and_appends_keep_their_order() {
    model(|| {
        let outbox = outbox();
        let raft = thread::spawn({
            let outbox = outbox.clone();
            move || {
                for byte in [1, 2] {
                    assert_eq!(outbox.push(Lane::Bulk, frame(byte)), Sent::Queued);
                }
            }
        });
        let mut written = Vec::new();
        while written.len() < 2 {
            run(outbox.filled());
            written.extend(taken(&outbox));
        }
        assert_eq!(written, [1, 2]);
        raft.join().unwrap();
    });
}

/// A frame of the connection before would be stale on the next one.
#[test]
fn a_frame_that_is_pushed_while_the_connection_closes_is_not_sent_on_the_next_one() {
    model(|| {
        let outbox = outbox();
        let raft = thread::spawn({
            let outbox = outbox.clone();
            move || outbox.push(Lane::Urgent, frame(1))
        });
        assert!(outbox.close());
        let sent = raft.join().unwrap();
        assert!(outbox.open());
        assert_eq!(taken(&outbox), Vec::<u8>::new(), "{sent:?}");
    });
}

/// The raft thread gives a peer up while the dialling task has just connected.
#[test]
fn an_outbox_that_was_given_up_stays_closed() {
    model(|| {
        let outbox = outbox();
        outbox.close();
        let dialler = thread::spawn({
            let outbox = outbox.clone();
            move || outbox.open()
        });
        outbox.retire();
        dialler.join().unwrap();
        assert!(!outbox.is_open());
        assert!(matches!(outbox.push(Lane::Urgent, frame(1)), Sent::Lost));
    });
}
