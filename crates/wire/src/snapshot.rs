//! Encodes and decodes the messages between the sender and the receiver of a snapshot.

use bytes::Bytes;
use d_engine_replica::{OFFERED_HEADER_BYTES_MAX, PIECE_BYTES_MAX, Refusal, SnapshotMessage};
use d_engine_storage::snapshot::Offer;
use prost::Message as _;

use crate::decode::{FrameError, position, term};
use crate::message::{self as peer, SnapshotRefusal, snapshot_frame::Body};

/// The longest frame of a snapshot connection, in bytes: a piece, or an offer with its header.
pub const MAX_SNAPSHOT_FRAME_BYTES: usize = 4096
    + if PIECE_BYTES_MAX > OFFERED_HEADER_BYTES_MAX {
        PIECE_BYTES_MAX
    } else {
        OFFERED_HEADER_BYTES_MAX
    };

/// Encodes a message.
#[must_use]
pub fn encode_snapshot_frame(message: &SnapshotMessage) -> Bytes {
    let empty = peer::SnapshotEmpty {};
    let body = match message {
        SnapshotMessage::Offer { term, archive, header } => Body::Offer(peer::SnapshotOffer {
            term: term.get(),
            last_included: Some(peer::LogPosition {
                term: archive.last_included.term.get(),
                index: archive.last_included.index.get(),
            }),
            length: archive.len,
            sha256: Bytes::copy_from_slice(&archive.sha256),
            header: header.clone(),
        }),
        SnapshotMessage::Accept { offset } => Body::Accept(*offset),
        SnapshotMessage::Piece { offset, bytes, crc } => {
            Body::Piece(peer::SnapshotPiece { offset: *offset, data: bytes.clone(), crc: *crc })
        }
        SnapshotMessage::Received { offset } => Body::Received(*offset),
        SnapshotMessage::Working => Body::Working(empty),
        SnapshotMessage::Installing => Body::Installing(empty),
        SnapshotMessage::Applied => Body::Applied(empty),
        SnapshotMessage::Refused { refusal, text } => Body::Refused(peer::SnapshotRefused {
            refusal: match refusal {
                Refusal::Busy => SnapshotRefusal::Busy,
                Refusal::NotNeeded => SnapshotRefusal::NotNeeded,
                Refusal::Unusable => SnapshotRefusal::Unusable,
                Refusal::Protocol => SnapshotRefusal::Protocol,
            }
            .into(),
            // A reason is one line; a longer one might not fit into a frame.
            text: text.chars().take(1_000).collect(),
        }),
    };
    peer::SnapshotFrame { body: Some(body) }.encode_to_vec().into()
}

/// Decodes what [`encode_snapshot_frame`] wrote. Payloads are slices of `frame`.
///
/// # Errors
/// See [`FrameError`]: close the connection.
pub fn decode_snapshot_frame(frame: &Bytes) -> Result<SnapshotMessage, FrameError> {
    if frame.len() > MAX_SNAPSHOT_FRAME_BYTES {
        return Err(FrameError::TooLong { length: frame.len(), limit: MAX_SNAPSHOT_FRAME_BYTES });
    }
    let body =
        peer::SnapshotFrame::decode(frame.clone())?.body.ok_or(FrameError::Missing("body"))?;
    Ok(match body {
        Body::Offer(offer) => SnapshotMessage::Offer {
            term: term(offer.term)?,
            archive: Offer {
                last_included: position("last included entry", offer.last_included)?,
                len: offer.length,
                sha256: offer.sha256[..].try_into().map_err(|_| FrameError::Missing("sha256"))?,
            },
            header: offer.header,
        },
        Body::Accept(offset) => SnapshotMessage::Accept { offset },
        Body::Piece(piece) => {
            SnapshotMessage::Piece { offset: piece.offset, bytes: piece.data, crc: piece.crc }
        }
        Body::Received(offset) => SnapshotMessage::Received { offset },
        Body::Working(_) => SnapshotMessage::Working,
        Body::Installing(_) => SnapshotMessage::Installing,
        Body::Applied(_) => SnapshotMessage::Applied,
        Body::Refused(refused) => SnapshotMessage::Refused {
            refusal: match refused.refusal() {
                SnapshotRefusal::Busy => Refusal::Busy,
                SnapshotRefusal::NotNeeded => Refusal::NotNeeded,
                SnapshotRefusal::Unusable | SnapshotRefusal::Unspecified => Refusal::Unusable,
                SnapshotRefusal::Protocol => Refusal::Protocol,
            },
            text: refused.text,
        },
    })
}

#[cfg(test)]
mod tests {
    use d_engine_core::{LogId, LogIndex, Term};
    use proptest::prelude::*;

    use super::*;

    fn messages() -> Vec<SnapshotMessage> {
        let archive = Offer {
            last_included: LogId::new(Term::new(3), LogIndex::new(40)),
            len: 5_000,
            sha256: [9; 32],
        };
        let mut all = vec![
            SnapshotMessage::Offer {
                term: Term::new(4),
                archive,
                header: Bytes::from_static(b"header"),
            },
            SnapshotMessage::Accept { offset: 0 },
            SnapshotMessage::Accept { offset: 77 },
            SnapshotMessage::Piece {
                offset: 77,
                bytes: Bytes::from_static(b"bytes"),
                crc: 0xdead_beef,
            },
            SnapshotMessage::Received { offset: 82 },
            SnapshotMessage::Working,
            SnapshotMessage::Installing,
            SnapshotMessage::Applied,
        ];
        for refusal in [Refusal::Busy, Refusal::NotNeeded, Refusal::Unusable, Refusal::Protocol] {
            all.push(SnapshotMessage::Refused { refusal, text: "why".to_owned() });
        }
        all
    }

    #[test]
    fn every_message_of_a_sent_snapshot_comes_back() {
        for message in messages() {
            assert_eq!(decode_snapshot_frame(&encode_snapshot_frame(&message)), Ok(message));
        }
    }

    #[test]
    fn the_longest_piece_and_the_longest_header_fit_into_a_frame() {
        let piece = SnapshotMessage::Piece {
            offset: u64::MAX,
            bytes: Bytes::from(vec![1; PIECE_BYTES_MAX]),
            crc: u32::MAX,
        };
        assert!(decode_snapshot_frame(&encode_snapshot_frame(&piece)).is_ok());
        let Some(SnapshotMessage::Offer { term, archive, .. }) = messages().into_iter().next()
        else {
            panic!("no offer")
        };
        let header = Bytes::from(vec![1; OFFERED_HEADER_BYTES_MAX]);
        let offer = SnapshotMessage::Offer { term, archive, header };
        assert!(decode_snapshot_frame(&encode_snapshot_frame(&offer)).is_ok());
        let long = SnapshotMessage::Refused { refusal: Refusal::Busy, text: "x".repeat(1 << 20) };
        assert!(encode_snapshot_frame(&long).len() < 2_000);
    }

    #[test]
    fn an_offer_without_a_whole_checksum_and_a_frame_without_a_body_are_refused() {
        let last_included = Some(peer::LogPosition { term: 3, index: 40 });
        let offer = peer::SnapshotOffer {
            last_included,
            sha256: Bytes::from_static(&[1; 31]),
            ..Default::default()
        };
        let frame = peer::SnapshotFrame { body: Some(Body::Offer(offer)) }.encode_to_vec();
        assert_eq!(decode_snapshot_frame(&frame.into()), Err(FrameError::Missing("sha256")));
        assert_eq!(decode_snapshot_frame(&Bytes::new()), Err(FrameError::Missing("body")));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_of_a_sent_snapshot_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            decode_snapshot_frame(&bytes.into()).ok();
        }
    }
}
