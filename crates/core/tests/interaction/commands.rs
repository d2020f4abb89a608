//! The commands of the scenario files, a handler each.

use d_engine_core::Input;

use crate::support::n;
use crate::support::network::{Link, Network};

/// A running scenario; there is no cluster before the first command.
#[derive(Default)]
pub(crate) struct Scenario {
    network: Option<Network>,
}

type Handler = fn(&mut Network, &[&str]) -> Option<()>;

/// Name, arguments, meaning, handler. Nodes are numbers from 1; a link is `1->2`, `1->*`, `*->2`.
const COMMANDS: &[(&str, &str, Handler)] = &[
    ("start", "NODE TERM [TERM OF EACH ENTRY ...]: the node starts with this on its disk", start),
    ("disk", "NODE slow | fast: whether its writes complete only by `persist`", disk),
    ("timeout", "NODE: time passes until its deadline", timeout),
    ("rounds", "NODE COUNT: so often its deadline comes and all messages are delivered", rounds),
    ("wait", "MS: time passes, and nobody is told", wait),
    ("deliver", "[LINK]: what is on its way; without a link until nothing is", deliver),
    ("drop", "LINK: what is on its way is lost", drop_letters),
    ("set-aside", "LINK: what is on its way waits for `put-back`", set_aside),
    ("put-back", "what was set aside is on its way again", put_back),
    ("cut", "NODE NODE: what is delivered between them is lost", cut),
    ("heal", "no link is cut any more", heal),
    ("persist", "NODE [COUNT]: its first writes, or all, are complete", persist),
    ("propose", "NODE COUNT: commands of ten bytes", propose),
    ("read", "NODE ID: a linearizable read", read),
    ("peer-lost", "NODE PEER: its connection to the peer broke", peer_lost),
    ("crash", "NODE: it stops; incomplete writes are lost", crash),
    ("restart", "NODE: it starts from its disk", restart),
    ("status", "[NODE]: one line per node", status),
    ("quietly", "COMMAND: without writing down what happens", quietly),
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
        let network = self.network.as_mut().ok_or_else(|| format!("{line:?} before `cluster COUNT`"))?;
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
    let known: Vec<String> = COMMANDS.iter().map(|(name, what, _)| format!("  {name} {what}")).collect();
    format!(
        "{line:?} is no command; there are:\n  cluster COUNT: nodes without history\n{}",
        known.join("\n")
    )
}

fn number(word: &str) -> Option<u64> {
    word.parse().ok()
}

/// The node named, if it is part of the cluster.
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
    network.step(node(network, named)?, "read", Input::Read { ids: vec![number(read)?], lease: false });
    Some(())
}

fn peer_lost(network: &mut Network, words: &[&str]) -> Option<()> {
    let [named, peer] = words else { return None };
    let peer = node(network, peer)?;
    network.step(node(network, named)?, "peer lost", Input::PeerLost(n(peer)));
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
