//! The machines' network: a namespace for each machine, joined by a bridge in the namespace of this
//! program. A machine is a place for one node: its namespace, its address and its disk.
//!
//! A direction is cut by a neighbour entry with an unused hardware address: the packets from one
//! machine to another are lost on the way, and neither end is informed, as on a real cable.

use crate::shell::{Outcome, run};

/// The number of nodes that found the cluster, each on the machine that has its id as a number.
pub(crate) const FOUNDERS: u64 = 3;
/// The port for clients and the port for peers on which a node listens at first.
pub(crate) const PORTS: (u64, u64) = (7001, 7101);

/// Returns an address of a machine.
pub(crate) fn address(machine: u64, port: u64) -> String {
    format!("10.77.0.{machine}:{port}")
}

/// Returns the addresses at which the founders first listen for clients.
pub(crate) fn founders() -> Vec<String> {
    (1..=FOUNDERS).map(|machine| address(machine, PORTS.0)).collect()
}

/// Returns the argument of `nsenter` that enters the namespace of a machine.
pub(crate) fn enter(machine: u64) -> String {
    format!("--net=/run/netns/n{machine}")
}

fn hardware(machine: u64) -> String {
    format!("02:00:00:00:00:0{machine}")
}

/// A hardware address that no machine has.
const NOWHERE: &str = "02:de:ad:00:00:00";

/// Creates the network of so many machines. It disappears with the namespaces of this program.
pub(crate) fn make(machines: u64) -> Outcome<()> {
    std::fs::create_dir_all("/run/netns").map_err(|error| format!("/run/netns: {error}"))?;
    // Keep the names of the namespaces private to this run.
    run("mount -t tmpfs none /run/netns")?;
    run("ip link set lo up")?;
    run("ip link add bridge0 type bridge")?;
    run("ip link set bridge0 up")?;
    run("ip addr add 10.77.0.254/24 dev bridge0")?;
    for machine in 1..=machines {
        run(&format!("ip netns add n{machine}"))?;
        let address = hardware(machine);
        run(&format!(
            "ip link add port{machine} type veth peer name eth0 netns n{machine} address {address}"
        ))?;
        run(&format!("ip link set port{machine} master bridge0 up"))?;
        run(&format!("ip -n n{machine} addr add 10.77.0.{machine}/24 dev eth0"))?;
        run(&format!("ip -n n{machine} link set eth0 up"))?;
        run(&format!("ip -n n{machine} link set lo up"))?;
    }
    for (from, to) in directions(&(1..=machines).collect::<Vec<_>>()) {
        connect(from, to)?;
    }
    Ok(())
}

/// Returns all directions between two of these machines.
pub(crate) fn directions(machines: &[u64]) -> Vec<(u64, u64)> {
    machines
        .iter()
        .flat_map(|from| machines.iter().map(move |to| (*from, *to)))
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

/// Limits the outgoing traffic of `machine` to `kbit` kbit/s.
pub(crate) fn slow(machine: u64, kbit: u64) -> Outcome<()> {
    // The queue holds half a second of traffic; packets beyond that are dropped, as by a router.
    run(&format!(
        "tc -n n{machine} qdisc replace dev eth0 root tbf rate {kbit}kbit burst 16kb latency 500ms"
    ))
    .map(drop)
}

/// Removes the limit.
pub(crate) fn fast(machine: u64) -> Outcome<()> {
    run(&format!("tc -n n{machine} qdisc del dev eth0 root")).map(drop)
}
