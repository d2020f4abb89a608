//! A state of the cluster: nodes, messages in flight, and what has happened so far.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use d_engine_core::{EntryMeta, Message};

use crate::station::{Letter, Station};

/// An entry that a node has known to be committed.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Committed {
    pub(crate) term: u64,
    /// The term of the node that knew it first.
    pub(crate) by: u64,
}

/// What has happened, as far as a rule or a bound depends on it.
#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Past {
    pub(crate) committed: Vec<Committed>,
    /// Who has led which term.
    pub(crate) leaders: Vec<(u64, u64)>,
    pub(crate) joints: u8,
    pub(crate) restarts: u8,
    pub(crate) commands: u8,
}

#[derive(Clone)]
pub(crate) struct State {
    /// Node 1 first.
    pub(crate) nodes: Vec<Arc<Station>>,
    pub(crate) in_flight: Vec<Sent>,
    pub(crate) past: Arc<Past>,
    /// The rule that the last step broke.
    pub(crate) broken: Option<String>,
}

/// A message in flight and the number that stands for it.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) print: u64,
    pub(crate) letter: Arc<Letter>,
}

impl Sent {
    pub(crate) fn new(letter: Letter) -> Self {
        let mut hasher = DefaultHasher::new();
        format!("{letter:?}").hash(&mut hasher);
        Self { print: hasher.finish(), letter: Arc::new(letter) }
    }

    /// Whether it is an append or the reply to one.
    pub(crate) fn is_of_log(&self) -> bool {
        matches!(self.letter.message, Message::Append { .. } | Message::AppendReply { .. })
    }
}

impl State {
    pub(crate) fn node(&self, node: u64) -> &Arc<Station> {
        let place = usize::try_from(node - 1).expect("nodes are counted from 1");
        &self.nodes[place]
    }

    /// The same with another state of one node.
    pub(crate) fn with(&self, station: Arc<Station>) -> Self {
        let mut next = self.clone();
        let place = usize::try_from(station.node - 1).expect("nodes are counted from 1");
        next.nodes[place] = station;
        next
    }

    /// The same with one more message in flight.
    pub(crate) fn sending(mut self, sent: Sent) -> Self {
        if let Err(place) = self.in_flight.binary_search_by_key(&sent.print, |it| it.print) {
            self.in_flight.insert(place, sent);
        }
        self
    }

    pub(crate) fn is_quiet_between(&self, one: u64, other: u64) -> bool {
        self.in_flight.iter().all(|sent| {
            let ends = (sent.letter.from, sent.letter.to);
            ends != (one, other) && ends != (other, one)
        })
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for node in &self.nodes {
            node.print.hash(hasher);
        }
        for sent in &self.in_flight {
            sent.print.hash(hasher);
        }
        if self.nodes.iter().any(|node| node.has_messages) {
            self.past.hash(hasher);
        } else {
            // Who led which term decides nothing once all later leaders are of later terms.
            let Past { committed, leaders: _, joints, restarts, commands } = &*self.past;
            (joints, restarts, commands).hash(hasher);
            committed.iter().for_each(|entry| entry.term.hash(hasher));
        }
        self.broken.hash(hasher);
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        let prints = |state: &Self| -> Vec<u64> {
            let nodes = state.nodes.iter().map(|node| node.print);
            nodes.chain(state.in_flight.iter().map(|sent| sent.print)).collect()
        };
        prints(self) == prints(other) && self.broken == other.broken
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let (core, log) = (&node.core, node.core.log());
            write!(f, "{}: {:?} t{} vote {:?} ", node.node, core.role(), core.term(), core.vote())?;
            write!(f, "commit {} log [", log.committed)?;
            for entry in &node.log {
                write!(f, " {}", shown(entry))?;
            }
            writeln!(f, " ]")?;
        }
        for sent in &self.in_flight {
            let Letter { from, to, message } = &*sent.letter;
            writeln!(f, "{from}->{to} {message:?}")?;
        }
        writeln!(f, "{:?} {:?}", self.past, self.broken)
    }
}

fn shown(entry: &EntryMeta) -> String {
    let configuration = entry.configuration.as_deref();
    let members = configuration.map(|it| format!("({})", crate::support::network::shown(it)));
    format!("t{}{}", entry.term, members.unwrap_or_default())
}
