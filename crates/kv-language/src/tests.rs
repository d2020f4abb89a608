//! Tests of the encoded forms: round trips, golden bytes, and refusals.

use std::num::NonZeroU64;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::*;
use crate::message::{self as wire, kv_command::Verb};

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

fn none_and_empty() -> [Option<Bytes>; 3] {
    [None, Some(Bytes::new()), Some(bytes("v"))]
}

#[test]
fn commands_survive_encoding() {
    let ttl = Duration::from_millis(1500);
    let mut commands =
        vec![KvCommand::put("k", ""), KvCommand::put("", "v"), KvCommand::delete("k")];
    let mut operations = vec![
        KvOperation::put("k", "v"),
        KvOperation::put_with_ttl("k", "v", ttl),
        KvOperation::delete("other"),
    ];
    for expected in none_and_empty() {
        for value in none_and_empty() {
            commands.push(KvCommand::compare_and_swap("k", expected.clone(), value.clone()));
            operations.push(KvOperation::compare_and_swap("k", expected.clone(), value));
        }
    }
    for options in [PutOptions::default(), PutOptions::default().previous()] {
        commands.push(KvCommand::put_with("k", "v", options));
        commands.push(KvCommand::put_with("k", "v", options.ttl(ttl)));
        commands.push(KvCommand::put_with("k", "v", options.ttl(Duration::MAX)));
    }
    commands.push(KvCommand::batch([]));
    commands.push(KvCommand::batch(operations));
    for command in commands {
        assert_eq!(KvCommand::decode(&command.encode()), Ok(command));
    }
}

#[test]
fn replies_survive_encoding() {
    let mut replies = vec![
        KvReply::Done { existed: false },
        KvReply::Done { existed: true },
        KvReply::Rejected { reason: "no".to_owned() },
        KvReply::BatchDone { existed: vec![] },
        KvReply::BatchDone { existed: vec![true, false, true] },
    ];
    replies.extend(none_and_empty().map(|current| KvReply::CompareFailed { current }));
    replies.extend(none_and_empty().map(|previous| KvReply::Replaced { previous }));
    replies.extend(none_and_empty().map(|current| KvReply::BatchFailed { operation: 7, current }));
    for reply in replies {
        assert_eq!(KvReply::decode(&reply.encode()), Ok(reply));
    }
}

#[test]
fn questions_and_answers_survive_encoding() {
    let scans = [
        Scan::all(),
        Scan::prefix(""),
        Scan::prefix("a").limit(7).keys_only(),
        Scan::range("", None),
        Scan::range("a", Some(bytes(""))).after(""),
        Scan::range("a", Some(bytes("b"))).after("aa"),
    ];
    let mut questions: Vec<KvQuery> = scans.into_iter().map(KvQuery::Scan).collect();
    questions.push(KvQuery::get_many(["a", "", "b"]));
    for question in questions {
        assert_eq!(KvQuery::decode(&question.encode()), Ok(question));
    }
    let records = none_and_empty().map(|value| Record { key: bytes("k"), value }).to_vec();
    let answers =
        none_and_empty().map(|next| KvQueryReply::Page(Page { records: records.clone(), next }));
    for answer in answers.into_iter().chain([KvQueryReply::Values(none_and_empty().to_vec())]) {
        assert_eq!(KvQueryReply::decode(&answer.encode()), Ok(answer));
    }
}

/// Stored in logs: these bytes may never change.
#[test]
fn the_stored_form_of_commands_is_the_golden_one() {
    let golden = |command: KvCommand, stored: &'static [u8]| {
        assert_eq!(&command.encode()[..], stored);
        assert_eq!(KvCommand::decode(&Bytes::from_static(stored)), Ok(command));
    };
    // The first version.
    golden(KvCommand::put("k", "v"), b"\x08\x01\x12\x06\x0a\x01k\x12\x01v");
    golden(KvCommand::delete("k"), b"\x08\x01\x1a\x03\x0a\x01k");
    let swap = KvCommand::compare_and_swap("k", Some(bytes("a")), Some(bytes("b")));
    golden(swap, b"\x08\x01\x22\x09\x0a\x01k\x12\x01a\x1a\x01b");
    golden(KvCommand::compare_and_swap("k", None, None), b"\x08\x01\x22\x03\x0a\x01k");
    // Later verbs.
    let options = PutOptions::default().ttl(Duration::from_millis(300));
    golden(
        KvCommand::put_with("k", "v", options),
        b"\x08\x01\x2a\x09\x0a\x01k\x12\x01v\x18\xac\x02",
    );
    let options = PutOptions::default().previous();
    golden(KvCommand::put_with("k", "v", options), b"\x08\x01\x2a\x08\x0a\x01k\x12\x01v\x20\x01");
    let batch = KvCommand::batch([
        KvOperation::delete("k"),
        KvOperation::put_with_ttl("k", "v", Duration::from_millis(1)),
    ]);
    golden(
        batch,
        b"\x08\x01\x32\x13\x0a\x05\x1a\x03\x0a\x01k\x0a\x0a\x2a\x08\x0a\x01k\x12\x01v\x18\x01",
    );
}

/// A put without new options must be executed by machines of the first version.
#[test]
fn what_the_old_version_could_say_is_still_said_its_way() {
    let plain = KvCommand::put_with("k", "v", PutOptions::default());
    assert_eq!(plain.encode(), KvCommand::put("k", "v").encode());
}

/// Stored in logs and compared between replicas.
#[test]
fn the_form_of_replies_is_the_golden_one() {
    assert_eq!(&KvReply::Done { existed: true }.encode()[..], b"\x08\x01\x12\x02\x08\x01");
    assert_eq!(&KvReply::CompareFailed { current: None }.encode()[..], b"\x08\x01\x1a\x00");
    let replaced = KvReply::Replaced { previous: Some(bytes("v")) };
    assert_eq!(&replaced.encode()[..], b"\x08\x01\x2a\x03\x0a\x01v");
    let batch = KvReply::BatchDone { existed: vec![true, false] };
    assert_eq!(&batch.encode()[..], b"\x08\x01\x32\x04\x0a\x02\x01\x00");
    let failed = KvReply::BatchFailed { operation: 1, current: None };
    assert_eq!(&failed.encode()[..], b"\x08\x01\x3a\x02\x08\x01");
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
    // Format 1, and a verb with the number 9; a batch with such an operation.
    let newer_verb = Bytes::from_static(b"\x08\x01\x4a\x01x");
    assert_eq!(KvCommand::decode(&newer_verb), Err(UndecodableError::Unknown));
    let newer_part = Bytes::from_static(b"\x08\x01\x32\x05\x0a\x03\x4a\x01x");
    assert_eq!(KvCommand::decode(&newer_part), Err(UndecodableError::Unknown));
    assert_eq!(KvReply::decode(&Bytes::new()), Err(UndecodableError::Format { found: 0 }));
    assert_eq!(KvQuery::decode(b"\x08\x01\x4a\x01x"), Err(UndecodableError::Unknown));
    assert_eq!(KvQuery::decode(b"\x08\x02"), Err(UndecodableError::Format { found: 2 }));
    assert_eq!(KvQueryReply::decode(&bytes("\u{1}text")), Err(UndecodableError::Malformed));
}

#[test]
fn a_batch_that_is_too_long_is_no_command() {
    let of = |count: usize| KvCommand::batch(vec![KvOperation::delete("k"); count]).encode();
    assert!(KvCommand::decode(&of(BATCH_OPERATIONS_MAX)).is_ok());
    let error = KvCommand::decode(&of(BATCH_OPERATIONS_MAX + 1)).unwrap_err();
    assert_eq!(error, UndecodableError::TooManyOperations { found: 1001 });
    assert_eq!(
        error.to_string(),
        "the batch has 1001 operations; at most 1000 are executed as one"
    );
}

#[test]
fn a_time_to_live_is_whole_milliseconds_and_never_nothing() {
    let ttl_ms = |ttl| PutOptions::default().ttl(ttl).ttl_ms().map(NonZeroU64::get);
    assert_eq!(PutOptions::default().ttl_ms(), None);
    assert_eq!(ttl_ms(Duration::ZERO), Some(1));
    assert_eq!(ttl_ms(Duration::from_nanos(1)), Some(1));
    assert_eq!(ttl_ms(Duration::from_micros(1001)), Some(2));
    assert_eq!(ttl_ms(Duration::from_secs(30)), Some(30_000));
    assert_eq!(ttl_ms(Duration::MAX), Some(u64::MAX));
}

#[test]
fn questions_beyond_the_limits_are_named_with_value_and_limit() {
    let scan = |limit| KvQuery::Scan(Scan::all().limit(limit)).check();
    assert_eq!(scan(SCAN_LIMIT_MAX), Ok(()));
    let error = scan(SCAN_LIMIT_MAX + 1).unwrap_err().to_string();
    assert_eq!(error, "the scan requests 10001 records in a page; at most 10000 are allowed");
    let many = |count: usize| KvQuery::get_many(vec!["k"; count]).check();
    assert_eq!(many(GET_MANY_KEYS_MAX), Ok(()));
    let error = many(GET_MANY_KEYS_MAX + 1).unwrap_err().to_string();
    assert_eq!(error, "the query has 10001 keys; at most 10000 are allowed");
}
