//! Each check of the kit detects a state machine with the corresponding fault, and no check fails
//! for a correct machine.
#![allow(clippy::unwrap_used)]

mod ledger;

use std::sync::Arc;

use d_engine_conformance::{StateMachineCase, check_state_machine, state_machine_suite};
use d_engine_storage::RealFs;
use ledger::{Fault, Ledger};

fn case(fault: Fault) -> StateMachineCase<Ledger> {
    let case = StateMachineCase::new(move |dir| Ledger::open(fault, Arc::new(RealFs::new()), dir))
        .commands(|n| format!("account-{} {n}", n % 9))
        .contents(Ledger::contents)
        .undecodable("a command of another program")
        .expiring("held 7 20000", 20_000)
        .questions(|n| format!("account-{}", n % 9))
        .on_fs(move |fs, dir| Ledger::open(fault, fs, dir));
    match fault {
        Fault::KeepsHalfAChunk | Fault::LetsGarbageIntoTheLog => case.stops_on_undecodable(),
        Fault::None | Fault::ServesFlippedBits => case.notices_flipped_bits(),
        _ => case,
    }
}

mod a_right_one {
    use super::{Fault, case, state_machine_suite};

    state_machine_suite!(case(Fault::None));
}

/// The checks that must detect a fault.
fn caught_by(fault: Fault) -> &'static [&'static str] {
    match fault {
        Fault::None => &[],
        Fault::KeepsHalfAChunk => &["a_chunk_is_applied_whole_or_not_at_all"],
        Fault::AppliesAgain => &["what_is_applied_already_changes_nothing"],
        Fault::MovesTheViewsLastIncluded => &[
            "a_snapshot_is_exactly_the_state_at_its_last_included_entry",
            "a_view_stays_as_it_was",
        ],
        Fault::WritesTheViewLate => &["a_view_stays_as_it_was"],
        Fault::ReturnsAnotherChecksum => &["the_checksum_is_that_of_the_files"],
        Fault::IgnoresTheChecksum => &["a_wrong_checksum_is_refused"],
        Fault::InstallsByHalves => &["a_damaged_snapshot_leaves_the_old_state"],
        Fault::MixesInTheInstalled => &["an_install_leaves_nothing_of_the_old_state"],
        Fault::FlushesIntoItsOwnMemory => &["flushed_is_in_the_files"],
        Fault::DoesNotFlushInDrop => &["drop_flushes"],
        Fault::StoresThePositionApart => &["position_and_data_are_stored_together"],
        Fault::DoesNotSync | Fault::WritesOverTheOldFile => &["power_cuts_lose_nothing_flushed"],
        Fault::RemovesTheOldFileFirst => &["power_cuts_leave_the_old_state_or_the_installed_one"],
        Fault::RepliesInNoOrder => &["the_same_commands_give_the_same_state_and_replies"],
        Fault::WritesInNoOrder => &["equal_states_write_equal_snapshots"],
        Fault::LooksAtTheClock => &["the_clock_does_not_matter"],
        Fault::ShowsHalfACommand => &["reads_see_whole_commands"],
        Fault::KeepsThePositionInReset => &["reset_is_the_beginning"],
        Fault::ForgetsTheMetadata => &["snapshot_metadata_is_kept"],
        Fault::InventsTerms => &["terms_are_right_or_unknown"],
        Fault::NeverRuns => &["start_and_stop"],
        Fault::StopsOnGarbage | Fault::LetsGarbageIntoTheLog => &["foreign_bytes_stop_nothing"],
        Fault::RefusesItsOwn => &["its_own_commands_pass_its_check"],
        Fault::IsAheadOfItself | Fault::PanicsOverVersions => {
            &["versions_come_from_the_bytes_alone"]
        }
        Fault::AnswersNobody => &["every_command_is_answered"],
        Fault::HasNoLength => &["the_length_is_told"],
        Fault::AnswersAtRandom => &["answers_are_equal_on_two_machines"],
        Fault::GoesBack => &["the_position_never_goes_back"],
        Fault::ExpiresByItsOwnClock => &["the_clock_does_not_matter"],
        Fault::NeverExpires | Fault::WantsTimeAlways | Fault::WantsTimeNever => {
            &["what_expires_vanishes_at_its_log_time"]
        }
        Fault::ForgetsExpiriesInSnapshots => &["expiries_travel_in_snapshots"],
        Fault::GeneratesNothing => &["both_ways_of_a_snapshot_give_the_same_state"],
        Fault::WritesAfterItsEnd => &["a_dropped_snapshot_touches_nothing"],
        Fault::ServesFlippedBits => &["flipped_bits_are_noticed"],
        Fault::ResetsByHalves => &["power_cuts_leave_the_old_state_or_none_after_a_reset"],
    }
}

#[test]
fn every_wrong_machine_is_caught() {
    let run = |fault: &Fault| (*fault, check_state_machine(&case(*fault)));
    let results: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            Fault::ALL.iter().map(|fault| scope.spawn(move || run(fault))).collect();
        running.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for (fault, found) in results {
        let names: Vec<&str> = found.iter().map(|(name, _)| *name).collect();
        for expected in caught_by(fault) {
            assert!(names.contains(expected), "{fault:?} is not caught by {expected}: {found:#?}");
        }
    }
}

#[test]
fn every_check_catches_somebody() {
    let expected: Vec<&str> = Fault::ALL.into_iter().flat_map(caught_by).copied().collect();
    for (name, _) in d_engine_conformance::state_machine_checks::all::<Ledger>() {
        assert!(expected.contains(&name), "there is no wrong machine for {name}");
    }
}
