//! The text of a core without what its future does not depend on.

/// Fields that are left out. No time passes and every write is complete at the end of its step, so
/// clocks, times at which timers fire, and the numbers of writes decide nothing.
const LEFT_OUT: [&str; 18] = [
    "config",
    "prng",
    "clocks",
    "clock",
    "clock_round",
    "election_at",
    "sticky_until",
    "promised_before",
    "votes_requested",
    "pre_votes_requested",
    "last_request",
    "durable_request",
    "hard_state_request",
    "durable_hard_state",
    "own_vote",
    "last_contact",
    "stickiness",
    "accepts_clock",
];

/// What a leader sends next and what it has measured: left out where an exchange begins anew and
/// ends with equal logs, whatever was known before. Nor does a vote decide anything after the one
/// election of its term. The commit index on the disk is a hint, which a crash loses here.
const OF_MESSAGES: [&str; 7] =
    ["flow", "next", "keeping_up", "stalled", "leader_commit", "vote", "commit"];

/// A follower that has kept up for this many rounds may vote; more rounds change nothing.
const ROUNDS: &str = "passed";

/// `text`, the `Debug` of a core, without the values of [`LEFT_OUT`], and without those of
/// [`OF_MESSAGES`] unless messages are in flight.
pub(crate) fn canonical(text: &str, has_messages: bool) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(place) = rest.find(": ") {
        let (before, after) = rest.split_at(place + 2);
        kept.push_str(before);
        let name = before[..place].rsplit([' ', '{', '(']).next().unwrap_or_default();
        let is_left_out = LEFT_OUT.contains(&name) || !has_messages && OF_MESSAGES.contains(&name);
        let end = if is_left_out || name == ROUNDS { end_of_value(after) } else { 0 };
        if name == ROUNDS {
            let rounds: u32 = after[..end].parse().unwrap_or_default();
            kept.push(if rounds < 2 { char::from(b'0' + rounds as u8) } else { '2' });
        }
        rest = &after[end..];
    }
    kept.push_str(rest);
    kept
}

/// Where the value ends with which `text` begins.
fn end_of_value(text: &str) -> usize {
    let mut depth = 0_u32;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' if depth == 0 => return at,
            b'}' | b')' | b']' => depth -= 1,
            b',' if depth == 0 => return at,
            b' ' if depth == 0 && text[at..].starts_with(" }") => return at,
            _ => {}
        }
    }
    text.len()
}

#[test]
fn values_are_left_out_whole() {
    let text = "Core { prng: Mix(7), log: [A { term: 1, own_vote: 3 }], clock: C { a: [1, 2] } }";
    let kept = "Core { prng: , log: [A { term: 1, own_vote:  }], clock:  }";
    assert_eq!(canonical(text, true), kept);
    assert_eq!(canonical("P { passed: 17, next: 2 }", true), "P { passed: 2, next: 2 }");
    assert_eq!(canonical("P { passed: 1, next: 2 }", false), "P { passed: 1, next:  }");
}
