//! The rules for programs of several versions.
//!
//! - "no entry above what every voter has announced": a leader creates an entry of a version only
//!   if each voter has announced in this term that it decodes it, or if an entry of that version is
//!   committed.
//! - "only a downgraded node stops": a node stops because its program is too old only if it ran a
//!   newer one before or did not vote when the commands that it does not decode were created.

use std::collections::{BTreeMap, BTreeSet};

use d_engine_core::{LogId, RaftCore, RoleKind, Term};
use d_engine_storage::LogEntry;

use crate::monitors::violation::{Rule, Violation};

/// The programs that the nodes have run, the versions that they have announced, and the versions of
/// the commands in the log.
#[derive(Debug, Default)]
pub(crate) struct ProgramMonitor {
    /// For each node, the highest version that any of its programs has decoded.
    newest: BTreeMap<u64, u32>,
    /// The version that a node has announced to the leader of a term.
    announced: BTreeMap<(Term, u64), u32>,
    /// For each version, the nodes that voted when a leader created an entry of it.
    voters: BTreeMap<u32, BTreeSet<u64>>,
    /// Entries whose version is higher than that of every committed entry.
    above: BTreeMap<LogId, u32>,
    committed: u32,
}

impl ProgramMonitor {
    /// Records that a node was started with a program that decodes commands up to `version`.
    pub(crate) fn on_start(&mut self, node: u64, version: u32) {
        let newest = self.newest.entry(node).or_default();
        *newest = version.max(*newest);
    }

    /// Records the version that a node announces in its heartbeat response to the leader of `term`.
    pub(crate) fn on_announced(&mut self, node: u64, term: Term, version: u32) {
        let announced = self.announced.entry((term, node)).or_default();
        *announced = version.max(*announced);
    }

    /// Returns the highest version of a committed command.
    fn floor(&mut self, is_committed: impl Fn(LogId) -> bool) -> u32 {
        let found =
            self.above.iter().filter(|(id, _)| is_committed(**id)).map(|(_, version)| *version);
        self.committed = found.max().unwrap_or(0).max(self.committed);
        let committed = self.committed;
        self.above.retain(|_, version| *version > committed);
        committed
    }

    /// Checks the entries that a node is about to write.
    ///
    /// # Errors
    /// The node leads, and created an entry that some voter has not announced to decode.
    pub(crate) fn on_write(
        &mut self,
        node: u64,
        core: &RaftCore,
        entries: &[LogEntry],
        is_committed: impl Fn(LogId) -> bool,
    ) -> Result<(), Violation> {
        let creates = core.role() == RoleKind::Leader;
        for entry in entries.iter().filter(|entry| entry.version > 0) {
            let floor = self.floor(&is_committed);
            if entry.version <= floor {
                continue;
            }
            self.above.insert(entry.id, entry.version);
            if creates {
                let voters = core.configuration().voters().iter().map(|voter| voter.get());
                self.voters.entry(entry.version).or_default().extend(voters);
            }
            let decodes = |voter: u64| match voter == node {
                true => core.command_version_max(),
                false => self.announced.get(&(core.term(), voter)).copied().unwrap_or(0),
            };
            let mut voters = core.configuration().voters().iter().map(|voter| voter.get());
            if creates && let Some(voter) = voters.find(|voter| decodes(*voter) < entry.version) {
                return Rule::NewerCommand.broken_by(
                    node,
                    format_args!(
                        "node {node} creates {:?} of version {}, but node {voter} has announced \
                         only {} (committed: {floor})",
                        entry.id,
                        entry.version,
                        decodes(voter)
                    ),
                );
            }
        }
        Ok(())
    }

    /// Checks a node that stops, or does not start, because its program decodes commands only up to
    /// `version`.
    ///
    /// # Errors
    /// The node voted when a newer command was created but has never run a newer program, or its
    /// program decodes all commands of the log.
    pub(crate) fn on_too_old(&self, node: u64, version: u32) -> Result<(), Violation> {
        let newest = self.newest.get(&node).copied().unwrap_or(0);
        let in_log = self.above.values().copied().max().unwrap_or(0).max(self.committed);
        let mut newer = self.voters.range(version + 1..);
        let has_announced = newer.any(|(_, voters)| voters.contains(&node));
        if (newest <= version && has_announced) || in_log <= version {
            return Rule::OnlyDowngradedStops.broken_by(node,
                format_args!(
                    "node {node} stops with a program that decodes up to version {version}, but the \
                     newest program that it ran decodes up to {newest}, and the log holds commands \
                     up to {in_log}"
                ),
            );
        }
        Ok(())
    }
}
