//! Programs of several versions: which commands each decodes, when a node is started with another one, and what
//! must hold of it.
//!
//! | rule | |
//! |---|---|
//! | no entry above what every voter has announced | a leader creates an entry of a version only if each voter has told it, in this term, that it decodes it, or if one of that version is committed |
//! | only a downgraded node stops | a node stops for its program's age only if it ran a newer one before, and the log holds what it does not decode |

use std::collections::BTreeMap;

use d_engine_core::{LogId as CoreLogId, RaftCore, RoleKind, Term};
use d_engine_storage::LogEntry;

use crate::monitors::{Broken, broken};
use crate::prng::Prng;
use crate::profile::SECOND;

/// The newest program decodes commands up to this version.
pub(crate) const NEWEST: u32 = 2;

/// Whether the nodes of a run have programs of several versions.
#[derive(Clone, Debug)]
pub struct ProgramProfile {
    /// Mean time between starts of some node with another program; zero: all run the newest, and all commands are of version 0.
    pub change_every: u64,
    /// Chance that a node whose process ends is started with an older program, in millionths.
    pub downgrade: u64,
    /// Chance that it is started with a newer one.
    pub upgrade: u64,
}

impl ProgramProfile {
    /// The part of a seed's profile that is about programs.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut prng = Prng::stream(seed, "programs");
        let mixed = prng.chance(300_000);
        let change_every = if mixed { prng.between(SECOND / 2, 5 * SECOND) } else { 0 };
        // In half of them as careful operators do it: nobody goes back.
        let downgrade = if prng.chance(500_000) { prng.between(100_000, 600_000) } else { 0 };
        Self { change_every, downgrade, upgrade: prng.between(200_000, 800_000) }
    }

    /// All nodes run the newest program.
    #[must_use]
    pub const fn none() -> Self {
        Self { change_every: 0, downgrade: 0, upgrade: 0 }
    }

    /// Whether there is more than one program.
    #[must_use]
    pub fn are_mixed(&self) -> bool {
        self.change_every > 0
    }
}

/// What the nodes have run and announced, and which versions the log holds.
#[derive(Debug, Default)]
pub(crate) struct ProgramMonitor {
    /// The highest version that a node's programs have decoded, of all that it was started with.
    newest: BTreeMap<u64, u32>,
    /// What a node has told whoever leads the term.
    announced: BTreeMap<(Term, u64), u32>,
    /// Entries of a version that no committed one has.
    above: BTreeMap<CoreLogId, u32>,
    committed: u32,
}

impl ProgramMonitor {
    /// A node was started.
    pub(crate) fn on_start(&mut self, node: u64, version: u32) {
        let newest = self.newest.entry(node).or_default();
        *newest = version.max(*newest);
    }

    /// A node answers a heartbeat of the leader of `term`.
    pub(crate) fn on_announced(&mut self, node: u64, term: Term, version: u32) {
        let announced = self.announced.entry((term, node)).or_default();
        *announced = version.max(*announced);
    }

    /// The highest version of a committed command.
    fn floor(&mut self, is_committed: impl Fn(CoreLogId) -> bool) -> u32 {
        let found = self.above.iter().filter(|(id, _)| is_committed(**id)).map(|(_, version)| *version);
        self.committed = found.max().unwrap_or(0).max(self.committed);
        let committed = self.committed;
        self.above.retain(|_, version| *version > committed);
        committed
    }

    /// A node hands out entries to be written.
    ///
    /// # Errors
    /// It leads, and has created an entry that some voter is not known to decode.
    pub(crate) fn on_write(
        &mut self,
        node: u64,
        core: &RaftCore,
        entries: &[LogEntry],
        is_committed: impl Fn(CoreLogId) -> bool,
    ) -> Result<(), Broken> {
        let creates = core.role() == RoleKind::Leader;
        for entry in entries.iter().filter(|entry| entry.version > 0) {
            let floor = self.floor(&is_committed);
            if entry.version <= floor {
                continue;
            }
            self.above.insert(entry.id, entry.version);
            let decodes = |voter: u64| match voter == node {
                true => core.command_version_max(),
                false => self.announced.get(&(core.term(), voter)).copied().unwrap_or(0),
            };
            let mut voters = core.configuration().voters().iter().map(|voter| voter.get());
            if creates && let Some(voter) = voters.find(|voter| decodes(*voter) < entry.version) {
                return broken(
                    "no entry above what every voter has announced",
                    format_args!(
                        "node {node} creates {:?} of version {}, and node {voter} has announced {} (committed: {floor})",
                        entry.id,
                        entry.version,
                        decodes(voter)
                    ),
                );
            }
        }
        Ok(())
    }

    /// A node stops, or does not start, because its program decodes commands only up to `version`.
    ///
    /// # Errors
    /// It has never run a newer one, or there is nothing that it does not decode.
    pub(crate) fn on_too_old(&self, node: u64, version: u32) -> Result<(), Broken> {
        let newest = self.newest.get(&node).copied().unwrap_or(0);
        let in_log = self.above.values().copied().max().unwrap_or(0).max(self.committed);
        if newest <= version || in_log <= version {
            return broken(
                "only a downgraded node stops",
                format_args!(
                    "node {node} decodes up to {version}, the newest program that it had up to {newest}, and the log \
                     holds commands up to {in_log}"
                ),
            );
        }
        Ok(())
    }
}
