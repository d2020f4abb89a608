//! "log matching": index and term fix the entry and the one before it (paper, section 5.3).

use std::collections::BTreeMap;

use d_engine_core::{EntryKind, RaftCore, Term};
use d_engine_replica::PersistJob;
use d_engine_storage::LogEntry;

use crate::monitors::violation::{Rule, Violation};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fingerprint {
    digest: u64,
    term_before: u64,
}

/// All entries that were ever appended, by index and term.
#[derive(Debug, Default)]
pub(crate) struct LogMatching {
    prints: BTreeMap<(u64, u64), Fingerprint>,
}

impl LogMatching {
    /// Checks the entries that a node is about to write.
    ///
    /// # Errors
    /// One of them differs from an earlier entry with the same index and term.
    pub(crate) fn on_write(
        &mut self,
        node: u64,
        core: &RaftCore,
        job: &PersistJob,
    ) -> Result<(), Violation> {
        let mut before =
            job.entries.first().and_then(|first| core.term_at(first.id.index.previous()));
        for entry in &job.entries {
            let print =
                Fingerprint { digest: digest(entry), term_before: before.map_or(0, Term::get) };
            let key = (entry.id.index.get(), entry.id.term.get());
            let known = *self.prints.entry(key).or_insert(print);
            if known != print {
                return Rule::LogMatching.broken_by(
                    node,
                    format_args!(
                        "node {node} appends an entry at {:?} that differs from an earlier one",
                        entry.id
                    ),
                );
            }
            before = Some(entry.id.term);
        }
        Ok(())
    }
}

/// FNV-1a over everything that must be equal on all replicas.
fn digest(entry: &LogEntry) -> u64 {
    let kind = [entry.kind.number()];
    let time = entry.time_ms.to_le_bytes();
    let is_command = [u8::from(entry.kind == EntryKind::Command)];
    let version = entry.version.to_le_bytes();
    let bytes =
        kind.iter().chain(&time).chain(&is_command).chain(&version).chain(entry.data.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
