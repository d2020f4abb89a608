use super::*;

const HOUR_MS: u64 = 3_600_000;
const TEN_YEARS_MS: u64 = 10 * 365 * 24 * HOUR_MS;

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn node(id: u64) -> NodeId {
    NodeId::new(id).unwrap()
}

/// What three voters agree on at monotonic time `now` (ms): this node's clock and those of the
/// peers, which replied at once.
fn agreed(own: u64, peers: &[u64]) -> Option<u64> {
    let now = at(5_000);
    let mut clocks = PeerClocks::new(&CoreConfig::default());
    for (id, wall_ms) in peers.iter().enumerate() {
        clocks.heard(node(id as u64 + 2), *wall_ms, now, now);
    }
    clocks.agreed(now, Some(own), |_| true, 2).map(|offset| shown_us(offset, now) / 1000)
}

#[test]
fn the_anchor_is_what_a_quorum_shows_also_if_the_leader_is_the_odd_one() {
    let right = 1_700_000_000_000;
    assert_eq!(agreed(right + TEN_YEARS_MS, &[right, right + 20]), Some(right));
    assert_eq!(agreed(right, &[right + TEN_YEARS_MS, right + 300]), Some(right));
    assert_eq!(agreed(right, &[right - HOUR_MS, right + 300]), Some(right));
}

#[test]
fn without_a_quorum_that_agrees_there_is_no_anchor() {
    let right = 1_700_000_000_000;
    assert_eq!(agreed(right + TEN_YEARS_MS, &[right]), None);
    assert_eq!(agreed(right, &[right + 1_001]), None);
    assert_eq!(agreed(right, &[right + 1_000]), Some(right));
    assert_eq!(agreed(right, &[]), None);
}

#[test]
fn an_answer_counts_with_half_the_time_it_took_and_not_for_long() {
    let mut clocks = PeerClocks::new(&CoreConfig::default());
    clocks.heard(node(2), 10_000, at(5_000), at(5_600));
    let one = |clocks: &PeerClocks, now| clocks.agreed(now, None, |_| true, 1);
    assert_eq!(one(&clocks, at(5_600)).map(|offset| shown_us(offset, at(5_600))), Some(10_300_000));
    assert_eq!(one(&clocks, at(10_601)), None, "older than five seconds");
    clocks.heard(node(2), 10_000, at(20_000), at(22_002));
    assert_eq!(one(&clocks, at(22_002)), None, "its error is larger than the bound");
}

#[test]
fn learners_do_not_count() {
    let mut clocks = PeerClocks::new(&CoreConfig::default());
    clocks.heard(node(2), 10_000, at(5_000), at(5_000));
    assert_eq!(clocks.agreed(at(5_000), Some(10_000), |node| node.get() != 2, 2), None);
}

/// The offset at which the wall clock shows `wall_ms` at monotonic time `now_ms`.
fn offset(wall_ms: u64, now_ms: u64) -> i64 {
    offset_us(wall_ms, at(now_ms))
}

#[test]
fn the_first_anchor_leaps_forward_until_a_command_has_its_time() {
    let mut clock = LogClock::new(1_000, at(100));
    assert_eq!(clock.now_ms(at(200)), 1_100, "monotonic without an anchor");
    assert_eq!(clock.state(), ClockState::NoQuorum);
    clock.anchor(Some(offset(50_000, 200)), at(200));
    assert_eq!((clock.now_ms(at(200)), clock.state()), (50_000, ClockState::Agreed));
    clock.command_stamped();
    clock.anchor(Some(offset(90_000, 200)), at(200));
    assert_eq!(clock.now_ms(at(200)), 50_000, "the clock no longer jumps");
    assert_eq!(clock.now_ms(at(1_200)), 51_100, "a tenth faster");
}

#[test]
fn log_time_never_goes_back_and_slows_down_when_it_is_ahead() {
    let mut clock = LogClock::new(100_000, at(0));
    clock.anchor(Some(offset(50_000, 0)), at(0));
    assert_eq!(clock.now_ms(at(0)), 100_000);
    assert_eq!(clock.now_ms(at(1_000)), 100_900);
    assert_eq!(clock.peek_ms(at(2_000)), 101_800);
    assert_eq!(clock.now_ms(at(2_000)), 101_800);
}

#[test]
fn it_stops_at_what_the_quorum_shows() {
    let mut clock = LogClock::new(10_000, at(0));
    clock.command_stamped();
    clock.anchor(Some(offset(10_050, 0)), at(0));
    assert_eq!(clock.now_ms(at(1_000)), 11_050);
    assert_eq!(clock.now_ms(at(2_000)), 12_050);
}

#[test]
fn small_steps_lose_nothing() {
    let mut clock = LogClock::new(0, at(0));
    for nanos in (0..=3_000_000_u64).step_by(700) {
        clock.now_ms(Instant::from_nanos(nanos));
    }
    assert_eq!(clock.now_ms(at(3)), 3);
}

#[test]
fn a_node_that_is_alone_holds_a_leap_of_more_than_an_hour() {
    for (wall_ms, state) in [
        (10 * HOUR_MS + HOUR_MS, ClockState::Agreed),
        (10 * HOUR_MS + HOUR_MS + 1, ClockState::Held),
        (10 * HOUR_MS - HOUR_MS - 1, ClockState::Held),
    ] {
        let mut clock = LogClock::new(10 * HOUR_MS, at(0));
        let own = offset(wall_ms, 0);
        clock.hold_if_far(own, at(0));
        clock.anchor(Some(own), at(0));
        assert_eq!(clock.state(), state, "{wall_ms}");
        if state == ClockState::Held {
            assert_eq!(clock.now_ms(at(500)), 10 * HOUR_MS + 500);
        }
    }
    let mut fresh = LogClock::new(0, at(0));
    fresh.hold_if_far(offset(TEN_YEARS_MS, 0), at(0));
    assert_eq!(fresh.state(), ClockState::NoQuorum, "an empty log has nothing to compare with");
}

/// An operator who sets the clock right need not start the node again.
#[test]
fn a_held_clock_is_believed_again_once_it_is_right() {
    let mut clock = LogClock::new(10 * HOUR_MS, at(0));
    clock.hold_if_far(offset(TEN_YEARS_MS, 0), at(0));
    clock.anchor(Some(offset(TEN_YEARS_MS, 0)), at(100));
    assert_eq!(clock.state(), ClockState::Held);
    let right = offset(10 * HOUR_MS + 2_000, 200);
    clock.anchor(Some(right), at(200));
    assert_eq!((clock.state(), clock.now_ms(at(200))), (ClockState::Agreed, 10 * HOUR_MS + 2_000));
}

#[test]
fn extreme_clocks_do_not_overflow() {
    let mut clocks = PeerClocks::new(&CoreConfig::default());
    let end = Instant::from_nanos(u64::MAX);
    clocks.heard(node(2), u64::MAX, Instant::ZERO, end);
    clocks.heard(node(3), 0, end, Instant::ZERO);
    clocks.agreed(end, Some(u64::MAX), |_| true, 1);
    let mut clock = LogClock::new(u64::MAX, Instant::ZERO);
    clock.anchor(Some(i64::MAX), end);
    assert_eq!(clock.now_ms(end), MAX_ACCEPTED_TIME_MS);
    clock.anchor(Some(i64::MIN), end);
    assert_eq!(clock.now_ms(end), MAX_ACCEPTED_TIME_MS);
}
