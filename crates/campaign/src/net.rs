//! The nodes' network: a namespace for each node, joined by a bridge in the namespace of this
//! program.
//!
//! A direction is cut by a neighbour entry with an unused hardware address: the packets from one
//! node to another are lost on the way, and neither end is informed, as on a real cable.

use crate::shell::{Outcome, run};

/// The number of nodes.
pub(crate) const NODES: u64 = 3;

/// Returns the address for a node's clients.
pub(crate) fn client_addr(node: u64) -> String {
    format!("10.77.0.{node}:7001")
}

/// Returns the address for a node's peers.
pub(crate) fn peer_addr(node: u64) -> String {
    format!("10.77.0.{node}:7101")
}

/// Returns the argument of `nsenter` that enters the namespace of `node`.
pub(crate) fn enter(node: u64) -> String {
    format!("--net=/run/netns/n{node}")
}

fn hardware(node: u64) -> String {
    format!("02:00:00:00:00:0{node}")
}

/// A hardware address that no node has.
const NOWHERE: &str = "02:de:ad:00:00:00";

/// Creates the network. It disappears with the namespaces of this program.
pub(crate) fn make() -> Outcome<()> {
    std::fs::create_dir_all("/run/netns").map_err(|error| format!("/run/netns: {error}"))?;
    // Keep the names of the namespaces private to this run.
    run("mount -t tmpfs none /run/netns")?;
    run("ip link set lo up")?;
    run("ip link add bridge0 type bridge")?;
    run("ip link set bridge0 up")?;
    run("ip addr add 10.77.0.254/24 dev bridge0")?;
    for node in 1..=NODES {
        run(&format!("ip netns add n{node}"))?;
        let address = hardware(node);
        run(&format!(
            "ip link add port{node} type veth peer name eth0 netns n{node} address {address}"
        ))?;
        run(&format!("ip link set port{node} master bridge0 up"))?;
        run(&format!("ip -n n{node} addr add 10.77.0.{node}/24 dev eth0"))?;
        run(&format!("ip -n n{node} link set eth0 up"))?;
        run(&format!("ip -n n{node} link set lo up"))?;
    }
    for (from, to) in directions() {
        connect(from, to)?;
    }
    Ok(())
}

/// Returns all directions between two nodes.
pub(crate) fn directions() -> Vec<(u64, u64)> {
    (1..=NODES)
        .flat_map(|from| (1..=NODES).map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
        .collect()
}

/// Cuts the direction from `from` to `to`: its packets are lost from now on.
pub(crate) fn cut(from: u64, to: u64) -> Outcome<()> {
    lead(from, to, NOWHERE)
}

/// Ends the cut from `from` to `to`.
pub(crate) fn connect(from: u64, to: u64) -> Outcome<()> {
    lead(from, to, &hardware(to))
}

fn lead(from: u64, to: u64, hardware: &str) -> Outcome<()> {
    run(&format!(
        "ip -n n{from} neigh replace 10.77.0.{to} lladdr {hardware} dev eth0 nud permanent"
    ))
    .map(drop)
}

/// Limits the outgoing traffic of `node` to `kbit` kbit/s.
pub(crate) fn slow(node: u64, kbit: u64) -> Outcome<()> {
    // The queue holds half a second of traffic; packets beyond that are dropped, as by a router.
    run(&format!(
        "tc -n n{node} qdisc replace dev eth0 root tbf rate {kbit}kbit burst 16kb latency 500ms"
    ))
    .map(drop)
}

/// Removes the limit.
pub(crate) fn fast(node: u64) -> Outcome<()> {
    run(&format!("tc -n n{node} qdisc del dev eth0 root")).map(drop)
}
