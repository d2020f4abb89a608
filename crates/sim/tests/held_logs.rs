//! A follower needs a snapshot while callers continue to write: how much of the log is kept for it
//! depends on the free space.
#![allow(clippy::unwrap_used)]

use d_engine_sim::{UnderLoad, catch_up_under_load};

const LOAD: UnderLoad = UnderLoad {
    value_bytes: 32 << 10,
    link: 110_000,
    load: 100_000,
    free: Some(64 << 20),
    seconds: 400,
};

/// The connection carries 10 % more than the load, and the disk has space: one snapshot is enough,
/// however little `held_bytes` allows.
#[test]
fn a_follower_whose_way_takes_a_tenth_more_than_the_load_catches_up_with_one_snapshot() {
    let caught_up = catch_up_under_load(LOAD).unwrap();
    assert!(caught_up.millis.is_some() && caught_up.installs == 1, "{caught_up:?}");
    assert_eq!((caught_up.refused_percent, caught_up.alarms.len()), (0, 0), "{caught_up:?}");
}

#[test]
fn where_nobody_knows_how_much_is_free_the_setting_limits_the_log_and_the_alarm_says_so() {
    let caught_up = catch_up_under_load(UnderLoad { free: None, seconds: 100, ..LOAD }).unwrap();
    assert_eq!(caught_up.millis, None);
    assert!(
        caught_up.alarms.iter().any(|alarm| alarm.contains("snapshots.max_log_bytes")),
        "{caught_up:?}"
    );
}

#[test]
fn a_disk_that_has_no_room_for_the_log_is_named_and_does_not_fill_up() {
    let little = UnderLoad { free: Some(1_700_000), link: 130_000, seconds: 100, ..LOAD };
    let caught_up = catch_up_under_load(little).unwrap();
    println!("{caught_up:?}");
    assert!(
        caught_up.alarms.iter().any(|alarm| alarm.contains("this node's disk limits it")),
        "{caught_up:?}"
    );
    assert!(caught_up.least_free.unwrap() >= 2 * UnderLoad::MIN_FREE, "{caught_up:?}");
    assert!(caught_up.refused_percent <= 21, "commands are slowed, not stopped: {caught_up:?}");
}

#[test]
fn a_way_that_takes_less_than_the_load_is_named() {
    let slow = UnderLoad { link: 60_000, free: Some(4 << 20), seconds: 150, ..LOAD };
    let caught_up = catch_up_under_load(slow).unwrap();
    println!("{caught_up:?}");
    assert_eq!(caught_up.millis, None);
    assert!(
        caught_up.alarms.iter().any(|alarm| alarm.contains("the connection to it limits it")),
        "{caught_up:?}"
    );
    assert!(caught_up.least_free.unwrap() >= 2 * UnderLoad::MIN_FREE, "{caught_up:?}");
}
