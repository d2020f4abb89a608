//! Keys with a time to live: none may expire early, whatever a node's wall clock shows.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use d_engine_client::{KvClient, PutOptions, ReadConsistency};
use d_engine_sim::Prng;

use crate::clients::connect;
use crate::net::founders;
use crate::record::Record;
use crate::shell::Outcome;

/// The default `max_clock_offset_ms` of the nodes.
const CLOCK_OFFSET: Duration = Duration::from_secs(1);
/// The most keys that are watched at once.
const WATCHED_MAX: usize = 256;

/// A key that expires.
#[derive(Clone, Debug)]
struct Key {
    name: String,
    /// When the put was called.
    called: Duration,
    /// When the put was acknowledged.
    returned: Duration,
    ttl: Duration,
}

impl Key {
    /// Returns the time before which the key must exist. Log time may run 10 % faster than the
    /// clocks.
    fn due(&self) -> Duration {
        (self.called + self.ttl * 10 / 11).saturating_sub(CLOCK_OFFSET)
    }
}

/// What reads of keys that expire have found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Keys that were put.
    pub(crate) keys: u64,
    /// Reads that found the key.
    pub(crate) there: u64,
    /// Reads that found a key gone.
    pub(crate) gone: u64,
    /// The longest time for which a key was still found after its expiry.
    pub(crate) latest: Duration,
}

/// Puts keys that expire, and reads them, until the run ends.
pub(crate) async fn watch(record: Arc<Record>, seed: u64) -> Outcome<Seen> {
    let client = connect(founders())?;
    let mut prng = Prng::stream(seed, "keys that expire");
    let mut keys: VecDeque<Key> = VecDeque::new();
    let mut seen = Seen::default();
    while !record.is_over() {
        tokio::time::sleep(Duration::from_millis(prng.below(100))).await;
        if keys.len() < WATCHED_MAX && prng.chance(500_000) {
            let name = format!("expiring-{}", seen.keys);
            let ttl = Duration::from_millis(prng.between(2_000, 20_000));
            if let Some(key) = put(&client, &record, name, ttl).await {
                keys.push_back(key);
            }
            seen.keys += 1;
        } else if let Some(key) = keys.pop_front()
            && look(&client, &record, &key, &mut seen).await
        {
            keys.push_back(key);
        }
    }
    Ok(seen)
}

async fn put(client: &KvClient, record: &Record, name: String, ttl: Duration) -> Option<Key> {
    let called = record.now();
    let options = PutOptions::default().ttl(ttl);
    client.put_with(name.clone(), Bytes::from_static(b"here"), options).await.ok()?;
    record.acknowledged();
    Some(Key { name, called, returned: record.now(), ttl })
}

/// Reads a key and checks the result; returns whether to read it again later.
async fn look(client: &KvClient, record: &Record, key: &Key, seen: &mut Seen) -> bool {
    let called = record.now();
    let Ok(found) = client.get(key.name.clone(), ReadConsistency::Linearizable).await else {
        return true;
    };
    let returned = record.now();
    if found.is_some() {
        seen.there += 1;
        seen.latest = seen.latest.max(called.saturating_sub(key.returned + key.ttl));
        return true;
    }
    seen.gone += 1;
    if returned < key.due() {
        record.finding(&format!(
            "{} with a time to live of {:?}, put at {:?} s, was already gone at {:?} s",
            key.name,
            key.ttl,
            key.called.as_secs_f64(),
            returned.as_secs_f64(),
        ));
    }
    false
}
