//! Writers, each with keys of its own, and what every node must have of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use d_engine_client::{Client, ClientOptions, KvClient, ReadConsistency, Scan};
use tokio::sync::{Mutex, Notify};
use tokio::time::sleep;

use crate::Outcome;

const WRITERS: u64 = 8;
/// Keys of one writer: it must have written each of them within the last so many writes.
const SLOTS: u64 = 1024;
/// The pause of a writer after each write, so that the log does not outgrow the case.
const PAUSE: Duration = Duration::from_millis(2);

/// The writers.
pub(crate) struct Load {
    shared: Arc<Shared>,
}

struct Shared {
    client: std::sync::Mutex<KvClient>,
    is_paused: AtomicBool,
    resumed: Notify,
    acknowledged: AtomicU64,
    writers: Vec<Mutex<Writer>>,
}

/// What one writer knows. Locked while a write is under way.
#[derive(Default)]
struct Writer {
    next: u64,
    /// For each slot the last acknowledged number, and later ones whose outcome is unknown.
    slots: BTreeMap<u64, Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    acknowledged: u64,
    unknown: Vec<u64>,
}

fn connect(addresses: &[String]) -> Outcome<KvClient> {
    let options = ClientOptions::default().timeout(Duration::from_secs(5));
    let client = Client::new(addresses.to_vec(), options);
    Ok(KvClient::new(client.map_err(|error| error.to_string())?))
}

impl Load {
    pub(crate) fn start(addresses: &[String]) -> Outcome<Self> {
        let shared = Arc::new(Shared {
            client: std::sync::Mutex::new(connect(addresses)?),
            is_paused: AtomicBool::new(false),
            resumed: Notify::new(),
            acknowledged: AtomicU64::new(0),
            writers: (0..WRITERS).map(|_| Mutex::default()).collect(),
        });
        for number in 0..WRITERS {
            tokio::spawn(write(Arc::clone(&shared), number));
        }
        Ok(Self { shared })
    }

    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// Waits until no write is under way.
    pub(crate) async fn pause(&self) {
        self.shared.is_paused.store(true, Ordering::SeqCst);
        for writer in &self.shared.writers {
            drop(writer.lock().await);
        }
    }

    pub(crate) fn go_on(&self, addresses: &[String]) -> Outcome<()> {
        *self.shared.client() = connect(addresses)?;
        self.shared.is_paused.store(false, Ordering::SeqCst);
        self.shared.resumed.notify_waiters();
        Ok(())
    }

    /// Compares what the node at this address has with what was acknowledged.
    pub(crate) async fn compare(&self, address: &str) -> Outcome<()> {
        let node = connect(&[address.to_owned()])?;
        let mut pages = node.pages(Scan::default(), ReadConsistency::Eventual);
        let mut found = BTreeMap::new();
        while let Some(page) = pages.next_page().await.map_err(|error| error.to_string())? {
            for record in page.records {
                let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default())
                    .into_owned();
                found.insert(String::from_utf8_lossy(&record.key).into_owned(), value);
            }
        }
        for (number, writer) in (0..).zip(&self.shared.writers) {
            for (slot, known) in &writer.lock().await.slots {
                let value = found.get(&key(number, *slot)).and_then(|it| it.parse::<u64>().ok());
                let is_expected = value.map_or(known.acknowledged == 0, |value| {
                    value == known.acknowledged || known.unknown.contains(&value)
                });
                if !is_expected {
                    return Err(format!(
                        "{} has {value:?}, and {} was acknowledged (unknown: {:?})",
                        key(number, *slot),
                        known.acknowledged,
                        known.unknown
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    fn client(&self) -> std::sync::MutexGuard<'_, KvClient> {
        self.client.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn key(writer: u64, slot: u64) -> String {
    format!("w{writer}-{slot:04}")
}

/// Writes rising numbers, for ever.
async fn write(shared: Arc<Shared>, number: u64) {
    loop {
        let resumed = shared.resumed.notified();
        if shared.is_paused.load(Ordering::SeqCst) {
            resumed.await;
            continue;
        }
        let Some(writer) = shared.writers.get(number as usize) else { return };
        let mut writer = writer.lock().await;
        if shared.is_paused.load(Ordering::SeqCst) {
            continue;
        }
        writer.next += 1;
        let value = writer.next;
        let client = shared.client().clone();
        let put = client.put(key(number, value % SLOTS), value.to_string()).await;
        let slot = writer.slots.entry(value % SLOTS).or_default();
        match put {
            Ok(_) => {
                *slot = Slot { acknowledged: value, unknown: Vec::new() };
                shared.acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_unknown() => slot.unknown.push(value),
            Err(_) => {}
        }
        drop(writer);
        sleep(PAUSE).await;
    }
}
