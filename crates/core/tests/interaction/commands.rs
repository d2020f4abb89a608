//! The commands of the scenario files, with one handler each.

use d_engine_core::{Configuration, Input, NodeId, QuorumRisk, ReadMode};

use crate::support::n;
use crate::support::network::{Link, Network};

/// A running scenario; the cluster is created by the first command.
#[derive(Default)]
pub(crate) struct Scenario {
    network: Option<Network>,
}

type Handler = fn(&mut Network, &[&str]) -> Option<()>;

/// Name, arguments, meaning, handler. Nodes are numbers from 1; a link is `1->2`, `1->*`, `*->2`.
const COMMANDS: &[(&str, &str, Handler)] = &[
    (
        "start",
        "NODE TERM [TERM OF EACH ENTRY ...]: the node starts with this state on its disk",
        start,
    ),
    ("disk", "NODE slow | fast: whether its writes complete only by `persist`", disk),
    ("timeout", "NODE: time passes until its deadline", timeout),
    ("rounds", "NODE COUNT: so often its deadline passes and all messages are delivered", rounds),
    ("wait", "MS: time passes, and no deadline is reported", wait),
    ("deliver", "[LINK]: the messages in flight; without a link, until none is left", deliver),
    ("drop", "LINK: the messages in flight are lost", drop_letters),
    ("set-aside", "LINK: the messages in flight wait for `put-back`", set_aside),
    ("put-back", "the messages set aside are in flight again", put_back),
    ("cut", "NODE NODE: messages between them are lost", cut),
    ("heal", "restores all links", heal),
    ("persist", "NODE [COUNT]: its first writes, or all, are complete", persist),
    ("propose", "NODE COUNT: commands of ten bytes", propose),
    ("read", "NODE ID: a linearizable read", read),
    ("learner", "NODE [+NODE ...] [-NODE ...]: it proposes these learners more or fewer", learner),
    (
        "member",
        "NODE [+NODE ...] [-NODE ...]: it proposes the joint configuration with these voters more \
         or fewer",
        member,
    ),
    ("force-member", "as `member`, and accepts that the quorum may be lost", force_member),
    (
        "demote",
        "NODE VOTER: it proposes the joint configuration that makes a voter a learner",
        demote,
    ),
    ("leave", "NODE: it proposes to leave the joint configuration for its new voters", leave),
    ("rollback", "NODE: it proposes to return from the joint configuration", rollback),
    ("due", "NODE: which step of the membership is due now", due),
    ("lease", "NODE: for how long it may still serve reads by its lease", lease),
    ("transfer", "NODE [NODE]: it transfers its leadership", transfer),
    ("members", "[NODE]: the configuration in force, one line per node", members),
    ("empty", "NODE: a node without a history starts; a leader may add it", empty),
    ("peer-lost", "NODE PEER: its connection to the peer is lost", peer_lost),
    ("crash", "NODE: it stops; incomplete writes are lost", crash),
    ("restart", "NODE: it starts from its disk", restart),
    ("status", "[NODE]: one line per node", status),
    ("quietly", "COMMAND: runs it without recording what happens", quietly),
];

impl Scenario {
    /// Runs one command and returns what happened, line by line.
    pub(crate) fn run(&mut self, line: &str) -> Result<Vec<String>, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["cluster", voters] = words.as_slice() {
            let voters = voters.parse().map_err(|error| format!("{line:?}: {error}"))?;
            self.network = Some(Network::new(voters));
            return Ok(Vec::new());
        }
        let network =
            self.network.as_mut().ok_or_else(|| format!("{line:?} before `cluster COUNT`"))?;
        dispatch(network, &words).ok_or_else(|| wrong(line))?;
        Ok(std::mem::take(&mut network.transcript))
    }
}

fn dispatch(network: &mut Network, words: &[&str]) -> Option<()> {
    let (name, arguments) = words.split_first()?;
    let (_, _, handler) = COMMANDS.iter().find(|(known, _, _)| known == name)?;
    handler(network, arguments)
}

fn wrong(line: &str) -> String {
    let known: Vec<String> =
        COMMANDS.iter().map(|(name, what, _)| format!("  {name} {what}")).collect();
    format!(
        "{line:?} is not a command; the commands are:\n  cluster COUNT: nodes without history\n{}",
        known.join("\n")
    )
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

/// The node with this number, if it is part of the cluster.
fn node(network: &Network, word: &str) -> Option<u64> {
    number(word).filter(|node| network.stations.contains_key(node))
}

fn link(word: &str) -> Option<Link> {
    let (from, to) = word.split_once("->")?;
    let end = |word: &str| if word == "*" { Some(None) } else { number(word).map(Some) };
    Some((end(from)?, end(to)?))
}

fn start(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, term, log @ ..] = words else { return None };
    let log: Option<Vec<u64>> = log.iter().map(|term| number(term)).collect();
    network.begin(node(network, named)?, number(term)?, &log?);
    Some(())
}

fn disk(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, speed] = words else { return None };
    let node = node(network, named)?;
    match *speed {
        "slow" => network.slow_disks.insert(node),
        "fast" => network.slow_disks.remove(&node),
        _ => return None,
    };
    Some(())
}

fn timeout(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    network.timeout(node(network, named)?);
    Some(())
}

fn rounds(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, count] = words else { return None };
    let node = node(network, named)?;
    for _ in 0..number(count)? {
        network.timeout(node);
        network.deliver_all();
    }
    Some(())
}

fn wait(network: &mut Network, words: &[&str]) -> Option<()> {
    let [millis] = words else { return None };
    network.wait(number(millis)?);
    Some(())
}

fn deliver(network: &mut Network, words: &[&str]) -> Option<()> {
    match words {
        [] => network.deliver_all(),
        [word] => network.deliver(link(word)?),
        _ => return None,
    }
    Some(())
}

fn drop_letters(network: &mut Network, words: &[&str]) -> Option<()> {
    let [word] = words else { return None };
    network.drop_letters(link(word)?);
    Some(())
}

fn set_aside(network: &mut Network, words: &[&str]) -> Option<()> {
    let [word] = words else { return None };
    network.set_aside(link(word)?);
    Some(())
}

fn put_back(network: &mut Network, _: &[&str]) -> Option<()> {
    network.put_back();
    Some(())
}

fn cut(network: &mut Network, words: &[&str]) -> Option<()> {
    let [one, other] = words else { return None };
    network.cut(node(network, one)?, node(network, other)?);
    Some(())
}

fn heal(network: &mut Network, _: &[&str]) -> Option<()> {
    network.heal();
    Some(())
}

fn persist(network: &mut Network, words: &[&str]) -> Option<()> {
    let (named, count) = match words {
        [named] => (named, usize::MAX),
        [named, count] => (named, usize::try_from(number(count)?).ok()?),
        _ => return None,
    };
    network.persist(node(network, named)?, count);
    Some(())
}

fn propose(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, count] = words else { return None };
    let sizes = vec![10; usize::try_from(number(count)?).ok()?];
    network.step(node(network, named)?, "propose", Input::Propose { sizes });
    Some(())
}

fn read(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, read] = words else { return None };
    network.step(
        node(network, named)?,
        "read",
        Input::Read { ids: vec![number(read)?], mode: ReadMode::Round },
    );
    Some(())
}

fn peer_lost(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, peer] = words else { return None };
    let peer = node(network, peer)?;
    network.step(node(network, named)?, "peer lost", Input::PeerLost(n(peer)));
    Some(())
}

/// The ids behind `+` and behind `-`.
fn edits(words: &[&str]) -> Option<(Vec<NodeId>, Vec<NodeId>)> {
    let (mut more, mut fewer) = (Vec::new(), Vec::new());
    for word in words {
        match word.split_at_checked(1)? {
            ("+", id) => more.push(n(number(id)?)),
            ("-", id) => fewer.push(n(number(id)?)),
            _ => return None,
        }
    }
    Some((more, fewer))
}

fn edited(nodes: &[NodeId], more: &[NodeId], fewer: &[NodeId]) -> Vec<NodeId> {
    nodes.iter().chain(more).filter(|node| !fewer.contains(node)).copied().collect()
}

fn propose_configuration(
    network: &mut Network,
    node: u64,
    what: &str,
    configuration: Configuration,
    risk: QuorumRisk,
) {
    let configuration = Box::new(configuration);
    network.step(node, what, Input::ProposeMembership { configuration, bytes: 10, risk });
}

fn learner(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, changes @ ..] = words else { return None };
    let (node, (more, fewer)) = (node(network, named)?, edits(changes)?);
    let now = network.core(node)?.configuration();
    let learners = edited(now.learners(), &more, &fewer);
    let next = Configuration::new(now.voters().iter().copied(), learners);
    propose_configuration(network, node, "learner", next, QuorumRisk::Refuse);
    Some(())
}

fn change_voters(network: &mut Network, words: &[&str], risk: QuorumRisk) -> Option<()> {
    let [named, changes @ ..] = words else { return None };
    let (node, (more, fewer)) = (node(network, named)?, edits(changes)?);
    let now = network.core(node)?.configuration();
    let voters = edited(now.voters(), &more, &fewer);
    let learners: Vec<NodeId> =
        now.learners().iter().filter(|node| !voters.contains(node)).copied().collect();
    let joint = now.joint_with(&Configuration::new(voters, learners));
    propose_configuration(network, node, "member", joint, risk);
    Some(())
}

fn member(network: &mut Network, words: &[&str]) -> Option<()> {
    change_voters(network, words, QuorumRisk::Refuse)
}

fn force_member(network: &mut Network, words: &[&str]) -> Option<()> {
    change_voters(network, words, QuorumRisk::Accept)
}

fn demote(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, voter] = words else { return None };
    let (node, voter) = (node(network, named)?, n(number(voter)?));
    let now = network.core(node)?.configuration();
    let voters = edited(now.voters(), &[], &[voter]);
    let learners = edited(now.learners(), &[voter], &[]);
    let joint = now.joint_with(&Configuration::new(voters, learners));
    propose_configuration(network, node, "demote", joint, QuorumRisk::Refuse);
    Some(())
}

fn leave(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    let node = node(network, named)?;
    let now = network.core(node)?.configuration();
    let next = Configuration::new(now.voters().iter().copied(), now.learners().iter().copied());
    propose_configuration(network, node, "leave", next, QuorumRisk::Refuse);
    Some(())
}

fn rollback(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    let node = node(network, named)?;
    let now = network.core(node)?.configuration();
    let joiners = now.voters().iter().filter(|node| !now.outgoing().contains(node));
    let learners: Vec<NodeId> = now.learners().iter().chain(joiners).copied().collect();
    let next = Configuration::new(now.outgoing().iter().copied(), learners);
    propose_configuration(network, node, "rollback", next, QuorumRisk::Refuse);
    Some(())
}

fn due(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    let node = node(network, named)?;
    let now = network.now();
    let due = network.core(node)?.membership_step_due(now);
    network
        .note(format!("{node}: due {}", due.map_or("nothing".to_owned(), |it| format!("{it:?}"))));
    Some(())
}

fn lease(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    let node = node(network, named)?;
    let now = network.now();
    let until = network.core(node)?.lease_until().filter(|until| now < *until);
    let text = until.map_or("no lease".to_owned(), |until| {
        format!("a lease for {} ms", until.since(now).as_millis())
    });
    network.note(format!("{node}: {text}"));
    Some(())
}

fn transfer(network: &mut Network, words: &[&str]) -> Option<()> {
    let (named, to) = match words {
        [named] => (named, None),
        [named, to] => (named, Some(n(number(to)?))),
        _ => return None,
    };
    network.step(node(network, named)?, "transfer", Input::TransferLeadership { to });
    Some(())
}

fn members(network: &mut Network, words: &[&str]) -> Option<()> {
    let nodes: Vec<u64> = match words {
        [] => network.stations.keys().copied().collect(),
        [named] => vec![node(network, named)?],
        _ => return None,
    };
    for node in nodes {
        network.note(network.configuration_of(node));
    }
    Some(())
}

fn empty(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    network.begin_empty(number(named)?);
    Some(())
}

fn crash(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    network.crash(node(network, named)?);
    Some(())
}

fn restart(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named] = words else { return None };
    network.restart(node(network, named)?);
    Some(())
}

fn status(network: &mut Network, words: &[&str]) -> Option<()> {
    let nodes: Vec<u64> = match words {
        [] => network.stations.keys().copied().collect(),
        [named] => vec![node(network, named)?],
        _ => return None,
    };
    for node in nodes {
        network.note(network.status_of(node));
    }
    Some(())
}

fn quietly(network: &mut Network, words: &[&str]) -> Option<()> {
    let before = network.transcript.len();
    dispatch(network, words)?;
    network.transcript.truncate(before);
    Some(())
}
