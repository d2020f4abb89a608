//! The members of the cluster, and changes of them, at an embedded engine.

use std::sync::Arc;
use std::time::Duration;

use d_engine_api::{Admission, ConfigId, Invitation, MemberChange, Members};
use d_engine_core::QuorumRisk;
use d_engine_replica::{ChangeMembersError, ReadGateInputs as _, RefusedBecause, StopReason};
use tokio::sync::watch;

use super::EmbeddedEngine;
use crate::WaitError;
use crate::members::change::{self, Request};
use crate::members::view;
use crate::node::status::replica_status;

/// How a change of the members is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ChangeOptions {
    /// The configuration on which the decision is based; the change is refused if another one is in
    /// force. `None` accepts any.
    pub expected: Option<ConfigId>,
    /// Make the change even if too few voters may answer afterwards. The cluster may then be unable
    /// to commit anything until they do.
    pub accept_risk: bool,
    /// How long to wait for the goal. `None`: as long as it takes.
    pub timeout: Option<Duration>,
}

impl EmbeddedEngine {
    /// Returns the members of the cluster as this node knows them now.
    #[must_use]
    pub fn members(&self) -> Arc<Members> {
        self.inner.shared.members_view.borrow().clone()
    }

    /// Watches the members, and which of them leads.
    #[must_use]
    pub fn watch_members(&self) -> watch::Receiver<Arc<Members>> {
        self.inner.shared.members_view.subscribe()
    }

    /// Returns the members, at the leader with what it knows of the progress of the others.
    pub(crate) async fn members_with_progress(&self) -> Members {
        let shared = &self.inner.shared;
        let mut members = Members::clone(&self.members());
        if let Some(replica) = replica_status(shared).await {
            view::add_progress(&mut members.list, &replica, shared.gate.now());
        }
        members
    }

    /// Changes the members, and returns them once the goal is reached. Any node asks its leader.
    /// Dropping the future does not withdraw the change; a change that is repeated is not made
    /// twice. Nodes are added by starting them with [`Config::join`](crate::Config::join).
    ///
    /// # Errors
    /// [`ChangeMembersError`] says what to do.
    pub async fn change_members(
        &self,
        change: MemberChange,
        options: ChangeOptions,
    ) -> Result<Arc<Members>, ChangeMembersError> {
        self.change_members_with(change, options, |_| ()).await
    }

    /// As [`EmbeddedEngine::change_members`], and calls `waits` with what the change waits for, as
    /// text: at once and up to four times a second.
    ///
    /// # Errors
    /// As [`EmbeddedEngine::change_members`].
    pub async fn change_members_with(
        &self,
        change: MemberChange,
        options: ChangeOptions,
        waits: impl FnMut(&str),
    ) -> Result<Arc<Members>, ChangeMembersError> {
        self.change_members_through(change, options, None, waits).await
    }

    /// As [`EmbeddedEngine::change_members`], for a caller that can ask another node: it does if
    /// this one knows no leader that answers for about an election.
    pub(crate) async fn change_members_or_leave(
        &self,
        change: MemberChange,
        options: ChangeOptions,
        waits: impl FnMut(&str),
    ) -> Result<Arc<Members>, ChangeMembersError> {
        let leader_within = self.inner.shared.timeout.election;
        self.change_members_through(change, options, Some(leader_within), waits).await
    }

    async fn change_members_through(
        &self,
        change: MemberChange,
        options: ChangeOptions,
        leader_within: Option<Duration>,
        mut waits: impl FnMut(&str),
    ) -> Result<Arc<Members>, ChangeMembersError> {
        let ChangeOptions { expected, accept_risk, timeout } = options;
        let risk = if accept_risk { QuorumRisk::Accept } else { QuorumRisk::Refuse };
        let expected =
            expected.map(|id| d_engine_storage::ConfigId { term: id.term, version: id.version });
        let request = Request { change: stored(change)?, expected, risk };
        let mut waits_for = change::TAKES_REQUEST.to_owned();
        let mut is_written = Some(false);
        let shared = &self.inner.shared;
        let changed = change::change(shared, request, leader_within, |seen| {
            is_written = seen.is_written;
            if seen.text != waits_for {
                waits(&seen.text);
                waits_for = seen.text;
            }
        });
        let known = match timeout {
            None => changed.await?,
            Some(timeout) => match tokio::time::timeout(timeout, changed).await {
                Ok(outcome) => outcome?,
                Err(_) => return Err(ChangeMembersError::NotDone { waits_for, is_written }),
            },
        };
        let leader = shared.leader.borrow().1;
        Ok(Arc::new(view::members(&shared.identity, &known, leader)))
    }

    /// Removes this node from its cluster for ever, whatever its role, and stops it. Its data
    /// directory cannot be used again; empty it to join again.
    ///
    /// # Errors
    /// As [`EmbeddedEngine::change_members`]; the node then continues to run.
    pub async fn leave(&self, timeout: Duration) -> Result<(), ChangeMembersError> {
        let options = ChangeOptions { timeout: Some(timeout), ..ChangeOptions::default() };
        let removal = MemberChange::Remove(self.node_id());
        self.change_members(removal, options).await?;
        self.stop().await;
        Ok(())
    }

    /// Waits up to `timeout` until this node votes: a node that joins does once it keeps up with
    /// the log.
    ///
    /// # Errors
    /// [`WaitError::NoVoter`] if it does not vote by then, and [`WaitError::Stopped`].
    pub async fn wait_voter(&self, timeout: Duration) -> Result<(), WaitError> {
        let mut members = self.inner.shared.members.subscribe();
        let mut stopped = self.inner.shared.stopped.subscribe();
        let node = self.inner.identity.node;
        let votes = members.wait_for(|known| {
            let votes = known.committed.configuration().is_voter(node);
            (votes && !known.committed.is_joint()) || known.removed.is_some()
        });
        let waited = tokio::select! {
            biased;
            _ = stopped.wait_for(Option::is_some) => {
                return Err(WaitError::Stopped { reason: self.reason_of_stop() });
            }
            waited = tokio::time::timeout(timeout, votes) => {
                waited.map(|known| known.ok().and_then(|known| known.removed))
            }
        };
        match waited {
            Ok(None) => Ok(()),
            Ok(Some(by)) => Err(WaitError::Stopped { reason: StopReason::removed(node, by) }),
            Err(_) => Err(WaitError::NoVoter { waited_ms: timeout.as_millis() }),
        }
    }
}

fn stored(change: MemberChange) -> Result<d_engine_storage::MemberChange, ChangeMembersError> {
    use d_engine_storage::{Admission as StoredAdmission, MemberChange as Stored};
    Ok(match change {
        MemberChange::Remove(node) => Stored::Remove(node),
        MemberChange::Replace { old, new } => Stored::Replace { old, new },
        MemberChange::Promote(node) => Stored::Promote(node),
        MemberChange::Demote(node) => Stored::Demote(node),
        MemberChange::UpdateAddress { node, peer_addr, client_addr } => {
            Stored::UpdateAddress { node, peer_addr, client_addr }
        }
        MemberChange::Invite(Invitation { peer_addr, replaces }) => {
            Stored::Invite(d_engine_storage::Invitation { peer_addr, replaces })
        }
        MemberChange::Withdraw(peer_addr) => Stored::Withdraw(peer_addr),
        MemberChange::Admit(admission) => Stored::Admit(match admission {
            Admission::Open => StoredAdmission::Open,
            Admission::Invited => StoredAdmission::Invited,
            admission => {
                return Err(ChangeMembersError::RefusedByLeader {
                    reason: format!("{admission:?} is no rule for nodes that join"),
                    because: RefusedBecause::Rule,
                });
            }
        }),
    })
}
