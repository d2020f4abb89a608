//! Free ports on loopback for nodes that may be stopped and started again.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Mutex;

use d_engine_locks::Unpoisoned;

/// The lowest port that is tried; well-known services use lower ones.
const LOWEST: u16 = 10_240;
/// Start of the system's ephemeral port range if the system does not report it.
const EPHEMERAL_START: u16 = 32_768;

/// Where the next call in this process begins to look; `None` before the first call.
static NEXT: Mutex<Option<u16>> = Mutex::new(None);

/// Returns listeners on `count` free ports of 127.0.0.1. Drop them when the nodes are about to bind
/// the ports.
///
/// The ports are below the system's ephemeral range. Otherwise an outgoing connection could take
/// the port of a node that is down, and the node could not restart. Later calls in this process
/// return other ports, so that several clusters can be started at once; other processes begin to
/// look at another port, so that two of them rarely choose the same.
///
/// # Errors
/// [`ErrorKind::AddrInUse`] if there are fewer free ports; otherwise the operating system's error,
/// for example that this process has too many open files.
pub fn free_loopback_ports(count: usize) -> io::Result<Vec<TcpListener>> {
    let end = ephemeral_start().max(LOWEST + 1_000);
    let span = end - LOWEST;
    let too_few = || {
        let message =
            format!("there are no {count} free ports between {LOWEST} and {end} on 127.0.0.1");
        io::Error::new(ErrorKind::AddrInUse, message)
    };
    if count > usize::from(span) {
        return Err(too_few());
    }
    // Held until the ports are chosen, so that no other call looks at the same ones.
    let mut next = NEXT.lock().unpoisoned();
    let start = match *next {
        Some(start) => start,
        None => random()? % span,
    };
    let candidates = (0..span)
        .map(|step| LOWEST + ((u32::from(start) + u32::from(step)) % u32::from(span)) as u16);
    let is_taken = |kind| matches!(kind, ErrorKind::AddrInUse | ErrorKind::PermissionDenied);
    let mut held: Vec<(u16, TcpListener)> = Vec::with_capacity(count);
    for port in candidates {
        if held.len() == count {
            break;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => held.push((port, listener)),
            Err(error) if is_taken(error.kind()) => {}
            // For example, too many open files: another port does not help.
            Err(error) => return Err(error),
        }
    }
    if held.len() < count {
        return Err(too_few());
    }
    *next = Some(held.last().map_or(start, |(port, _)| (port - LOWEST + 1) % span));
    Ok(held.into_iter().map(|(_, listener)| listener).collect())
}

fn random() -> io::Result<u16> {
    let mut random = [0; 2];
    getrandom::fill(&mut random).map_err(|error| {
        io::Error::other(format!("the system's random number source failed: {error}"))
    })?;
    Ok(u16::from_le_bytes(random))
}

/// Returns the first port of the system's ephemeral range.
fn ephemeral_start() -> u16 {
    let range =
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|start| start.parse().ok()).unwrap_or(EPHEMERAL_START)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ports_are_free_below_the_ephemeral_range_and_not_chosen_twice() {
        let end = ephemeral_start().max(LOWEST + 1_000);
        let mut chosen = BTreeSet::new();
        // So many that calls which begin at random would meet. The listeners of a call are gone
        // when the next one looks.
        for _ in 0..150 {
            for listener in free_loopback_ports(5).unwrap() {
                let port = listener.local_addr().unwrap().port();
                assert!((LOWEST..end).contains(&port), "{port}");
                assert!(chosen.insert(port), "{port} was chosen twice");
            }
        }
    }

    #[test]
    fn more_ports_than_there_are_is_an_error_and_leaves_them_free() {
        let error = free_loopback_ports(60_000).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AddrInUse);
        assert!(error.to_string().contains("no 60000 free ports"), "{error}");
        assert_eq!(free_loopback_ports(1).unwrap().len(), 1);
    }
}
