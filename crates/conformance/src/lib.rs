//! The conformance kit checks whether a state machine or a storage engine keeps its contract.
//!
//! ```
//! # mod checks {
//! # use d_engine_conformance as testing;
//! // In your tests, with the feature `testing`: `use d_engine::testing;`
//! use d_engine_kv::{KvQueryReply, KvCommand, KvQuery, KvStateMachine, Scan};
//!
//! testing::state_machine_suite!(
//!     testing::StateMachineCase::new(|_dir| KvStateMachine::new())
//!         .commands(|n| KvCommand::put(format!("k{}", n % 5), n.to_string()).encode())
//!         .contents(|machine| {
//!             let all = KvQuery::Scan(Scan::all()).encode();
//!             d_engine_state_machine::StateMachine::query(machine, &all).unwrap()
//!         })
//! );
//! # }
//! ```
//! Each check is a separate `#[test]`, named after the rule it checks. [`check_state_machine`] and
//! [`check_storage_engine`] run the same checks as functions.
//!
//! The checks open and reopen the subject, copy its directory as a killed process leaves it, and
//! pass corrupt files to it. They are deterministic, except for the threads that read while another
//! thread writes. Only a simulated power cut reveals a missing sync to disk: give
//! [`StateMachineCase::on_fs`] or [`StorageEngineCase::on_fs`] if your code writes through
//! [`d_engine_storage::Fs`], whose simulated disk loses what was not synced. Otherwise cut the
//! power of a block device, as the project's own `.ci/power-cut` does.

mod copy;
mod state_machine;
mod storage_engine;

pub use state_machine::{StateMachineCase, checks as state_machine_checks};
pub use storage_engine::{StorageEngineCase, checks as storage_engine_checks};

/// What a check found: what the state machine or storage engine did wrong, and which rule it broke.
pub type Violation = String;

/// Runs every check on a state machine. Returns one violation, with the check's name, for each
/// check that failed.
#[must_use]
pub fn check_state_machine<M: d_engine_state_machine::StateMachine>(
    case: &StateMachineCase<M>,
) -> Vec<(&'static str, Violation)> {
    let all = state_machine_checks::all::<M>();
    all.into_iter()
        .filter_map(|(name, check)| check(case).err().map(|found| (name, found)))
        .collect()
}

/// Runs every check on a storage engine. Returns one violation, with the check's name, for each
/// check that failed.
#[must_use]
pub fn check_storage_engine(case: &StorageEngineCase) -> Vec<(&'static str, Violation)> {
    let all = storage_engine_checks::ALL;
    all.iter().filter_map(|(name, check)| check(case).err().map(|found| (*name, found))).collect()
}

/// Generates a `#[test]` for each check of a [`StateMachineCase`]. Use it in a module of its own.
#[macro_export]
macro_rules! state_machine_suite {
    ($case:expr) => {
        $crate::__each_state_machine_check!([$crate::__tests] $case; state_machine_checks;);
    };
}

/// Generates a `#[test]` for each check of a [`StorageEngineCase`]. Use it in a module of its own.
#[macro_export]
macro_rules! storage_engine_suite {
    ($case:expr) => {
        $crate::__each_storage_engine_check!([$crate::__tests] $case; storage_engine_checks;);
    };
}

/// Passes the names of all checks to another macro, after the tokens in `$before`.
#[doc(hidden)]
#[macro_export]
macro_rules! __each_state_machine_check {
    ([$($with:tt)*] $($before:tt)*) => {
        $($with)*! {
            $($before)*
            start_and_stop
            a_chunk_is_applied_whole_or_not_at_all
            what_is_applied_already_changes_nothing
            a_snapshot_is_exactly_the_state_at_its_last_included_entry
            a_view_stays_as_it_was
            the_checksum_is_that_of_the_files
            a_wrong_checksum_is_refused
            a_damaged_snapshot_leaves_the_old_state
            an_install_leaves_nothing_of_the_old_state
            flushed_is_in_the_files
            drop_flushes
            position_and_data_are_stored_together
            power_cuts_lose_nothing_flushed
            power_cuts_leave_the_old_state_or_the_installed_one
            power_cuts_leave_the_old_state_or_none_after_a_reset
            flipped_bits_are_noticed
            the_position_never_goes_back
            foreign_bytes_stop_nothing
            its_own_commands_pass_its_check
            versions_come_from_the_bytes_alone
            every_command_is_answered
            the_length_is_told
            answers_are_equal_on_two_machines
            what_expires_vanishes_at_its_log_time
            expiries_travel_in_snapshots
            both_ways_of_a_snapshot_give_the_same_state
            a_dropped_snapshot_touches_nothing
            the_same_commands_give_the_same_state_and_replies
            the_clock_does_not_matter
            equal_states_write_equal_snapshots
            reads_see_whole_commands
            reset_is_the_beginning
            snapshot_metadata_is_kept
            terms_are_right_or_unknown
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __each_storage_engine_check {
    ([$($with:tt)*] $($before:tt)*) => {
        $($with)*! {
            $($before)*
            a_new_directory_is_empty
            entries_come_back_as_they_were
            synced_is_in_the_files
            power_cuts_lose_nothing_synced
            a_conflicting_suffix_is_replaced
            gaps_are_refused
            a_purge_keeps_what_is_after_it
            a_purge_past_the_end_is_refused
            an_install_takes_the_place_of_the_log
            readers_stop_at_their_bound
            a_directory_is_opened_once
            a_directory_belongs_to_one_node_of_one_cluster
            records_are_replaced
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __tests {
    ($case:expr; $checks:ident; $($check:ident)*) => {
        $(
            #[test]
            fn $check() {
                if let Err(found) = $crate::$checks::$check(&$case) {
                    panic!("{found}");
                }
            }
        )*
    };
}
