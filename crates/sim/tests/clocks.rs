//! Leases against clocks: what the drift bound protects from.

use d_engine_sim::{
    LimitProfile, LinkProfile, MemberProfile, Profile, ProgramProfile, Report, RunOptions, run_as,
};

const SECOND: u64 = 1_000_000_000;

/// Runs three nodes whose leaders are cut off every second, and clocks of which one may run four
/// times as fast as another. There are no other faults.
fn with_wild_clocks(seed: u64, clock_drift_percent_max: u32) -> Report {
    let profile = Profile {
        nodes: 3,
        members: MemberProfile::default(),
        clients: 8,
        keys: 2,
        client_pause: SECOND / 20,
        client_timeout: SECOND / 20,
        partition_every: SECOND / 4,
        partition_length: SECOND,
        crash_every: 0,
        crash_in_recovery: 0,
        pause_every: 0,
        // The node with the fastest clock campaigns first; only a transfer makes a slow one the
        // leader.
        transfer_every: SECOND,
        reconnect_every: 0,
        disk_error: 0,
        quiet: 0,
        drop: 0,
        duplicate: 0,
        museum: 0,
        long_delay: 0,
        delay_base: SECOND / 1_000,
        delay_tail: SECOND / 1_000,
        sync_mean: SECOND / 1_000,
        sync_stall: 0,
        apply_mean: SECOND / 1_000,
        clock_drift: 600_000,
        clock_drift_percent_max,
        hang_every: 0,
        stop_every: 0,
        fill_every: 0,
        links: LinkProfile::none(),
        limits: LimitProfile::defaults(),
        programs: ProgramProfile::none(),
        ..Profile::of(seed)
    };
    run_as(seed, profile, RunOptions { seconds: 10, trials: false, ..RunOptions::default() })
}

/// Returns the first of `seeds` with a finding.
fn first_finding(seeds: u64, clock_drift_percent_max: u32) -> Option<(u64, String)> {
    let found = |seed| {
        with_wild_clocks(seed, clock_drift_percent_max)
            .finding
            .map(|found| (seed, found.violation.to_string()))
    };
    (1..=seeds).find_map(found)
}

#[test]
fn clocks_beyond_the_bound_make_lease_reads_stale_and_the_checker_sees_it() {
    let (seed, what) = first_finding(300, 0).unwrap_or_default();
    assert!(what.contains("is not linearizable"), "seed {seed}: {what:?}");
    // The same clocks and faults under a bound that covers them, and with the lease off.
    for bound in [60, 100] {
        assert_eq!(
            with_wild_clocks(seed, bound).finding.map(|found| found.violation.to_string()),
            None,
            "seed {seed}"
        );
    }
}

#[test]
fn clocks_beyond_any_bound_are_harmless_with_the_lease_off() {
    assert_eq!(first_finding(30, 100), None);
}

/// A bound that covers these clocks.
#[test]
fn clocks_within_the_bound_are_harmless() {
    assert_eq!(first_finding(30, 60), None);
}
