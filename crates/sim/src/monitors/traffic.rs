//! How many bytes of entries leaders send for each byte that a follower stores.
//!
//! On links that lose nothing, the bound is one and a half times the stored bytes, or three times
//! if a lane overflowed, plus one window, and one more for each time that a leader had to find a
//! follower's log position again.

use std::collections::BTreeMap;

use d_engine_storage::LogEntry;

use crate::monitors::violation::{Rule, Violation};
use crate::profile::Profile;

/// The approximate size of an entry on the wire without its payload.
const ENTRY_BYTES: u64 = 32;

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Account {
    /// Bytes of entries that were enqueued on links to this follower.
    pub(crate) sent: u64,
    /// Bytes of entries that it has stored.
    pub(crate) useful: u64,
    /// How often a leader had to find the follower's log position again.
    excuses: u64,
    /// Appends lost because a lane was full.
    overflows: u64,
}

/// The accounts of all followers.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    accounts: BTreeMap<u64, Account>,
}

/// The bytes that these entries count for.
pub(crate) fn weight(entries: &[LogEntry]) -> u64 {
    entries.iter().map(|entry| entry.data.len() as u64 + ENTRY_BYTES).sum()
}

impl Traffic {
    pub(crate) fn account(&self, to: u64) -> Account {
        self.accounts.get(&to).copied().unwrap_or_default()
    }

    pub(crate) fn sent(&mut self, to: u64, bytes: u64) {
        self.accounts.entry(to).or_default().sent += bytes;
    }

    pub(crate) fn stored(&mut self, node: u64, bytes: u64) {
        self.accounts.entry(node).or_default().useful += bytes;
    }

    /// Allows one more window to this follower: its connection broke, it restarted, or a leader was
    /// elected.
    pub(crate) fn excuse(&mut self, to: u64) {
        self.accounts.entry(to).or_default().excuses += 1;
    }

    pub(crate) fn overflowed(&mut self, to: u64) {
        self.accounts.entry(to).or_default().overflows += 1;
    }

    /// Compares the bytes sent with the bytes stored.
    ///
    /// # Errors
    /// Returns the follower to which too much was sent.
    pub(crate) fn check(&self, profile: &Profile) -> Result<(), Violation> {
        if !profile.links.connections || !profile.judges_traffic {
            return Ok(());
        }
        let limits = &profile.limits;
        let largest = profile.append_bytes.max(limits.command_bytes as u64)
            + ENTRY_BYTES * limits.append_entries;
        // The window is bounded in payload bytes; its last append may exceed the bound.
        let window = limits.inflight_bytes
            + ENTRY_BYTES * limits.append_entries * limits.inflight_appends as u64;
        let window = window.min(largest * limits.inflight_appends as u64) + largest;
        for (node, account) in &self.accounts {
            let (numerator, denominator) = if account.overflows > 0 { (3, 1) } else { (3, 2) };
            let bound = account.useful * numerator / denominator + (account.excuses + 1) * window;
            if account.sent > bound {
                return Rule::Traffic.broken_by(
                    *node,
                    format_args!(
                        "node {node} was sent {} bytes of entries and stored {}; with {} \
                         interruptions and {} overflows at most {bound} are allowed",
                        account.sent, account.useful, account.excuses, account.overflows
                    ),
                );
            }
        }
        Ok(())
    }
}
