//! The members of the cluster: as they are, as they change, and changes of them.

use std::sync::Mutex;
use std::time::Duration;

use d_engine_api::message::{
    ChangeMembersRequest, MembersReply, MembersRequest, change_members_reply::Step,
};
use d_engine_api::{ConfigId, MemberChange, Members};
use d_engine_locks::Unpoisoned;
use tokio::time::timeout;
use tonic::{Status, Streaming};

use crate::ClientError;
use crate::answer::Effect;
use crate::client::{Client, timed};
use crate::node::Calls;

/// How long to wait before a node that ended a watch is asked again.
const RESUME_PAUSE: Duration = Duration::from_millis(100);
/// How long a watch stays at a node that knows no leader.
const LEADERLESS_TIMEOUT: Duration = Duration::from_secs(2);
/// How much earlier than the client the leader stops waiting for a change, so that its answer,
/// which says what the change waits for, arrives in time. At most half of the time that is left.
const ANSWER_TIME: Duration = Duration::from_millis(200);

/// How a change of the members is made. Start from the default and change what you need.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct ChangeOptions {
    /// The configuration on which the decision is based; the change is refused if another one is in
    /// force. `None` accepts any.
    pub expected: Option<ConfigId>,
    /// Make the change even if too few voters may answer afterwards. The cluster may then be unable
    /// to commit anything until they do.
    pub accept_risk: bool,
}

impl ChangeOptions {
    /// Sets [`ChangeOptions::expected`].
    #[must_use]
    pub fn expected(mut self, config: ConfigId) -> Self {
        self.expected = Some(config);
        self
    }

    /// Sets [`ChangeOptions::accept_risk`].
    #[must_use]
    pub fn accept_risk(mut self, accept: bool) -> Self {
        self.accept_risk = accept;
        self
    }
}

impl Client {
    /// Returns the members of the cluster, as the node that answers knows them: the leader, if it
    /// is known, and otherwise any node. [`Members::leader`] names the leader, which alone knows
    /// the progress of the others; [`Client::members_at`] asks it.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn members(&self) -> Result<Members, ClientError> {
        let members = self.route(Effect::Read).run(ask_for_members).await?;
        self.nodes.heard("a node", &members)?;
        Ok(members)
    }

    /// Returns the members of the cluster, as the node at `endpoint` knows them. Only this node is
    /// called.
    ///
    /// # Errors
    /// As [`Client::status`].
    pub async fn members_at(&self, endpoint: &str) -> Result<Members, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let members = self.route(Effect::Read).run_at(&node, ask_for_members).await?;
        self.nodes.heard(endpoint, &members)?;
        Ok(members)
    }

    /// Watches the members: returns them as they are now, and after every change.
    ///
    /// ```no_run
    /// # use d_engine_client::{Client, ClientError};
    /// # async fn example(client: Client) -> Result<(), ClientError> {
    /// let mut watch = client.watch_members();
    /// loop {
    ///     let members = watch.next().await?;
    ///     println!("configuration {}: {} members", members.config, members.list.len());
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn watch_members(&self) -> MembersWatch {
        MembersWatch { client: self.clone(), open: None, seen: None, elsewhere: None }
    }

    /// Changes the members, and returns them once the goal is reached. Nodes are added by starting
    /// them with `join`. The change is made by the leader; the client finds it, and repeats the
    /// request until its deadline, because a request that is repeated changes nothing. Promoting a
    /// node takes as long as that needs to receive the log: set a timeout for it with
    /// [`Client::with_timeout`]. Dropping the future does not withdraw the change.
    ///
    /// # Errors
    /// [`ClientError::MembersNotChanged`] says what to do first. After
    /// [`ClientError::OutcomeUnknown`] the change may be in progress; repeat the request to wait
    /// for it.
    pub async fn change_members(
        &self,
        change: MemberChange,
        options: ChangeOptions,
    ) -> Result<Members, ClientError> {
        self.change_members_with(change, options, |_| ()).await
    }

    /// As [`Client::change_members`], and calls `waits` with what the change waits for, as text,
    /// whenever that changes.
    ///
    /// # Errors
    /// As [`Client::change_members`].
    pub async fn change_members_with(
        &self,
        change: MemberChange,
        options: ChangeOptions,
        waits: impl FnMut(&str) + Send,
    ) -> Result<Members, ClientError> {
        let ChangeOptions { expected, accept_risk } = options;
        let request = ChangeMembersRequest {
            change: Some(change.into()),
            expected: expected.map(Into::into),
            accept_risk,
        };
        let waits = Mutex::new(waits);
        let call = |mut calls: Calls, left: Duration| {
            let request = timed(request.clone(), left.saturating_sub(ANSWER_TIME.min(left / 2)));
            let waits = &waits;
            async move {
                let mut steps = calls.change_members(request).await?.into_inner();
                while let Some(reply) = steps.message().await? {
                    match reply.step {
                        Some(Step::Done(members)) => return Ok(Members::from(members)),
                        Some(Step::Waiting(text)) => (waits.lock().unpoisoned())(&text),
                        // A step that this version does not know.
                        None => {}
                    }
                }
                Err(Status::unknown("the node ended the call without a result"))
            }
        };
        let members = self.route(Effect::Idempotent { size: 0 }).run(call).await?;
        self.nodes.heard("the leader", &members)?;
        Ok(members)
    }
}

async fn ask_for_members(mut calls: Calls, left: Duration) -> Result<Members, Status> {
    Ok(calls.members(timed(MembersRequest {}, left)).await?.into_inner().into())
}

/// Opens a watch at the node in this place, or at any that answers.
async fn open_watch(
    client: &Client,
    place: Option<usize>,
) -> Result<Streaming<MembersReply>, ClientError> {
    let call = |mut calls: Calls, _| async move {
        Ok(calls.watch_members(MembersRequest {}).await?.into_inner())
    };
    let nodes = client.nodes.all();
    let node = place.and_then(|place| nodes.get(place.checked_rem(nodes.len())?));
    if let Some(node) = node
        && let Ok(stream) = client.route(Effect::Read).run_at(node, call).await
    {
        return Ok(stream);
    }
    client.route(Effect::Read).run(call).await
}

/// A watch of the members, from [`Client::watch_members`]. If its node fails, or knows no leader
/// for two seconds, it continues at another one.
pub struct MembersWatch {
    client: Client,
    /// The stream of the node that is asked now, and whether it has sent anything.
    open: Option<(Streaming<MembersReply>, bool)>,
    seen: Option<Members>,
    /// The place of the node to try next, while the nodes that were watched knew no leader.
    elsewhere: Option<usize>,
}

impl MembersWatch {
    /// Returns the members if they differ from the ones that it returned last; waits for that as
    /// long as it takes. May be dropped and called again without a loss.
    ///
    /// # Errors
    /// As [`Client::get`], if no node can be asked until the client's deadline; the next call tries
    /// again. [`ClientError::OtherCluster`] if a node of another cluster answers.
    pub async fn next(&mut self) -> Result<Members, ClientError> {
        loop {
            let (stream, has_answered) = match &mut self.open {
                Some(open) => open,
                None => {
                    let stream = open_watch(&self.client, self.elsewhere).await?;
                    self.open.insert((stream, false))
                }
            };
            let message = match self.elsewhere {
                None => stream.message().await,
                // The node may be cut off from the others, which have a leader.
                Some(place) => match timeout(LEADERLESS_TIMEOUT, stream.message()).await {
                    Ok(message) => message,
                    Err(_) => {
                        (self.open, self.elsewhere) = (None, Some(place.wrapping_add(1)));
                        continue;
                    }
                },
            };
            match message {
                Ok(Some(reply)) => {
                    *has_answered = true;
                    let members = Members::from(reply);
                    self.elsewhere = match members.leader {
                        Some(_) => None,
                        None => Some(self.elsewhere.unwrap_or(0)),
                    };
                    self.client.nodes.heard("the watched node", &members)?;
                    if self.is_news(&members) {
                        self.seen = Some(members.clone());
                        return Ok(members);
                    }
                }
                // Lost, or the node stops.
                Ok(None) | Err(_) => {
                    let was_of_use = *has_answered;
                    self.open = None;
                    if !was_of_use {
                        tokio::time::sleep(RESUME_PAUSE).await;
                    }
                }
            }
        }
    }

    /// A node that lags behind the one that was asked before says nothing new. A leader is right in
    /// any case: a configuration that was not committed may have been dropped.
    fn is_news(&self, members: &Members) -> bool {
        let Some(seen) = &self.seen else { return true };
        let is_newer = members.config >= seen.config || members.leader == Some(members.node);
        let is_other = (members.config, members.is_committed, members.leader, &members.list)
            != (seen.config, seen.is_committed, seen.leader, &seen.list);
        let forgets = members.config == seen.config && seen.is_committed && !members.is_committed;
        is_newer && is_other && !forgets
    }
}

impl std::fmt::Debug for MembersWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MembersWatch").field("seen", &self.seen).finish_non_exhaustive()
    }
}
