//! A slow link is used, not flooded.

use d_engine_sim::{CatchUp, Profile, catch_up};

/// Returns whether the rule is enforced yet; `ALL_RULES=1` enforces it in any case.
fn is_judged(by_profile: bool) -> bool {
    by_profile || std::env::var_os("ALL_RULES").is_some()
}

/// A follower that has missed 10 MB, with the default settings. Each append is in flight for longer
/// than two heartbeat intervals.
fn behind(command_bytes: u64, append_bytes: u64, bits_per_second: u64) -> CatchUp {
    let heartbeats_apart = true;
    CatchUp {
        behind_bytes: 10_000_000,
        command_bytes,
        append_bytes,
        bits_per_second,
        heartbeats_apart,
    }
}

#[test]
fn a_follower_behind_a_slow_link_is_sent_nothing_twice() {
    if !is_judged(Profile::of(1).judges_traffic) {
        return;
    }
    let megabit = 1_000_000;
    let links = [
        behind(87_000, 256 << 10, 8 * megabit),
        behind(1_000_000, 256 << 10, 30 * megabit),
        behind(10_000, 64 << 10, megabit),
        behind(250_000, 256 << 10, 5 * megabit),
        // Heartbeats that share the connection with appends queue after them.
        CatchUp { heartbeats_apart: false, ..behind(87_000, 256 << 10, 10 * megabit) },
    ];
    let mut broken = Vec::new();
    for link in links {
        let found = catch_up(link).unwrap();
        let millis = found.millis.unwrap_or(u64::MAX / 2);
        if found.sent * 2 > found.useful * 3
            || millis * 2 > found.link_millis * 3
            || found.useful < 9_000_000
        {
            broken.push(format!("{link:?}: {found:?}"));
        }
    }
    assert!(broken.is_empty(), "more than 1.5 times the bytes or the time: {broken:#?}");
}
