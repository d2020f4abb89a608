//! A node that joins a cluster: it asks the nodes that its configuration names until the leader has
//! added it. Until then it founds nothing.

use std::time::Duration;

use d_engine_core::{GroupId, NodeId};
use d_engine_storage::{ClusterId, ConfigId, NewMember};
use d_engine_wire::{Answer, JoinNumber, Question};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use crate::StartError;
use crate::transport;

/// How long to wait before asking again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
/// How often to log why the node has not joined yet.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// A node that wants to join.
pub(crate) struct Joiner<'a> {
    /// The peer addresses of nodes of the cluster.
    pub(crate) seeds: &'a [String],
    /// The cluster that it expects.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) group: GroupId,
    pub(crate) member: NewMember,
    pub(crate) state_machine: String,
    /// Proves to the leader that this node has asked.
    pub(crate) number: JoinNumber,
}

/// A node that is a member now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Joined {
    pub(crate) cluster: ClusterId,
    pub(crate) node: NodeId,
    /// A committed configuration that contains it.
    pub(crate) born: ConfigId,
}

impl Joiner<'_> {
    /// Asks until the node is a member, and answers the leader's probes on `listener` meanwhile.
    ///
    /// # Errors
    /// [`StartError::JoinRefused`] if asking again does not help.
    pub(crate) async fn join(&self, listener: &TcpListener) -> Result<Joined, StartError> {
        tokio::select! {
            joined = self.ask_until_member() => joined,
            () = transport::answer_probes(listener, self.member.incarnation, self.number) => {
                unreachable!("probes are answered for ever")
            }
        }
    }

    async fn ask_until_member(&self) -> Result<Joined, StartError> {
        let question = Question::Join {
            member: self.member.clone(),
            state_machine: self.state_machine.clone(),
            number: self.number,
        };
        tracing::info!("asking to join the cluster through {}", self.seeds.join(", "));
        let mut logged_at: Option<Instant> = None;
        loop {
            let mut reasons = Vec::new();
            for seed in self.seeds {
                match self.ask_from(seed, &question).await? {
                    Ok(joined) => return Ok(joined),
                    Err(reason) => reasons.push(reason),
                }
            }
            if logged_at.is_none_or(|at| at.elapsed() >= LOG_INTERVAL) {
                tracing::warn!("not joined yet, asking again: {}", reasons.join("; "));
                logged_at = Some(Instant::now());
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Asks the node at `seed`, and the leader that it names. The inner error is the reason why the
    /// node has not joined yet.
    async fn ask_from(
        &self,
        seed: &str,
        question: &Question,
    ) -> Result<Result<Joined, String>, StartError> {
        let mut address = seed.to_owned();
        // Leaders that change meanwhile: the next round asks again.
        for _ in 0..3 {
            let own = self.member.incarnation;
            let asked = transport::ask(&address, self.cluster, self.group, own, question);
            match asked.await {
                Ok(Answer::Joined { cluster, node, born }) => {
                    tracing::info!(
                        %node, %cluster, configuration = %born, through = address,
                        "the node is a member of the cluster; its directory is bound"
                    );
                    return Ok(Ok(Joined { cluster, node, born }));
                }
                Ok(Answer::Refused { reason, .. }) => {
                    return Err(StartError::JoinRefused { address, reason });
                }
                Ok(Answer::NotLeader { leader: Some((node, leader)) }) if leader != address => {
                    tracing::debug!(%node, leader, "joining through {address}: asks the leader");
                    address = leader;
                }
                Ok(Answer::NotLeader { leader: Some(_) }) => {
                    return Ok(Err(format!("{address} has just lost its leadership")));
                }
                Ok(Answer::NotLeader { leader: None }) => {
                    return Ok(Err(format!("{address} knows no leader yet")));
                }
                Ok(Answer::Later(reason)) => return Ok(Err(format!("{address}: {reason}"))),
                Ok(Answer::Changed) => return Ok(Err(format!("{address} answers something else"))),
                Err(reason) => return Ok(Err(format!("{address}: {reason}"))),
            }
        }
        Ok(Err(format!("{seed}: the leader changes")))
    }
}
