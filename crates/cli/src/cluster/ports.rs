//! Loopback ports for nodes that will be killed and come back.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::exit::Failure;

/// The lowest port that is tried; well-known services lie below.
const LOWEST: u16 = 10_240;
/// Where the system's own choice begins if it does not say so.
const EPHEMERAL_START: u16 = 32_768;

/// Node `n` serves clients on this port plus `n`.
const CLIENTS_FROM: u16 = 7_000;
/// Node `n` talks to other nodes on this port plus `n`.
const PEERS_FROM: u16 = 7_100;

/// Where nodes listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ports {
    /// 7001 and so on for clients, 7101 and so on for other nodes: where the command line looks by itself.
    Fixed,
    /// Whatever is free.
    Ephemeral,
}

/// Two listeners for each of `count` nodes, for other nodes and for clients. Hold them until the ports are taken
/// over.
pub(super) fn reserve(count: u64, ports: Ports) -> Result<Vec<(TcpListener, TcpListener)>, Failure> {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    match ports {
        Ports::Fixed => {
            (1..=count).map(|id| Ok((fixed(PEERS_FROM + id)?, fixed(CLIENTS_FROM + id)?))).collect()
        }
        Ports::Ephemeral => {
            let mut held = free(2 * usize::from(count))?.into_iter();
            Ok(std::iter::from_fn(|| Some((held.next()?, held.next()?))).collect())
        }
    }
}

fn fixed(port: u16) -> Result<TcpListener, Failure> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpListener::bind(address).map_err(|error| {
        Failure::failed(format!("{address} cannot be used: {error}; stop what uses it, or take --ephemeral"))
    })
}

/// Listeners on `count` free ports.
///
/// The ports lie below those that the system gives to outgoing connections: otherwise a connection could
/// get the port of a node that is down just now, and the node could not come back.
pub(super) fn free(count: usize) -> Result<Vec<TcpListener>, Failure> {
    let end = ephemeral_start().max(LOWEST + 1_000);
    let span = end - LOWEST;
    let mut random = [0; 2];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::failed(format!("the system gives no random numbers: {error}")))?;
    // Somewhere at random, so that two demonstrations at once rarely meet.
    let start = u16::from_le_bytes(random) % span;
    let candidates = (0..span).map(|step| LOWEST + (u32::from(start) + u32::from(step)) as u16 % span);
    let held: Vec<TcpListener> = candidates
        .filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .take(count)
        .collect();
    if held.len() < count {
        return Err(Failure::failed(format!(
            "there are no {count} free ports between {LOWEST} and {end} on 127.0.0.1"
        )));
    }
    Ok(held)
}

/// The first port that the system gives to outgoing connections.
fn ephemeral_start() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|start| start.parse().ok()).unwrap_or(EPHEMERAL_START)
}
