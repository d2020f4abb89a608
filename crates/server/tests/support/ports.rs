//! Addresses for nodes that a test starts, stops and starts again.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Systems take the ports of outgoing connections from a higher range (Linux from 32,768 on): no
/// connection of a concurrent test can take one of these while a node is down.
const FIRST: u32 = 10_000;
const PORTS: u32 = 20_000;

/// Returns an address of this host on which no process listens; each call returns another one.
pub(crate) fn free_address() -> String {
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..PORTS {
        // Concurrent processes, which have neighbouring process ids, begin elsewhere in the range.
        let nth =
            process::id().wrapping_mul(32).wrapping_add(TAKEN.fetch_add(1, Ordering::Relaxed));
        let address = format!("127.0.0.1:{}", FIRST + nth % PORTS);
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
    panic!("all {PORTS} ports from {FIRST} on are in use");
}
