//! Loopback ports for nodes that may be killed and restarted.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use d_engine_server::free_loopback_ports;

use crate::exit::Failure;

/// Node `n` serves clients on this port plus `n`.
const CLIENTS_FROM: u16 = 7_000;
/// Node `n` talks to other nodes on this port plus `n`.
const PEERS_FROM: u16 = 7_100;

/// On which ports nodes listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ports {
    /// 7001 and up for clients, 7101 and up between nodes; the command line uses the former by
    /// default.
    Fixed,
    /// Any free ports.
    Ephemeral,
}

/// Reserves two listeners for each of `count` nodes, for other nodes and for clients. Hold them
/// until the nodes are about to bind the ports.
pub(super) fn reserve(
    count: u64,
    ports: Ports,
) -> Result<Vec<(TcpListener, TcpListener)>, Failure> {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    match ports {
        Ports::Fixed => {
            (1..=count).map(|id| Ok((fixed(PEERS_FROM + id)?, fixed(CLIENTS_FROM + id)?))).collect()
        }
        Ports::Ephemeral => {
            let held = free_loopback_ports(2 * usize::from(count)).map_err(Failure::failed)?;
            let mut held = held.into_iter();
            Ok(std::iter::from_fn(|| Some((held.next()?, held.next()?))).collect())
        }
    }
}

fn fixed(port: u16) -> Result<TcpListener, Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).map_err(|error| {
        Failure::failed(format!(
            "{address} cannot be used: {error}; stop the process that uses it, or use --ephemeral"
        ))
    })
}
