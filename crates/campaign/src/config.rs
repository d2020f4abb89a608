//! The configuration file of a node.

use std::fmt::Write as _;
use std::path::Path;

use crate::net::{FOUNDERS, PORTS, address};

/// The id of the cluster.
const CLUSTER: &str = "00112233445566778899aabbccddeeff";

/// How a node becomes a member.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// It founds the cluster with the others, under its machine's number.
    Founds,
    /// It joins the cluster.
    Joins(Join),
}

/// What the configuration of a node that joins has.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Join {
    /// The addresses for peers of some members.
    pub(crate) seeds: Vec<String>,
    /// The id that it wants; `None` lets the leader give it one.
    pub(crate) id: Option<u64>,
    pub(crate) is_learner: bool,
    /// The id of the voter in whose place it votes.
    pub(crate) replaces: Option<u64>,
    /// It listens on a wildcard and advertises its addresses.
    pub(crate) is_behind_wildcard: bool,
}

/// The ports on which a node listens, for clients and for peers.
pub(crate) type Ports = (u64, u64);

/// Returns the text of a node's configuration.
pub(crate) fn text(machine: u64, ports: Ports, origin: &Origin, data: &Path) -> String {
    let data = data.display();
    let mut text = format!("data_dir = \"{data}\"\n");
    // A node that is announced need not name the cluster.
    if !matches!(origin, Origin::Joins(join) if join.is_learner) {
        text.push_str(&format!("cluster_id = \"{CLUSTER}\"\n"));
    }
    match origin {
        Origin::Founds => text.push_str(&format!("node_id = {machine}\n")),
        Origin::Joins(join) => text.push_str(&joining(machine, ports, join)),
    }
    text.push_str(
        "[limits]\nmax_command_bytes = 524288\nsegment_bytes = 2097152\n\
         [snapshots]\nafter_log_bytes = 4194304\nmax_log_bytes = 16777216\ntail_entries = 200\n\
         tail_bytes = 1048576\nreserve_bytes = 2097152\n",
    );
    if *origin == Origin::Founds {
        for id in 1..=FOUNDERS {
            let (client, peer) = (address(id, PORTS.0), address(id, PORTS.1));
            text.push_str(&format!(
                "[[members]]\nid = {id}\npeer_addr = \"{peer}\"\nclient_addr = \"{client}\"\n"
            ));
        }
    }
    text
}

fn joining(machine: u64, ports: Ports, join: &Join) -> String {
    let (client, peer) = (address(machine, ports.0), address(machine, ports.1));
    let mut text = format!("join = {:?}\n", join.seeds);
    let mut set = |field: &str, value: &dyn std::fmt::Display| {
        // Writing to a string does not fail.
        writeln!(text, "{field} = {value}").unwrap_or_default();
    };
    if join.is_behind_wildcard {
        set("peer_listen", &format_args!("\"0.0.0.0:{}\"", ports.1));
        set("client_listen", &format_args!("\"0.0.0.0:{}\"", ports.0));
        set("advertise_peer", &format_args!("{peer:?}"));
        set("advertise_client", &format_args!("{client:?}"));
    } else {
        set("peer_listen", &format_args!("{peer:?}"));
        set("client_listen", &format_args!("{client:?}"));
    }
    if join.is_learner {
        set("join_as", &"\"learner\"");
    }
    if let Some(id) = join.id {
        set("node_id", &id);
    }
    if let Some(id) = join.replaces {
        set("replaces", &id);
    }
    text
}
