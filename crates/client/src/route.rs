//! The way of one call from node to node, within its deadline.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::ClientError;
use crate::answer::{Effect, Next, is_out_of_time, next_step};
use crate::node::{Calls, Node};
use crate::nodes::Nodes;

/// The first pause after everybody was asked in vain.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// The longest: short beside an election, long beside a round trip.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// A repetition with less time than this is not sent: it could only become an unknown outcome.
const LAST_CALL: Duration = Duration::from_millis(100);

/// By so much a node's clock may end a call earlier than this client's.
const ROUNDING: Duration = Duration::from_millis(2);

/// One call on its way.
pub(crate) struct Route<'a> {
    nodes: &'a Nodes,
    effect: Effect,
    timeout: Duration,
    started: Instant,
    deadline: Instant,
    /// Asked since the last pause.
    asked: Vec<Arc<Node>>,
    /// Where to go next, if somebody said so.
    hint: Option<Arc<Node>>,
    pause: Duration,
    /// Whether to pause before anybody else is asked.
    pause_now: bool,
    /// What is told if the time is up.
    last: Option<ClientError>,
    /// Set once a command may have been taken: whatever happens later, the outcome is not certain any more.
    unknown: Option<ClientError>,
}

impl<'a> Route<'a> {
    pub(crate) fn new(nodes: &'a Nodes, effect: Effect, timeout: Duration) -> Self {
        let started = Instant::now();
        // A timeout beyond what the clock can express is none that anybody sees elapse.
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
            unknown: None,
        }
    }

    /// Asks node after node until one answers, an error is final, or the deadline has passed. `call` is
    /// given the time that is left, to be carried to the node.
    pub(crate) async fn run<T, F>(mut self, call: impl Fn(Calls, Duration) -> F) -> Result<T, ClientError>
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
        // Subscribed before anybody is asked, so that no news is missed.
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
                    // A read that sees everything may be served by any node; a command only by the leader.
                    if self.effect != Effect::Read {
                        self.nodes.is_leader(&node);
                    }
                    return Ok(answer);
                }
                Err(next) => self.learn(&node, next)?,
            }
        }
    }

    /// Asks this node and no other, once.
    pub(crate) async fn run_at<T, F>(
        self,
        node: &Arc<Node>,
        call: impl Fn(Calls, Duration) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, Status>>,
    {
        self.ask(node, &call).await.map_err(|next| match next {
            Next::Pause(error)
            | Next::Successor(_, error)
            | Next::Elsewhere(error)
            | Next::Unknown(error)
            | Next::Late(error)
            | Next::Tell(error) => error,
            Next::Leader(_) => self.no_leader(node),
        })
    }

    /// Asks one node once.
    async fn ask<T, F>(&self, node: &Arc<Node>, call: &impl Fn(Calls, Duration) -> F) -> Result<T, Next>
    where
        F: Future<Output = Result<T, Status>>,
    {
        // Up to here nothing is sent, so the time being up is no unknown outcome.
        let connection = match timeout_at(self.deadline, node.connection()).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                node.unreachable();
                return Err(Next::Elsewhere(error));
            }
            Err(_) => return Err(Next::Late(self.time_is_up(node))),
        };
        let left = self.deadline.saturating_duration_since(Instant::now());
        match timeout_at(self.deadline, call(connection.calls.clone(), left)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) if !is_out_of_time(&status, self.deadline - ROUNDING <= Instant::now()) => {
                let max_reply_bytes = self.nodes.options.max_reply_bytes;
                let (next, connection_lost) = next_step(&node.address, self.effect, &status, max_reply_bytes);
                if connection_lost {
                    node.failed();
                    node.forget(&connection).await;
                }
                Err(next)
            }
            // The time that is left is watched twice, here and by the channel that carries it. That this caller had so
            // little time says nothing about the node: a dead connection shows by its pings.
            Err(_) | Ok(Err(_)) => Err(Next::Late(match self.effect {
                Effect::Read => self.time_is_up(node),
                _ => ClientError::OutcomeUnknown {
                    endpoint: node.address.to_string(),
                    reason: format!("no answer within {:?}", self.timeout),
                },
            })),
        }
    }

    /// Draws the conclusions from what one node said.
    fn learn(&mut self, node: &Arc<Node>, next: Next) -> Result<(), ClientError> {
        match next {
            Next::Leader(address) => {
                node.answered();
                self.nodes.is_no_leader(node);
                // An address that cannot be used is as good as none.
                self.hint = address.and_then(|address| self.nodes.at(&address).ok());
                self.last = Some(self.no_leader(node));
                Ok(())
            }
            // Afterwards somebody else leads, whom this order does not concern.
            Next::Pause(error) | Next::Successor(_, error) if self.effect == Effect::Handover => Err(error),
            Next::Successor(address, error) => {
                node.answered();
                self.nodes.is_no_leader(node);
                self.hint = address.and_then(|address| self.nodes.at(&address).ok());
                self.last = Some(error);
                Ok(())
            }
            Next::Late(error) => Err(error),
            Next::Pause(error) => {
                node.answered();
                // The same node after the pause: others do not lead.
                self.hint = Some(node.clone());
                self.pause_now = true;
                self.last = Some(error);
                Ok(())
            }
            Next::Elsewhere(error) => {
                if !node.is_unreachable() {
                    node.failed();
                }
                self.nodes.is_no_leader(node);
                // Another node's answer says more about the cluster than one that is down.
                if !matches!(self.last, Some(ClientError::NoLeader { .. })) {
                    self.last = Some(error);
                }
                Ok(())
            }
            Next::Unknown(error) => {
                self.nodes.is_no_leader(node);
                if !matches!(self.effect, Effect::Idempotent { .. }) {
                    return Err(error);
                }
                self.unknown = Some(error);
                Ok(())
            }
            Next::Tell(error) => {
                if matches!(error, ClientError::OutcomeUnknown { .. }) {
                    self.nodes.is_no_leader(node);
                }
                Err(error)
            }
        }
    }

    /// Whom to ask next: who was named, who led last, then everybody in turn; somebody who just failed
    /// only when there is nobody else. `None`: it is time for a pause.
    fn next_node(&mut self) -> Option<Arc<Node>> {
        if self.pause_now {
            return None;
        }
        let everybody = self.nodes.all();
        let fresh = |node: &&Arc<Node>| !self.asked.iter().any(|asked| Arc::ptr_eq(asked, node));
        let leader = self.nodes.leader();
        // Whom a node names as the leader is asked, unless no connection came about just now.
        let named = self.hint.iter().filter(fresh).find(|node| !node.is_unreachable());
        let promising = leader.iter().chain(&everybody);
        let next = named.or_else(|| promising.filter(fresh).find(|node| !node.is_doubtful())).or_else(|| {
            let nobody_else = self.asked.iter().all(|node| node.is_doubtful());
            everybody.iter().filter(fresh).find(|_| nobody_else)
        });
        next.cloned()
    }

    /// Waits a little after everybody was asked, or until another call finds the leader.
    async fn rest(
        &mut self,
        leader_news: &mut tokio::sync::watch::Receiver<Option<Arc<Node>>>,
    ) -> Result<(), ClientError> {
        let wake = Instant::now() + jittered(self.pause);
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        if wake + LAST_CALL >= self.deadline {
            return Err(self.give_up());
        }
        tokio::select! {
            () = tokio::time::sleep_until(wake) => {}
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
            Some(ClientError::NoLeader { endpoint, .. }) => ClientError::NoLeader { waited, endpoint },
            Some(error) => error,
            None => ClientError::DeadlineElapsed { waited, endpoint: "nobody".to_owned() },
        }
    }

    fn no_leader(&self, node: &Arc<Node>) -> ClientError {
        ClientError::NoLeader { waited: self.started.elapsed(), endpoint: node.address.to_string() }
    }

    fn time_is_up(&self, node: &Arc<Node>) -> ClientError {
        ClientError::DeadlineElapsed { waited: self.started.elapsed(), endpoint: node.address.to_string() }
    }
}

/// Half to all of a pause, so that callers who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // The standard library seeds every hasher's keys at random.
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let permille = u32::try_from(random % 501).unwrap_or(0) + 500;
    pause * permille / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It may lead again: a lost connection is no reason to look elsewhere, an address that takes none is.
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
