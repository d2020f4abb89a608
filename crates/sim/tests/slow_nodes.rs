//! A slow component is treated like a dead one: while it hangs, the others continue.

use d_engine_sim::{Profile, Slow, longest_gap};

/// Returns whether the rule is enforced yet; `ALL_RULES=1` enforces it in any case.
fn is_judged(by_profile: bool) -> bool {
    by_profile || std::env::var_os("ALL_RULES").is_some()
}

#[test]
fn a_follower_that_hangs_holds_nobody_up() {
    for what in [Slow::FollowerDisk, Slow::FollowerApply, Slow::Link] {
        let gap = longest_gap(what, 10).unwrap();
        assert!(gap < 300, "{what:?}: {gap} ms without an acknowledged write");
    }
}

#[test]
fn a_leader_that_shuts_down_names_its_successor() {
    let gap = longest_gap(Slow::LeaderStops, 2).unwrap();
    assert!(gap < 300, "{gap} ms without an acknowledged write");
}

#[test]
fn a_leader_that_hangs_gives_way_within_two_election_timeouts() {
    if !is_judged(Profile::of(1).slow_is_dead) {
        return;
    }
    for what in [Slow::LeaderDisk, Slow::LeaderApply] {
        for seconds in [4, 20] {
            let gap = longest_gap(what, seconds).unwrap();
            assert!(
                gap <= 2_000,
                "{what:?} for {seconds} s: {gap} ms without an acknowledged write"
            );
        }
    }
}
