//! Takes one call from node to node until its deadline.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use d_engine_api::message::MembersRequest;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::ClientError;
use crate::answer::{Effect, Next, is_out_of_time, next_step, was_not_sent};
use crate::node::{Calls, Connection, Node};
use crate::nodes::Nodes;

/// The first pause after all nodes were tried in vain.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest pause: short compared with an election, long compared with a round trip.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A retry with less time left than this is not sent: it could only become an unknown outcome.
const LAST_CALL: Duration = Duration::from_millis(100);

/// How much earlier than this client a node may end a call, because of rounding.
const ROUNDING: Duration = Duration::from_millis(2);

/// One call and its search for a node.
pub(crate) struct Route<'a> {
    nodes: &'a Nodes,
    effect: Effect,
    timeout: Duration,
    started: Instant,
    deadline: Instant,
    /// Nodes tried since the last pause.
    asked: Vec<Arc<Node>>,
    /// The node to try next, if one was named.
    hint: Option<Arc<Node>>,
    pause: Duration,
    /// Whether to pause before the next node is tried.
    pause_now: bool,
    /// The error to return if the deadline passes.
    last: Option<ClientError>,
    /// Nodes that did not answer when they were last tried, with the reason.
    silent: BTreeMap<Arc<str>, String>,
    /// The last node that answered that it does not lead.
    follower: Option<Arc<Node>>,
    /// Whether the call may go to a node of another cluster.
    any_cluster: bool,
    /// Set once a command may have been accepted; from then on the outcome is unknown, whatever
    /// later attempts return.
    unknown: Option<ClientError>,
}

impl<'a> Route<'a> {
    pub(crate) fn new(nodes: &'a Nodes, effect: Effect, timeout: Duration) -> Self {
        let started = Instant::now();
        // A longer timeout could exceed what the clock can express.
        let far = Duration::from_secs(365 * 24 * 3600);
        let deadline = started + timeout.min(far);
        Self {
            timeout,
            nodes,
            effect,
            started,
            deadline,
            asked: Vec::new(),
            hint: None,
            pause: PAUSE_MIN,
            pause_now: false,
            last: None,
            silent: BTreeMap::new(),
            follower: None,
            any_cluster: false,
            unknown: None,
        }
    }

    /// The same call, which a node of another cluster may answer too.
    pub(crate) fn of_any_cluster(self) -> Self {
        Self { any_cluster: true, ..self }
    }

    /// Tries node after node until one answers, an error is final, or the deadline passes. `call`
    /// receives the remaining time, to carry it to the node.
    pub(crate) async fn run<T, F>(
        mut self,
        call: impl Fn(Calls, Duration) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let _place = self.nodes.place_in_flight()?;
        let result = self.search(call).await;
        result.map_err(|error| self.unknown.take().unwrap_or(error))
    }

    async fn search<T, F>(&mut self, call: impl Fn(Calls, Duration) -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        // Subscribe before the first attempt, so that no change of the leader is missed.
        let mut leader_news = self.nodes.watch_leader();
        loop {
            let Some(node) = self.next_node() else {
                self.rest(&mut leader_news).await?;
                continue;
            };
            self.asked.push(node.clone());
            match self.ask(&node, &call).await {
                Ok(answer) => {
                    node.answered();
                    // Only commands are always served by the leader; a read may be served by any
                    // node.
                    if self.effect != Effect::Read {
                        self.nodes.is_leader(&node);
                    }
                    return Ok(answer);
                }
                Err(next) => self.learn(&node, next)?,
            }
        }
    }

    /// Calls this node once, and no other.
    pub(crate) async fn run_at<T, F>(
        self,
        node: &Arc<Node>,
        call: impl Fn(Calls, Duration) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let answered = self.ask(node, &call).await;
        answered.map_err(|next| next.into_error().unwrap_or_else(|_| self.no_leader(node)))
    }

    /// Calls one node once.
    async fn ask<T, F>(
        &self,
        node: &Arc<Node>,
        call: &impl Fn(Calls, Duration) -> F,
    ) -> Result<T, Next>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let connection = self.connect(node).await?;
        let status = match self.send(node, &connection, call).await? {
            Ok(answer) => return Ok(answer),
            // The connection had been closed before, and nothing was sent: the node may have
            // started again.
            Err(status) if was_not_sent(&status) => {
                node.forget(&connection).await;
                let connection = self.connect(node).await?;
                match self.send(node, &connection, call).await? {
                    Ok(answer) => return Ok(answer),
                    Err(status) => return Err(self.after(node, &connection, &status).await),
                }
            }
            Err(status) => status,
        };
        Err(self.after(node, &connection, &status).await)
    }

    /// Returns a connection to a node of this client's cluster. Nothing of the caller's is sent, so
    /// a timeout here is not an unknown outcome.
    async fn connect(&self, node: &Arc<Node>) -> Result<Connection, Next> {
        let connection = match timeout_at(self.deadline, node.connection()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                node.unreachable();
                return Err(Next::Elsewhere(error));
            }
            Err(_) => return Err(Next::Late(self.time_is_up(node))),
        };
        match self.nodes.heard(&node.address, &connection.members) {
            Err(other) if !self.any_cluster => {
                // The address may be that of a node of this cluster later.
                node.forget(&connection).await;
                Err(Next::Tell(other))
            }
            _ => Ok(connection),
        }
    }

    /// Sends the call. The outer error is that the time is up.
    async fn send<T, F>(
        &self,
        node: &Arc<Node>,
        connection: &Connection,
        call: &impl Fn(Calls, Duration) -> F,
    ) -> Result<Result<T, Status>, Next>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let left = self.deadline.saturating_duration_since(Instant::now());
        match timeout_at(self.deadline, call(connection.calls.clone(), left)).await {
            Ok(Err(status))
                if is_out_of_time(&status, self.deadline - ROUNDING <= Instant::now()) => {}
            Ok(outcome) => return Ok(outcome),
            Err(_) => {}
        }
        // The remaining time is limited twice: here and by the channel. A timeout says nothing
        // about the node, because this caller's may have been short; pings detect a dead
        // connection.
        Err(Next::Late(match self.effect {
            Effect::Read => self.time_is_up(node),
            _ => ClientError::OutcomeUnknown {
                endpoint: node.address.to_string(),
                reason: format!("no response within {:?}", self.timeout),
            },
        }))
    }

    /// What to do after a node's answer.
    async fn after(&self, node: &Arc<Node>, connection: &Connection, status: &Status) -> Next {
        let max_reply_bytes = self.nodes.options.max_reply_bytes;
        let (next, connection_lost) =
            next_step(&node.address, self.effect, status, max_reply_bytes);
        if connection_lost {
            node.failed();
            node.forget(connection).await;
        }
        next
    }

    /// Decides how to continue after a failed attempt.
    fn learn(&mut self, node: &Arc<Node>, next: Next) -> Result<(), ClientError> {
        match next {
            Next::Leader(address) => {
                node.answered();
                self.nodes.clear_leader(node);
                self.silent.remove(&node.address);
                self.follower = Some(node.clone());
                // Ignore an invalid address.
                self.hint = address.and_then(|address| self.nodes.at(&address).ok());
                self.last = Some(self.no_leader(node));
                Ok(())
            }
            // After the transfer another node leads, and the request does not apply to it.
            Next::Pause(error) | Next::Successor(_, error) if self.effect == Effect::Handover => {
                Err(error)
            }
            Next::Successor(address, error) => {
                node.answered();
                self.nodes.clear_leader(node);
                self.hint = address.and_then(|address| self.nodes.at(&address).ok());
                self.last = Some(error);
                Ok(())
            }
            Next::Late(error) => Err(error),
            Next::Pause(error) => {
                node.answered();
                // Try the same node after the pause: the others do not lead.
                self.hint = Some(node.clone());
                self.pause_now = true;
                self.last = Some(error);
                Ok(())
            }
            Next::Elsewhere(error) => {
                if !node.is_unreachable() {
                    node.failed();
                }
                self.nodes.clear_leader(node);
                self.silent.insert(node.address.clone(), reason_of(&error));
                // The response of a running node says more about the cluster than the failure of
                // one that is down.
                if !matches!(self.last, Some(ClientError::NoLeader { .. })) {
                    self.last = Some(error);
                }
                Ok(())
            }
            Next::Unknown(error) => {
                self.nodes.clear_leader(node);
                if !matches!(self.effect, Effect::Idempotent { .. }) {
                    return Err(error);
                }
                self.unknown = Some(error);
                Ok(())
            }
            Next::Tell(error) => {
                if matches!(error, ClientError::OutcomeUnknown { .. }) {
                    self.nodes.clear_leader(node);
                }
                Err(error)
            }
        }
    }

    /// Returns the node to try next: the one that was named, the last leader, then all others in
    /// turn. Nodes that failed recently come last. `None` means that it is time for a pause.
    fn next_node(&mut self) -> Option<Arc<Node>> {
        if self.pause_now {
            return None;
        }
        let everybody = self.nodes.all();
        let fresh = |node: &&Arc<Node>| !self.asked.iter().any(|asked| Arc::ptr_eq(asked, node));
        let leader = self.nodes.leader();
        // The node that was named as the leader is tried unless opening a connection to it just
        // failed.
        let named = self.hint.iter().filter(fresh).find(|node| !node.is_unreachable());
        let promising = leader.iter().chain(&everybody);
        let next = named
            .or_else(|| promising.filter(fresh).find(|node| !node.is_doubtful()))
            .or_else(|| {
                let nobody_else = self.asked.iter().all(|node| node.is_doubtful());
                everybody.iter().filter(fresh).find(|_| nobody_else)
            });
        next.cloned()
    }

    /// Pauses after all nodes were tried, or until another call finds the leader.
    async fn rest(
        &mut self,
        leader_news: &mut tokio::sync::watch::Receiver<Option<Arc<Node>>>,
    ) -> Result<(), ClientError> {
        let wake = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        if wake + LAST_CALL >= self.deadline {
            return Err(self.give_up());
        }
        let wait = async {
            if let Some(follower) = self.follower.take().filter(|_| self.nodes.is_time_to_refresh())
            {
                timeout_at(wake, refresh(self.nodes, &follower)).await.ok();
            }
            tokio::time::sleep_until(wake).await;
        };
        tokio::select! {
            () = wait => {}
            // The sender lives as long as the client.
            _ = leader_news.changed() => self.hint = None,
        }
        self.asked.clear();
        self.pause_now = false;
        Ok(())
    }

    fn give_up(&mut self) -> ClientError {
        let waited = self.started.elapsed();
        match self.last.take() {
            Some(ClientError::NoLeader { endpoint, .. }) => {
                ClientError::NoLeader { waited, endpoint, silent: self.silent() }
            }
            // One unreachable node may be a wrong address; all of several are no cluster.
            Some(ClientError::Unreachable { endpoint, .. }) if self.silent.len() > 1 => {
                ClientError::NoLeader { waited, endpoint, silent: self.silent() }
            }
            Some(error) => error,
            None => ClientError::DeadlineElapsed { waited, endpoint: "any node".to_owned() },
        }
    }

    fn no_leader(&self, node: &Arc<Node>) -> ClientError {
        ClientError::NoLeader {
            waited: self.started.elapsed(),
            endpoint: node.address.to_string(),
            silent: self.silent(),
        }
    }

    /// The addresses at which no member answers, each with the reason.
    fn silent(&self) -> Vec<String> {
        let known = self.nodes.all();
        let reason = |node: &Arc<Node>| {
            let reason = self.nodes.removed(node);
            reason.or_else(|| self.silent.get(&node.address).cloned())
        };
        let words = |node: &Arc<Node>| Some(format!("{} ({})", node.address, reason(node)?));
        known.iter().filter_map(words).collect()
    }

    fn time_is_up(&self, node: &Arc<Node>) -> ClientError {
        ClientError::DeadlineElapsed {
            waited: self.started.elapsed(),
            endpoint: node.address.to_string(),
        }
    }
}

/// Learns the members from a node that answers.
async fn refresh(nodes: &Nodes, node: &Arc<Node>) {
    let Ok(mut connection) = node.connection().await else { return };
    if let Ok(reply) = connection.calls.members(MembersRequest {}).await {
        // A node of another cluster is refused when it is called.
        nodes.heard(&node.address, &reply.into_inner().into()).ok();
    }
}

/// Why a node does not answer.
fn reason_of(error: &ClientError) -> String {
    match error {
        ClientError::Unreachable { reason, .. } | ClientError::Stopped { reason, .. } => {
            reason.clone()
        }
        error => error.to_string(),
    }
}

/// Returns between half and all of a pause, so that callers that failed together do not retry
/// together.
fn jittered(pause: Duration) -> Duration {
    // The standard library seeds each hasher with random keys.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let permille = u32::try_from(random % 501).unwrap_or(0) + 500;
    pause * permille / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After a lost connection the named node may lead again; if no connection can be opened, it is
    /// not tried.
    #[test]
    fn whoever_is_named_as_the_leader_is_asked_unless_no_connection_comes_about() {
        let nodes = Nodes::new(["n1:1", "n2:1"], crate::ClientOptions::default()).unwrap();
        let mut route = Route::new(&nodes, Effect::Read, Duration::from_secs(1));
        let named = nodes.at("n2:1").unwrap();
        named.failed();
        assert_eq!(route.next_node().unwrap().address, nodes.told()[0].address);
        route.hint = Some(named.clone());
        assert!(Arc::ptr_eq(&route.next_node().unwrap(), &named));
        named.unreachable();
        assert_eq!(route.next_node().unwrap().address, nodes.told()[0].address);
    }

    #[test]
    fn pauses_differ_and_stay_in_bounds() {
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(PAUSE_MAX)).collect();
        assert!(pauses.iter().all(|pause| (PAUSE_MAX / 2..=PAUSE_MAX).contains(pause)));
        assert!(pauses.iter().any(|pause| *pause != pauses[0]));
    }
}
