//! The rules that must hold after every step of every run: [`violation::Rule`] lists them all. Each
//! rule, or small family of rules that share what they know, has a monitor of its own: a rule that
//! is checked only through its consequences is found broken late or never. This module owns the
//! monitors and calls them.
//!
//! The clients' histories are checked in `clients/linearizability.rs` and `monitors/expiry.rs`, and
//! that the cluster recovers in `run.rs`.

pub(crate) mod applied;
pub(crate) mod bound_directories;
pub(crate) mod bounds;
pub(crate) mod committed;
pub(crate) mod config_of_log;
pub(crate) mod disks;
pub(crate) mod disturbance;
pub(crate) mod durable_before_sent;
pub(crate) mod expiry;
pub(crate) mod ids;
pub(crate) mod intents;
pub(crate) mod invitations;
pub(crate) mod leaders;
pub(crate) mod leases;
pub(crate) mod log_matching;
pub(crate) mod log_time;
pub(crate) mod memberships;
pub(crate) mod overlap;
pub(crate) mod programs;
pub(crate) mod sends;
pub(crate) mod skips;
pub(crate) mod snapshots;
pub(crate) mod traffic;
pub(crate) mod violation;
pub(crate) mod votes;
pub(crate) mod watermarks;

use d_engine_core::{Instant, LogId, NodeId, RaftCore, RoleKind, Term};
use d_engine_replica::{ApplyJob, PeerMessage, PersistJob, Replica};
use d_engine_storage::RecoveredLog;

use crate::monitors::bound_directories::BoundDirectories;
use crate::monitors::committed::Committed;
use crate::monitors::config_of_log::ConfigOfLog;
use crate::monitors::disks::Disks;
use crate::monitors::disturbance::{Before, Disturbance};
use crate::monitors::ids::Ids;
use crate::monitors::intents::Intents;
use crate::monitors::invitations::Invitations;
use crate::monitors::leaders::Leaders;
use crate::monitors::log_matching::LogMatching;
use crate::monitors::log_time::LogTimes;
use crate::monitors::memberships::Memberships;
use crate::monitors::overlap::Overlap;
use crate::monitors::programs::ProgramMonitor;
use crate::monitors::skips::SkipMonitor;
use crate::monitors::snapshots::SnapshotMonitors;
use crate::monitors::traffic::Traffic;
use crate::monitors::violation::{Rule, Violation};
use crate::monitors::votes::Votes;
use crate::monitors::watermarks::Watermarks;
use crate::profile::Profile;

/// The monitors of one run.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    pub(crate) leaders: Leaders,
    pub(crate) committed: Committed,
    pub(crate) disks: Disks,
    pub(crate) snapshots: SnapshotMonitors,
    pub(crate) traffic: Traffic,
    pub(crate) programs: ProgramMonitor,
    pub(crate) skips: SkipMonitor,
    bound_directories: BoundDirectories,
    log_matching: LogMatching,
    pub(crate) memberships: Memberships,
    pub(crate) ids: Ids,
    pub(crate) log_times: LogTimes,
    pub(crate) invitations: Invitations,
    pub(crate) intents: Intents,
    config_of_log: ConfigOfLog,
    overlap: Overlap,
    disturbance: Disturbance,
    votes: Votes,
    watermarks: Watermarks,
}

impl Monitors {
    /// Checks a node that has handled an event.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_step(
        &mut self,
        node: u64,
        replica: &Replica,
        profile: &Profile,
        now: u64,
    ) -> Result<(), Violation> {
        let core = replica.core();
        self.log_times.after_step(node, core, now);
        if self.leaders.check_election(node, core)? {
            self.committed.check_completeness(node, core)?;
        }
        self.leaders.check_followed(node, core)?;
        let before = self.watermarks.after_step(node, core)?;
        self.committed.after_step(node, core, before, &self.disks)?;
        self.memberships.after_step(node, replica, &self.committed, now)?;
        self.ids.check(&self.memberships)?;
        self.invitations.check(&self.memberships)?;
        self.ids.check_removed(node, replica.removed())?;
        bounds::check(node, replica, profile)?;
        self.bound_directories.check(node, replica)
    }

    /// Checks what an event has done to a node's role.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check_role(
        &mut self,
        node: u64,
        core: &RaftCore,
        before: Before,
        clock: Instant,
    ) -> Result<(), Violation> {
        self.disturbance.check(node, core, (before, clock), &self.memberships)
    }

    /// Checks the configurations at all running nodes, after one of them has changed, or the role
    /// of a node.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check_overlap<'a>(
        &mut self,
        running: impl Iterator<Item = (u64, &'a RaftCore)>,
    ) -> Result<(), Violation> {
        self.overlap.check(running, &self.disks, &self.memberships)
    }

    /// Checks a node after the writes that an event has requested.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_writes(&mut self, node: u64, replica: &Replica) -> Result<(), Violation> {
        self.config_of_log.check(node, replica, &self.memberships)
    }

    /// Checks a log write that a node requests.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_write(
        &mut self,
        node: u64,
        core: &RaftCore,
        job: &PersistJob,
        now: u64,
    ) -> Result<(), Violation> {
        self.log_matching.on_write(node, core, job)?;
        for entry in &job.entries {
            self.skips.on_write(node, core, entry)?;
            self.memberships.on_write(node, core, entry, (&self.committed, &self.disks), now)?;
        }
        self.config_of_log.on_write(node, job);
        let committed = &self.committed;
        self.programs.on_write(node, core, &job.entries, |id| committed.contains(id))
    }

    /// Checks a message that a node sends.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_send(
        &mut self,
        node: u64,
        core: &RaftCore,
        to: NodeId,
        message: &PeerMessage,
    ) -> Result<(), Violation> {
        if let PeerMessage::HeartbeatReply { term, report, .. } = message {
            self.programs.on_announced(node, *term, report.command_version_max);
        }
        let disk = self.disks.of(node);
        durable_before_sent::check(node, core, to, message, disk, &self.committed)?;
        self.votes.on_send(node, to, message)
    }

    /// Checks the log that a node has recovered; see [`Disks::on_recovered`].
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_recovered(
        &mut self,
        node: u64,
        recovered: &RecoveredLog,
        snapshots: &[LogId],
    ) -> Result<bool, Violation> {
        let lost = self.disks.on_recovered(node, recovered, snapshots)?;
        self.watermarks.on_restart(node);
        self.committed.on_restart(node);
        self.leaders.on_restart(node);
        self.disturbance.on_restart(node);
        Ok(lost)
    }

    /// Checks the log that a node would have recovered, and records that it was damaged and mended.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_mended(
        &mut self,
        node: u64,
        whole: &RecoveredLog,
        mended: &RecoveredLog,
        snapshots: &[LogId],
    ) -> Result<(), Violation> {
        self.on_recovered(node, whole, snapshots)?;
        let (had, has) = (whole.last().max(whole.promised), mended.last().max(mended.promised));
        if has < had {
            return Rule::Recovery.broken_by(
                node,
                format_args!("the mended log of node {node} promises {has}, and had {had}"),
            );
        }
        let (term, before) = (mended.hard_state.term, whole.hard_state.term);
        let is_new = term > before && mended.hard_state.vote.is_none();
        if !is_new && mended.hard_state != whole.hard_state {
            return Rule::Recovery.broken_by(
                node,
                format_args!("the mended log of node {node} may vote again in term {term}"),
            );
        }
        self.disks.on_mended(node, mended);
        Ok(())
    }

    /// Checks a start that may have finished an interrupted install. Returns whether it did.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_restored(
        &mut self,
        node: u64,
        restored: &RecoveredLog,
    ) -> Result<bool, Violation> {
        let committed = &self.committed;
        self.config_of_log.on_started(node, restored, &self.memberships)?;
        self.disks.on_restored(node, restored, |id| committed.contains(id))
    }

    /// Checks the entries that a node is about to apply.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_apply(&mut self, node: u64, job: &ApplyJob) -> Result<(), Violation> {
        applied::check(node, job, &self.committed, self.disks.of(node))
    }

    /// Whether a majority holds an uncommitted entry of an earlier term than its leader's: the
    /// situation of the paper's figure 8.
    #[must_use]
    pub(crate) fn is_old_term_on_majority(&self, core: &RaftCore) -> bool {
        let index = core.log().committed.next();
        let Some(term) = core.term_at(index) else { return false };
        core.role() == RoleKind::Leader
            && term < core.term()
            && core
                .configuration()
                .has_quorum(|voter| self.disks.logs(voter.get(), index, term.get()))
    }

    /// Whether the node has led one of the terms just before this one.
    pub(crate) fn has_led_before(&self, node: u64, term: Term) -> bool {
        let earlier = (1..term.get()).rev().map(Term::new);
        earlier.take(4).any(|term| self.leaders.of(term) == Some(node))
    }
}
