//! Checks what clients saw of keys with a time to live: no key is lost before its time, and no
//! overwritten value is seen. That keys do expire is checked only on the calm cluster (`run.rs`):
//! before, an entry that moves log time may take long to be committed.

use std::collections::BTreeMap;

use crate::monitors::violation::{Rule, Violation};
use crate::time::MS;

#[derive(Clone, Copy, Debug)]
struct Write {
    value: u64,
    ttl_ms: u64,
    called: u64,
    /// `None` if the outcome is unknown.
    returned: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Read {
    called: u64,
    returned: u64,
    seen: Option<u64>,
}

/// Writes and reads of the keys with a time to live, by key.
#[derive(Debug, Default)]
pub(crate) struct Expiring {
    writes: BTreeMap<u64, Vec<Write>>,
    reads: BTreeMap<u64, Vec<Read>>,
}

impl Expiring {
    pub(crate) fn wrote(
        &mut self,
        slots: &[u64],
        value: u64,
        ttl_ms: u64,
        called: u64,
        returned: Option<u64>,
    ) {
        for slot in slots {
            self.writes.entry(*slot).or_default().push(Write { value, ttl_ms, called, returned });
        }
    }

    pub(crate) fn read(&mut self, slot: u64, called: u64, returned: u64, seen: Option<u64>) {
        self.reads.entry(slot).or_default().push(Read { called, returned, seen });
    }

    /// Checks all reads. Keys may be lost early by up to `tolerance_ms`, and without limit if they
    /// were written after `alone_since`: log time was behind then, and leaps forward later.
    ///
    /// # Errors
    /// The first read that no order of the writes explains.
    pub(crate) fn judge(
        &self,
        tolerance_ms: u64,
        alone_since: Option<u64>,
    ) -> Result<(), Violation> {
        let bound = (tolerance_ms * MS, alone_since.unwrap_or(u64::MAX));
        for (slot, reads) in &self.reads {
            let writes = self.writes.get(slot).map(Vec::as_slice).unwrap_or_default();
            for read in reads {
                let judged = match read.seen {
                    Some(value) => judge_seen(writes, read, value),
                    None => judge_absent(writes, read, bound),
                };
                if let Err(why) = judged {
                    return Rule::Expiry
                        .broken(format_args!("key expiring-{slot}, {read:?}: {why}"));
                }
            }
        }
        Ok(())
    }
}

/// Checks that a value that was read had been written, and had not certainly been overwritten.
fn judge_seen(writes: &[Write], read: &Read, value: u64) -> Result<(), String> {
    let Some(written) =
        writes.iter().find(|write| write.value == value && write.called < read.returned)
    else {
        return Err("no client wrote this value".to_owned());
    };
    let is_after = |write: &&Write| {
        written.returned.is_some_and(|returned| returned < write.called)
            && write.returned.is_some_and(|returned| returned < read.called)
    };
    match writes.iter().find(is_after) {
        Some(later) => Err(format!("{later:?} had overwritten {written:?}")),
        None => Ok(()),
    }
}

/// Checks that a key that was absent had never been written, or that its last write may have
/// expired.
fn judge_absent(
    writes: &[Write],
    read: &Read,
    (tolerance, alone_since): (u64, u64),
) -> Result<(), String> {
    let boots = |write: &Write| read.returned + tolerance < write.called + write.ttl_ms * MS;
    for write in writes.iter().filter(|write| boots(write)) {
        if write.returned.is_none_or(|returned| returned >= read.called.min(alone_since)) {
            continue;
        }
        // Another write that may come after this one and may have expired.
        let hides = |other: &&Write| {
            other.value != write.value
                && other.called < read.returned
                && other.returned.is_none_or(|returned| returned > write.called)
                && !boots(other)
        };
        if !writes.iter().any(|other| hides(&other)) {
            return Err(format!("{write:?} was lost early"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expiring(
        writes: &[(u64, u64, u64, Option<u64>)],
        reads: &[(u64, u64, Option<u64>)],
    ) -> Expiring {
        let mut expiring = Expiring::default();
        for (value, ttl_ms, called, returned) in writes {
            expiring.wrote(&[1], *value, *ttl_ms, called * MS, returned.map(|at| at * MS));
        }
        for (called, returned, seen) in reads {
            expiring.read(1, called * MS, returned * MS, *seen);
        }
        expiring
    }

    #[test]
    fn a_key_may_be_absent_only_once_its_time_is_over() {
        let writes = [(7, 100, 0, Some(10))];
        assert!(expiring(&writes, &[(20, 30, Some(7)), (90, 101, None)]).judge(0, None).is_ok());
        assert!(expiring(&writes, &[(20, 99, None)]).judge(0, None).is_err());
        assert!(expiring(&writes, &[(20, 99, None)]).judge(1, None).is_ok());
        let alone_since = |at: u64| expiring(&writes, &[(20, 30, None)]).judge(0, Some(at * MS));
        assert!(alone_since(11).is_err() && alone_since(10).is_ok());
        let not_acknowledged = [(7, 100, 0, None)];
        assert!(expiring(&not_acknowledged, &[(20, 30, None)]).judge(0, None).is_ok());
    }

    #[test]
    fn a_shorter_life_that_was_written_beside_it_may_have_taken_its_place() {
        let beside = [(7, 1_000, 0, Some(50)), (8, 10, 40, Some(60))];
        assert!(expiring(&beside, &[(90, 95, None)]).judge(0, None).is_ok());
        let before = [(7, 1_000, 50, Some(60)), (8, 10, 20, Some(30))];
        assert!(expiring(&before, &[(90, 95, None)]).judge(0, None).is_err());
    }

    #[test]
    fn what_was_overwritten_is_not_seen() {
        let writes = [(7, 1_000, 0, Some(10)), (8, 1_000, 20, Some(30))];
        assert!(expiring(&writes, &[(40, 50, Some(8))]).judge(0, None).is_ok());
        assert!(expiring(&writes, &[(40, 50, Some(7))]).judge(0, None).is_err());
        assert!(expiring(&writes, &[(40, 50, Some(9))]).judge(0, None).is_err());
    }
}
