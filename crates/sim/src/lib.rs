//! A simulator of a whole cluster, in one thread and in virtual time. The core, the replica, the
//! log, the key-value machine and the wire encoding are the real ones; network, disk and clock are
//! simulated. A run is a function of its seed.
//!
//! # Where to look
//! - `run.rs`: the phases of a run.
//! - `profile/`: how hard each fault hits, drawn from the seed.
//! - `world/mod.rs`: the event loop; `world/event.rs`: its events. In the same folder, `disk.rs`
//!   has the workers, `starts.rs` crashes and starts, `snapshots.rs` and `sends.rs` build,
//!   purge, send and receive snapshots, and `faults.rs` and its neighbours have the other faults
//!   and the calls of the clients.
//! - `machines/`: the state machines, among them `durable.rs`, which keeps its own state.
//! - `monitors/`: the rules that are checked after every step; `monitors/violation.rs` lists them.
//! - `clients/linearizability.rs`: the check of the clients' history at the end of a run.
//! - `shrink.rs`: makes a failing run smaller; `world/script.rs` keeps what is left of it
//!   unchanged.
//! - `scenarios/`: scripted runs.

mod clients;
mod faults;
mod machines;
mod monitors;
mod names;
mod now_or_never;
mod prng;
mod profile;
mod reduction;
mod run;
mod scenarios;
mod shrink;
mod time;
mod trace;
mod world;

pub use clients::linearizability::{Action, Operation, Values, Verdict, check};
pub use faults::{Counts, Fault, Sometimes};
pub use monitors::violation::{Rule, Violation};
pub use prng::Prng;
pub use profile::Profile;
pub use profile::limits::LimitProfile;
pub use profile::links::LinkProfile;
pub use profile::members::MemberProfile;
pub use profile::programs::ProgramProfile;
pub use profile::snapshots::SnapshotProfile;
pub use reduction::{Disturbance, Numbers, Reduction};
pub use run::{Finding, Report, RunOptions, profile_of, run, run_as, run_reduced};
pub use scenarios::snapshot::{CaughtUpUnderLoad, UnderLoad, catch_up_under_load};
pub use scenarios::trials::{Slow, longest_gap};
pub use scenarios::{CatchUp, CaughtUp, WrongClock, catch_up, wrong_clock};
pub use shrink::{RUNS_MAX, Shrunk, shrink};
pub use world::script::Step;
