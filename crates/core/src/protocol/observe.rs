//! What a driver may ask of the core. Nothing here changes state.

use alloc::vec::Vec;

use crate::interface::gauges::CoreGauges;
use crate::interface::status::{CoreStatus, FollowerStatus};
use crate::protocol::role::{Role, RoleKind};
use crate::raft_core::RaftCore;
use crate::state::command_version::CommonVersion;
use crate::state::progress::Flow;
use crate::{Instant, LogId, LogIndex, NodeId, Term};

impl RaftCore {
    /// When [`crate::Input::Deadline`] is due; `None` if no deadline is pending.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        match self.role.get() {
            Role::Leader(leader) => Some(leader.heartbeat_at.min(self.quorum_lost_at(leader))),
            _ => {
                let election = self.may_campaign().then_some(self.election_at);
                let clock = match self.role.get() {
                    Role::Candidate(candidate) => candidate.clock_wait_until,
                    _ => None,
                };
                [election, self.follower_reads.deadline(), clock].into_iter().flatten().min()
            }
        }
    }

    /// Whether the log lacks entries that it may have had before it was damaged
    /// ([`crate::Initial::promised`]).
    #[must_use]
    pub fn lacks_promised(&self) -> bool {
        self.log.last() < self.promised
    }

    /// Whether this node neither votes nor campaigns ([`crate::Input::Superseded`]).
    #[must_use]
    pub fn abstains(&self) -> bool {
        self.abstains
    }

    /// The leader of the current term, if known.
    #[must_use]
    pub fn leader(&self) -> Option<NodeId> {
        match self.role.get() {
            Role::Follower(follower) => follower.leader,
            Role::Leader(_) => Some(self.node),
            Role::PreCandidate(_) | Role::Candidate(_) => None,
        }
    }

    /// This node's role in the term.
    #[must_use]
    pub fn role(&self) -> RoleKind {
        self.role.kind()
    }

    /// The current term.
    #[must_use]
    pub fn term(&self) -> Term {
        self.hard_state.term
    }

    /// The vote given in the current term.
    #[must_use]
    pub fn vote(&self) -> Option<NodeId> {
        self.hard_state.vote
    }

    /// The log's watermarks.
    #[must_use]
    pub fn log(&self) -> crate::LogSummary {
        self.log.summary()
    }

    /// The term of the entry at `index`, if the log holds it.
    #[must_use]
    pub fn term_at(&self, index: LogIndex) -> Option<Term> {
        self.log.term_at(index)
    }

    /// The configuration in force: the last one appended.
    #[must_use]
    pub fn configuration(&self) -> &crate::Configuration {
        self.log.configuration()
    }

    /// Whether this node leads and an entry of its term is committed. Before that, neither reads
    /// nor membership entries are possible.
    #[must_use]
    pub fn leads_with_commit(&self) -> bool {
        self.role.leader().is_some_and(|leader| leader.first_of_term <= self.log.committed())
    }

    /// How many messages wait for the disk.
    #[must_use]
    pub fn held_messages(&self) -> usize {
        self.held.len()
    }

    /// Whether this node leads and is transferring its leadership.
    #[must_use]
    pub fn is_transferring_leadership(&self) -> bool {
        self.role.leader().is_some_and(|leader| leader.transfer.is_some())
    }

    /// The target of this node's leadership transfer.
    #[must_use]
    pub fn transfer_target(&self) -> Option<NodeId> {
        match self.role.get() {
            Role::Leader(leader) => leader.transfer.map(|transfer| transfer.to),
            _ => None,
        }
    }

    /// Whether this node knows of every entry that was committed when its leader was last heard. On
    /// leader and follower alike, an entry of the leader's own term must be committed: before that,
    /// a new leader may know of fewer committed entries than an earlier leader (Raft thesis,
    /// section 6.4, step 1). A follower's commit index must also have reached the one that its
    /// leader reported.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        match self.role.get() {
            Role::Leader(_) => self.leads_with_commit(),
            Role::Follower(follower) => {
                let committed = self.log.committed();
                follower.leader_commit.is_some_and(|told| told <= committed)
                    && self.log.term_at(committed) == Some(self.hard_state.term)
            }
            Role::PreCandidate(_) | Role::Candidate(_) => false,
        }
    }

    /// On a leader: whether this follower keeps up well enough to become a voter.
    #[must_use]
    pub fn is_promotable(&self, follower: NodeId, now: Instant) -> bool {
        let gate = self.promotion_gate();
        let leader = self.role.leader();
        let progress = leader.and_then(|leader| leader.followers.get(&follower));
        progress.is_some_and(|progress| progress.is_promotable(now, gate))
    }

    /// On a leader: the nodes to which it sends. Elsewhere: the members of every configuration that
    /// may decide something. All of them may connect.
    #[must_use]
    pub fn reach(&self) -> Vec<NodeId> {
        match self.role.leader() {
            Some(leader) => leader.followers.keys().copied().collect(),
            None => self.log.reach(),
        }
    }

    /// The entry with the configuration in force, and whether it is committed.
    #[must_use]
    pub fn configuration_entry(&self) -> (LogId, bool) {
        (self.log.configuration_id(), self.log.is_configuration_committed())
    }

    /// The state of the core at this moment.
    #[must_use]
    pub fn status(&self) -> CoreStatus {
        let followers = match self.role.get() {
            Role::Leader(leader) => leader
                .followers
                .iter()
                .map(|(node, progress)| FollowerStatus {
                    node: *node,
                    matched: progress.matched,
                    next: progress.next,
                    last_contact: progress.last_contact,
                    is_departed: leader.departed.contains_key(node),
                    applied: progress.report.applied,
                    log_lost: progress.report.log_lost,
                    halted_at: progress.report.halted_at,
                    command_version_max: progress.command_version_max,
                })
                .collect(),
            _ => Vec::new(),
        };
        CoreStatus {
            node: self.node,
            role: self.role.kind(),
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            leader: self.leader(),
            log: self.log.summary(),
            configuration: self.log.configuration().clone(),
            followers,
            held_messages: self.held.len(),
            clock: self.clock_state(),
            abstains: self.abstains,
            lacks: self.lacks_promised().then_some(self.promised),
            lease_revoked: self.role.leader().is_some_and(|leader| leader.lease.is_revoked()),
        }
    }

    /// What this node holds in memory on behalf of others.
    #[must_use]
    pub fn gauges(&self) -> CoreGauges {
        let mut gauges = CoreGauges {
            held_messages: self.held.len(),
            uncommitted_bytes: self.log.uncommitted_bytes(),
            waiting_reads: self.follower_reads.len(),
            ..CoreGauges::default()
        };
        if let Some(leader) = self.role.leader() {
            gauges.waiting_reads += leader.reads.len();
            for progress in leader.followers.values() {
                if let Flow::Replicate { inflight, bytes, .. } = &progress.flow {
                    gauges.inflight_appends = gauges.inflight_appends.max(inflight.len());
                    gauges.inflight_bytes = gauges.inflight_bytes.max(*bytes);
                }
            }
        }
        gauges
    }

    /// The highest command version that this node's program decodes.
    #[must_use]
    pub fn command_version_max(&self) -> u32 {
        self.command_version_max
    }

    /// On a leader: the highest command version that every voter decodes. A voter counts with what
    /// it has announced to *this* leader on its present connection: before that, an older program
    /// may have been started there.
    #[must_use]
    pub fn common_command_version(&self) -> Option<CommonVersion> {
        let leader = self.role.leader()?;
        let own = CommonVersion {
            version: self.command_version_max,
            held_by: self.node,
            announced: Some(self.command_version_max),
        };
        let configuration = self.log.configuration();
        let voters = leader.followers.iter().filter(|(node, _)| configuration.is_voter(**node));
        let followers = voters.map(|(node, progress)| {
            let announced = progress.command_version_max;
            CommonVersion { version: announced.unwrap_or(0), held_by: *node, announced }
        });
        core::iter::once(own).chain(followers).min_by_key(|voter| voter.version)
    }
}
