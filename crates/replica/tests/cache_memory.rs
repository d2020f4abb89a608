//! The memory that the cache of recent entries holds, counted by the allocator.
#![allow(clippy::unwrap_used)]

mod leader;

use std::alloc::System;
use std::sync::Arc;

use bytes::Bytes;
use cap::Cap;
use d_engine_core::{EntryKind, LogId, LogIndex, Term};
use d_engine_replica::{PeerMessage, ReplicaConfig};
use d_engine_storage::LogEntry;
use leader::Node;

#[global_allocator]
static ALLOCATOR: Cap<System> = Cap::new(System, usize::MAX);

/// What `malloc` adds to each allocation; the counting allocator does not see it.
const MALLOC_OVERHEAD: usize = 16;
/// Entries in one append.
const BATCH: u64 = 64;

/// A follower with a cache of `cache_bytes_max` that has received `batches` appends with payloads
/// of `payload` bytes. Returns it with the bytes that are allocated for it.
fn follower(cache_bytes_max: usize, payload: usize, batches: u64) -> (Node, usize) {
    let before = ALLOCATOR.allocated();
    let config = ReplicaConfig { cache_bytes_max, ..ReplicaConfig::default() };
    let mut node = Node::with(3, config);
    let term = Term::new(1);
    let mut prev = LogId::ZERO;
    for _ in 0..batches {
        let entry = |offset: u64| LogEntry {
            id: LogId::new(term, prev.index.plus(offset)),
            kind: EntryKind::Command,
            time_ms: 0,
            session: None,
            version: 0,
            // Decoding copies each payload out of its frame.
            data: Bytes::copy_from_slice(&vec![7; payload]),
        };
        let entries: Arc<[LogEntry]> = (1..=BATCH).map(entry).collect();
        let last = LogId::new(term, prev.index.plus(BATCH));
        node.receive(2, PeerMessage::Append { term, prev, commit: LogIndex::ZERO, entries });
        prev = last;
    }
    let allocated = ALLOCATOR.allocated() - before;
    (node, allocated)
}

/// Both followers have the same log; the difference of their memory is that of their caches.
#[test]
fn a_follower_holds_little_more_memory_than_its_cache_may_have() {
    const SMALL: usize = 1 << 20;
    const LARGE: usize = 9 << 20;
    for payload in [1, 8, 100, 1_000, 60_000] {
        let per_entry = payload + 200;
        let batches = (2 * LARGE / per_entry) as u64 / BATCH + 1;
        let (small, small_bytes) = follower(SMALL, payload, batches);
        let (large, large_bytes) = follower(LARGE, payload, batches);
        let (small, large) = (small.replica.gauges(), large.replica.gauges());
        let counted = large.cache_bytes - small.cache_bytes;
        assert!(counted > (LARGE - SMALL) / 2, "the larger cache is not filled: {counted}");
        // Two allocations for an entry: its payload, and the count of the payload's owners.
        let entries = counted / (payload + 2 * size_of::<LogEntry>() + 64);
        let held = large_bytes - small_bytes + entries * 2 * MALLOC_OVERHEAD;
        println!("payloads of {payload} bytes: {held} bytes are held for {counted} counted");
        assert!(
            held * 2 <= (LARGE - SMALL) * 3,
            "payloads of {payload} bytes: {held} bytes for a cache of {} bytes more",
            LARGE - SMALL
        );
    }
}
