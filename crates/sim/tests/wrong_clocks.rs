//! One wrong wall clock does no lasting harm.

use d_engine_sim::{Profile, WrongClock, wrong_clock};

/// Returns whether the rule is enforced yet; `ALL_RULES=1` enforces it in any case.
fn is_judged(by_profile: bool) -> bool {
    by_profile || std::env::var_os("ALL_RULES").is_some()
}

const AS_IF_NOTHING_HAD_BEEN: WrongClock =
    WrongClock { kept: true, expired: true, later_expired: true };

#[test]
fn a_clock_that_is_right_lets_keys_expire_on_time() {
    assert_eq!(wrong_clock(0).unwrap(), AS_IF_NOTHING_HAD_BEEN);
}

#[test]
fn a_leader_whose_wall_clock_is_wrong_does_no_lasting_harm() {
    if !is_judged(Profile::of(1).log_time_is_anchored) {
        return;
    }
    let day = 24 * 60 * 60 * 1_000;
    for offset_ms in [3_650 * day, day, -day / 2] {
        assert_eq!(wrong_clock(offset_ms).unwrap(), AS_IF_NOTHING_HAD_BEEN, "{offset_ms} ms");
    }
}
