//! A whole cluster in one thread of virtual time: the real core, replica, log, key-value machine and
//! wire encoding on a simulated network, disk and clock. A run is a function of its seed.
//!
//! # Where to look
//! `profile.rs` and `snapshot_profile.rs` draw how hard each fault hits; `world.rs` is the event loop,
//! `world_disk.rs` the workers and crashes, `world_snapshots.rs` and `world_transfers.rs` what is done
//! about snapshots, `world_faults.rs` the other faults and the clients; `durable_machine.rs` is a state
//! machine that keeps its own state; `monitors.rs` and `snapshot_monitors.rs` have the rules checked
//! at every step, `linearizability.rs` the one checked at the end.

mod bound_directories;
mod bounds;
mod choking_machine;
mod clients;
mod durable_machine;
mod expiry;
mod faults;
mod intake;
mod limits;
mod linearizability;
mod links;
mod machine;
mod monitors;
mod network;
mod node;
mod prng;
mod profile;
mod program;
mod run;
mod scenario_snapshot;
mod scenarios;
mod snapshot_monitors;
mod snapshot_profile;
mod trace;
mod traffic;
mod trials;
mod world;
mod world_disk;
mod world_faults;
mod world_links;
mod world_programs;
mod world_snapshots;
mod world_standing;
mod world_stops;
mod world_transfers;
mod world_turns;

pub use faults::{Counts, Fault, Sometimes};
pub use limits::LimitProfile;
pub use linearizability::{Action, Operation, Values, Verdict, check};
pub use links::LinkProfile;
pub use prng::Prng;
pub use profile::Profile;
pub use program::ProgramProfile;
pub use run::{Finding, Report, RunOptions, run, run_as};
pub use scenario_snapshot::{CaughtUpUnderLoad, UnderLoad, catch_up_under_load};
pub use scenarios::{CatchUp, CaughtUp, WrongClock, catch_up, wrong_clock};
pub use snapshot_profile::SnapshotProfile;
pub use trials::{Slow, longest_gap};
