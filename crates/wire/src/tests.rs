use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use d_engine_core::{
    AppendOutcome, EntryKind, FollowerReport, GroupId, LogId, LogIndex, MAX_ACCEPTED_TIME_MS,
    NodeId, Term,
};
use d_engine_replica::PeerMessage;
use d_engine_storage::{ClusterId, ConfigId, Incarnation, LogEntry, SessionSerial};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::message::{self as peer, peer_frame::Body};

const GROUP: GroupId = GroupId::FIRST;

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

fn command(term: u64, index: u64, data: &'static [u8]) -> LogEntry {
    LogEntry {
        id: id(term, index),
        kind: EntryKind::Command,
        time_ms: 1_700_000_000_000,
        session: None,
        version: 0,
        data: Bytes::from_static(data),
    }
}

fn append(entries: Vec<LogEntry>) -> PeerMessage {
    PeerMessage::Append {
        term: Term::new(7),
        prev: id(3, 10),
        commit: LogIndex::new(9),
        entries: entries.into(),
    }
}

fn decode_wire(frame: &peer::PeerFrame) -> Result<(GroupId, PeerMessage), FrameError> {
    decode_frame(&frame.encode_to_vec().into())
}

fn wire(body: Body) -> peer::PeerFrame {
    peer::PeerFrame { group: 1, body: Some(body), entries: Vec::new() }
}

fn wire_append(count: u32, entries: Vec<peer::Entry>) -> peer::PeerFrame {
    let prev = Some(peer::LogPosition { term: 3, index: 10 });
    let append = peer::Append { term: 7, prev, commit: 0, entry_count: count };
    peer::PeerFrame { group: 1, body: Some(Body::Append(append)), entries }
}

fn wire_entry(term: u64) -> peer::Entry {
    peer::Entry { term, kind: 2, ..peer::Entry::default() }
}

// ---- roundtrips ----

fn any_index() -> impl Strategy<Value = LogIndex> {
    (0..=LogIndex::MAX_ACCEPTED.get()).prop_map(LogIndex::new)
}

fn any_term() -> impl Strategy<Value = Term> {
    (0..=Term::MAX_ACCEPTED.get()).prop_map(Term::new)
}

fn any_id() -> impl Strategy<Value = LogId> {
    (any_term(), any_index()).prop_map(|(term, index)| LogId::new(term, index))
}

fn any_kind() -> impl Strategy<Value = EntryKind> {
    (1_u8..=5).prop_map(|number| EntryKind::from_number(number).unwrap())
}

fn any_append() -> impl Strategy<Value = PeerMessage> {
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    let session = prop::option::of((any::<u64>(), any::<u64>()));
    let version = prop_oneof![Just(0), any::<u32>()];
    let one = (0_u64..3, any_kind(), any_time(), session, (version, payload));
    let prev = (1_u64..1 << 60, 0_u64..1 << 60);
    (prev, any_index(), prop::collection::vec(one, 0..20)).prop_map(|(prev, commit, raw)| {
        let prev = id(prev.0, prev.1);
        let mut before = prev;
        let mut entries = Vec::new();
        for (term_step, kind, time_ms, session, (version, data)) in raw {
            before = LogId::new(Term::new(before.term.get() + term_step), before.index.next());
            let session = session.map(|(session, serial)| SessionSerial { session, serial });
            entries.push(LogEntry {
                id: before,
                kind,
                time_ms,
                session,
                version,
                data: data.into(),
            });
        }
        PeerMessage::Append { term: before.term, prev, commit, entries: entries.into() }
    })
}

fn any_time() -> impl Strategy<Value = u64> {
    0..=MAX_ACCEPTED_TIME_MS
}

fn any_report() -> impl Strategy<Value = FollowerReport> {
    let halted_at = proptest::option::of(any_id());
    let parts =
        (any_index(), any::<u64>(), any_time(), any::<(bool, bool)>(), halted_at, any::<u32>());
    parts.prop_map(|(applied, nanos, wall_ms, flags, halted_at, command_version_max)| {
        let stickiness = Duration::from_nanos(nanos);
        let (short_of_space, log_lost) = flags;
        FollowerReport {
            applied,
            stickiness,
            wall_ms,
            short_of_space,
            log_lost,
            halted_at,
            command_version_max,
        }
    })
}

fn any_message() -> impl Strategy<Value = PeerMessage> {
    let outcome = prop_oneof![
        any_index().prop_map(AppendOutcome::Persisted),
        (any_index(), any_id())
            .prop_map(|(refused, hint)| AppendOutcome::Conflict { refused, hint }),
    ];
    prop_oneof![
        (any_term(), any_id()).prop_map(|(term, last)| PeerMessage::PreVote { term, last }),
        (any_term(), any::<bool>(), any_time()).prop_map(|(term, granted, wall_ms)| {
            PeerMessage::PreVoteReply { term, granted, wall_ms }
        }),
        (any_term(), any_id(), any::<bool>())
            .prop_map(|(term, last, transfer)| PeerMessage::RequestVote { term, last, transfer }),
        (any_term(), any::<bool>(), any_time())
            .prop_map(|(term, granted, wall_ms)| PeerMessage::VoteReply { term, granted, wall_ms }),
        any_append(),
        (any_term(), outcome)
            .prop_map(|(term, outcome)| PeerMessage::AppendReply { term, outcome }),
        (any_term(), any_index(), any::<u64>(), any_index()).prop_map(
            |(term, commit, round, matched)| {
                PeerMessage::Heartbeat { term, commit, round, matched }
            }
        ),
        (any_term(), any::<u64>(), any_index(), any_index(), any_report()).prop_map(
            |(term, round, received, persisted, report)| PeerMessage::HeartbeatReply {
                term,
                round,
                received,
                persisted,
                report
            }
        ),
        any_term().prop_map(|term| PeerMessage::TimeoutNow { term }),
        (any_term(), any::<u64>())
            .prop_map(|(term, token)| PeerMessage::ReadRequest { term, token }),
        (any_term(), any::<u64>(), proptest::option::of(any_index()))
            .prop_map(|(term, token, index)| PeerMessage::ReadReply { term, token, index }),
    ]
}

proptest! {
    #[test]
    fn every_message_survives_the_wire(group in 1_u64.., message in any_message()) {
        let group = GroupId::new(group).unwrap();
        let frame = encode_frame(group, &message);
        prop_assert_eq!(decode_frame(&frame.to_bytes()), Ok((group, message)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let bytes = Bytes::from(bytes);
        prop_assert!(decode_frame(&bytes).is_ok() || decode_frame(&bytes).is_err());
        prop_assert!(decode_handshake(&bytes).is_ok() || decode_handshake(&bytes).is_err());
    }

    /// Nearly valid frames reach further into the decoder than random ones.
    #[test]
    fn a_damaged_frame_never_panics(
        message in any_message(), at in any::<prop::sample::Index>(), with in any::<u8>(), cut in any::<bool>()
    ) {
        let mut bytes = encode_frame(GROUP, &message).to_bytes().to_vec();
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = with }
        if let Ok((_, PeerMessage::Append { prev, entries, .. })) = decode_frame(&bytes.into()) {
            for (entry, after) in entries.iter().zip(1..) {
                prop_assert_eq!(entry.id.index, prev.index.plus(after));
            }
        }
    }
}

// ---- entries are encoded once ----

#[test]
fn followers_with_the_same_entries_share_one_encoding() {
    let entries: Arc<[LogEntry]> = vec![command(7, 11, b"a"), command(7, 12, b"b")].into();
    let to = |commit| PeerMessage::Append {
        term: Term::new(7),
        prev: id(3, 10),
        commit: LogIndex::new(commit),
        entries: entries.clone(),
    };
    let mut encoder = FrameEncoder::new();
    let first = encoder.encode(GROUP, &to(8));
    let heartbeat = PeerMessage::Heartbeat {
        term: Term::new(7),
        commit: LogIndex::ZERO,
        round: 1,
        matched: LogIndex::ZERO,
    };
    let between = encoder.encode(GROUP, &heartbeat);
    let second = encoder.encode(GROUP, &to(9));

    assert!(between.entries.is_empty());
    assert_ne!(first.head, second.head);
    assert_eq!(first.entries.as_ptr(), second.entries.as_ptr());
    assert_eq!(decode_frame(&first.to_bytes()), Ok((GROUP, to(8))));
    assert_eq!(decode_frame(&second.to_bytes()), Ok((GROUP, to(9))));
}

#[test]
fn other_entries_of_the_same_length_are_encoded_anew() {
    let mut encoder = FrameEncoder::new();
    for data in [&b"one"[..], b"two", b"six"] {
        let message = append(vec![command(7, 11, data)]);
        let frame = encoder.encode(GROUP, &message);
        assert_eq!(decode_frame(&frame.to_bytes()), Ok((GROUP, message)));
    }
}

#[test]
fn payloads_keep_nothing_of_the_frame_alive() {
    let frame = encode_frame(GROUP, &append(vec![command(7, 11, b"a payload")])).to_bytes();
    let (_, message) = decode_frame(&frame).unwrap();
    let PeerMessage::Append { entries, .. } = message else { panic!("not an append: {message:?}") };
    let within = frame.as_ptr_range();
    assert!(!within.contains(&entries[0].data.as_ptr()), "the payload is a slice of the frame");
}

#[test]
#[should_panic(expected = "does not follow")]
fn entries_that_do_not_follow_prev_are_never_sent() {
    let _frame = encode_frame(GROUP, &append(vec![command(7, 12, b"")]));
}

#[test]
#[should_panic(expected = "gap")]
fn entries_with_a_gap_are_never_sent() {
    let _frame = encode_frame(GROUP, &append(vec![command(7, 11, b""), command(7, 13, b"")]));
}

#[test]
fn an_append_too_long_for_a_frame_is_shortened_to_a_valid_one() {
    let count = MAX_ENTRIES_PER_FRAME as u64 + 5;
    let frame = encode_frame(GROUP, &append((0..count).map(|i| command(7, 11 + i, b"")).collect()));
    let (_, message) = decode_frame(&frame.to_bytes()).unwrap();
    let PeerMessage::Append { entries, .. } = message else { panic!("not an append") };
    assert_eq!(entries.len(), MAX_ENTRIES_PER_FRAME);

    let mebibyte = Bytes::from(vec![7; 1 << 20]);
    let large = |index| LogEntry { data: mebibyte.clone(), ..command(7, index, b"") };
    let frame = encode_frame(GROUP, &append((11..41).map(large).collect()));
    assert!(frame.len() <= MAX_FRAME_BYTES);
    let (_, message) = decode_frame(&frame.to_bytes()).unwrap();
    let PeerMessage::Append { entries, .. } = message else { panic!("not an append") };
    assert_eq!(entries.len(), 15);
}

// ---- refusals ----

#[test]
fn a_frame_without_a_group_or_body_is_refused() {
    let body = Body::VoteReply(peer::VoteReply { term: 1, granted: true, wall_ms: 0 });
    let no_group = peer::PeerFrame { group: 0, body: Some(body), entries: Vec::new() };
    assert_eq!(decode_wire(&no_group), Err(FrameError::ReservedGroup));
    let no_body = peer::PeerFrame { group: 1, body: None, entries: Vec::new() };
    assert_eq!(decode_wire(&no_body), Err(FrameError::Missing("body")));
    assert_eq!(decode_frame(&Bytes::new()), Err(FrameError::ReservedGroup));
}

#[test]
fn numbers_beyond_the_accepted_range_are_refused() {
    let beyond = Term::MAX_ACCEPTED.get() + 1;
    let position = |term, index| Some(peer::LogPosition { term, index });
    let heartbeat =
        |term, commit| Body::Heartbeat(peer::Heartbeat { term, commit, round: 1, matched: 0 });
    let reply = |received, persisted| {
        Body::HeartbeatReply(peer::HeartbeatReply {
            term: 1,
            round: 1,
            received,
            persisted,
            ..peer::HeartbeatReply::default()
        })
    };
    let outcome =
        |outcome| Body::AppendReply(peer::AppendReply { term: 1, outcome: Some(outcome) });
    let conflict =
        |refused, hint| peer::append_reply::Outcome::Conflict(peer::Conflict { refused, hint });
    let cases = [
        (heartbeat(beyond, 0), "term"),
        (heartbeat(u64::MAX, 0), "term"),
        (heartbeat(1, beyond), "commit"),
        (reply(beyond, 0), "received"),
        (reply(0, beyond), "stored"),
        (Body::VoteReply(peer::VoteReply { term: 1, granted: true, wall_ms: u64::MAX }), "wall_ms"),
        (Body::PreVote(peer::PreVote { term: 1, last: position(beyond, 1) }), "term"),
        (Body::PreVote(peer::PreVote { term: 1, last: position(1, beyond) }), "last"),
        (
            Body::PreVoteReply(peer::PreVoteReply { term: beyond, granted: true, wall_ms: 0 }),
            "term",
        ),
        (Body::VoteReply(peer::VoteReply { term: beyond, granted: true, wall_ms: 0 }), "term"),
        (outcome(peer::append_reply::Outcome::Persisted(beyond)), "stored"),
        (outcome(conflict(beyond, position(0, 0))), "refused"),
        (outcome(conflict(1, position(0, beyond))), "hint"),
    ];
    for (body, name) in cases {
        match decode_wire(&wire(body)) {
            Err(FrameError::OutOfRange { field, .. }) => assert_eq!(field, name, "{body:?}"),
            other => panic!("{body:?} gave {other:?}"),
        }
    }
}

#[test]
fn entries_may_not_run_past_the_highest_index() {
    let mut frame = wire_append(2, vec![wire_entry(7), wire_entry(7)]);
    let Some(Body::Append(append)) = &mut frame.body else { unreachable!() };
    append.prev = Some(peer::LogPosition { term: 3, index: LogIndex::MAX_ACCEPTED.get() - 1 });
    let refused = decode_wire(&frame).unwrap_err();
    assert!(
        matches!(refused, FrameError::OutOfRange { field: "index of the last entry", .. }),
        "{refused}"
    );
}

#[test]
fn missing_parts_are_refused() {
    let cases = [
        (Body::PreVote(peer::PreVote { term: 1, last: None }), "last"),
        (Body::RequestVote(peer::RequestVote { term: 1, last: None, transfer: false }), "last"),
        (Body::Append(peer::Append { term: 1, prev: None, commit: 0, entry_count: 0 }), "prev"),
        (Body::AppendReply(peer::AppendReply { term: 1, outcome: None }), "outcome"),
    ];
    for (body, part) in cases {
        assert_eq!(decode_wire(&wire(body)), Err(FrameError::Missing(part)));
    }
}

#[test]
fn a_head_that_lost_its_entries_is_refused() {
    let frame = encode_frame(GROUP, &append(vec![command(7, 11, b"lost")]));
    assert_eq!(decode_frame(&frame.head), Err(FrameError::EntryCount { announced: 1, found: 0 }));
}

#[test]
fn entries_beside_another_message_are_refused() {
    let mut frame = wire(Body::VoteReply(peer::VoteReply { term: 1, granted: true, wall_ms: 0 }));
    frame.entries.push(wire_entry(1));
    assert_eq!(decode_wire(&frame), Err(FrameError::EntryCount { announced: 0, found: 1 }));
}

#[test]
fn unknown_kinds_of_entries_are_refused() {
    for kind in [0, 7, 255, 256, 258, u32::MAX] {
        let frame = wire_append(1, vec![peer::Entry { term: 7, kind, ..peer::Entry::default() }]);
        assert_eq!(decode_wire(&frame), Err(FrameError::UnknownKind { index: 11, kind }));
    }
}

#[test]
fn terms_of_entries_never_fall_and_never_pass_the_leader() {
    for (terms, culprit) in [(vec![2], 11), (vec![8], 11), (vec![4, 3], 12), (vec![0], 11)] {
        let entries: Vec<_> = terms.iter().map(|term| wire_entry(*term)).collect();
        let refused = decode_wire(&wire_append(entries.len() as u32, entries)).unwrap_err();
        assert!(
            matches!(refused, FrameError::TermOrder { index, .. } if index == culprit),
            "{refused}"
        );
    }
}

#[test]
fn more_entries_than_allowed_are_refused_before_they_are_built() {
    let mut frame = BytesMut::from(&encode_frame(GROUP, &append(vec![])).head[..]);
    for _ in 0..=MAX_ENTRIES_PER_FRAME {
        frame.extend_from_slice(&[ENTRIES_KEY, 0]);
    }
    let refused = decode_frame(&frame.freeze()).unwrap_err();
    assert!(matches!(refused, FrameError::OutOfRange { field: "entries", .. }), "{refused}");
}

#[test]
fn a_frame_longer_than_allowed_is_refused() {
    let frame = Bytes::from(vec![0; MAX_FRAME_BYTES + 1]);
    assert!(matches!(decode_frame(&frame), Err(FrameError::TooLong { .. })));
}

#[test]
fn a_payload_longer_than_allowed_is_refused() {
    let data = Bytes::from(vec![0; MAX_ENTRY_DATA_BYTES + 1]);
    let frame =
        wire_append(1, vec![peer::Entry { term: 7, kind: 2, data, ..peer::Entry::default() }]);
    let refused = decode_wire(&frame).unwrap_err();
    assert!(
        matches!(refused, FrameError::OutOfRange { field: "length of an entry", .. }),
        "{refused}"
    );
}

#[test]
fn fields_of_a_newer_version_are_passed_over() {
    let message = append(vec![command(7, 11, b"x")]);
    let mut frame = BytesMut::from(&encode_frame(GROUP, &message).to_bytes()[..]);
    frame.extend_from_slice(&[0xa2, 0x06, 3, b'n', b'e', b'w']);
    assert_eq!(decode_frame(&frame.freeze()), Ok((GROUP, message)));
}

// ---- the handshake ----

fn greeting() -> Greeting {
    Greeting {
        cluster: ClusterId([1; 16]),
        group: GROUP,
        from: NodeId::new(2).unwrap(),
        to: NodeId::new(3).unwrap(),
        incarnation: Incarnation([9; 16]),
        purpose: crate::message::Purpose::Snapshot,
        members: vec![2, 3, 7],
        config: ConfigId { term: 3, version: 9 },
        peer_addr: "db-1:7101".to_owned(),
        client_addr: "db-1:7001".to_owned(),
        start: 11,
        state_machine: "example/bank".to_owned(),
    }
}

#[test]
fn a_greeting_survives_the_wire() {
    let peer = Caller::Peer(Box::new(greeting()));
    assert_eq!(decode_handshake(&encode_handshake(&greeting())), Ok(peer));
    for cluster in [None, Some(ClusterId([7; 16]))] {
        let number = Some(crate::JoinNumber([4; 16]));
        for wants in [
            InquiryPurpose::Ask,
            InquiryPurpose::Probe { number: None },
            InquiryPurpose::Probe { number },
        ] {
            let inquiry = Inquiry {
                cluster,
                group: GroupId::FIRST,
                incarnation: Incarnation([5; 16]),
                wants,
            };
            let inquirer = Caller::Inquirer(inquiry.clone());
            assert_eq!(decode_handshake(&encode_inquiry(&inquiry)), Ok(inquirer));
        }
    }
}

#[test]
fn a_greeting_with_an_unusable_field_is_refused() {
    let good = peer::Handshake::decode(encode_handshake(&greeting())).unwrap();
    let short = Bytes::from_static(b"short");
    let cases = [
        (
            peer::Handshake { protocol_version: 9, ..good.clone() },
            GreetingError::Version { theirs: 9, ours: 2 },
        ),
        (
            peer::Handshake { cluster_id: short.clone(), ..good.clone() },
            GreetingError::Field("cluster_id"),
        ),
        (
            peer::Handshake { incarnation: short, ..good.clone() },
            GreetingError::Field("incarnation"),
        ),
        (peer::Handshake { group: 0, ..good.clone() }, GreetingError::Field("group")),
        (peer::Handshake { from_node: 0, ..good.clone() }, GreetingError::Field("from_node")),
        (peer::Handshake { to_node: 0, ..good.clone() }, GreetingError::Field("to_node")),
        (peer::Handshake { members: vec![3, 2], ..good.clone() }, GreetingError::Field("members")),
        (peer::Handshake { members: vec![2, 2], ..good.clone() }, GreetingError::Field("members")),
        (peer::Handshake { start: 0, ..good }, GreetingError::Field("start")),
    ];
    for (greeting, refusal) in cases {
        assert_eq!(decode_handshake(&greeting.encode_to_vec().into()), Err(refusal));
    }
}
