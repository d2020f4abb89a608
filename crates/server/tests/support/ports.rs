//! Addresses for nodes that a test starts, stops and starts again.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Systems take the ports of outgoing connections from above (Linux from 32,768 on): no connection of a test that runs
/// at the same time can take one of these while a node is down.
const FIRST: u32 = 10_000;
const PORTS: u32 = 20_000;

/// An address of this host where nobody listens; another one at every call.
pub(crate) fn free_address() -> String {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        // Processes beside this one, with numbers beside its own, begin elsewhere.
        let nth = process::id().wrapping_mul(32).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", FIRST + nth % PORTS);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
    panic!("all {PORTS} ports from {FIRST} on are taken");
}
