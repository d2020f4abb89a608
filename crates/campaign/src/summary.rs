//! The results of a run, printed.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::expiry::Seen;
use crate::record::{Counts, Record};

/// Returns how many operations succeeded, failed, and have an unknown outcome.
pub(crate) fn counts(record: &Record) -> [u64; 3] {
    [&record.ok, &record.failed, &record.unknown].map(|count| count.load(Ordering::Relaxed))
}

/// Prints the results of the run; returns whether nothing was found.
pub(crate) fn summary(record: &Record, recovery: Duration, seen: Seen) -> bool {
    let [ok, failed, unknown] = counts(record);
    let pauses = record.pauses();
    println!("  operations     {ok} ok, {failed} failed, {unknown} of unknown outcome");
    println!("  faults         {}", list(&record.faults()));
    let changes = record.changes();
    if !changes.is_empty() {
        println!("  changes        {}", list(&changes));
        println!("  answers        {}", list(&record.answers()));
    }
    println!(
        "  longest pause  {:.1} s without an acknowledged write; {:.1} s with a majority \
         without a fault",
        pauses.longest.as_secs_f64(),
        pauses.with_majority.0.as_secs_f64()
    );
    println!(
        "  recovery       at most {:.1} s from the end of all faults to the next write",
        recovery.as_secs_f64()
    );
    println!(
        "  expiring keys  {} put, {} reads found one, {} found one gone; at most {:.1} s late",
        seen.keys,
        seen.there,
        seen.gone,
        seen.latest.as_secs_f64()
    );
    let findings = record.findings();
    for finding in &findings {
        println!("  FINDING        {finding}");
    }
    let is_good = findings.is_empty() && ok > 0;
    println!("  verdict        {}", if is_good { "linearizable; nothing found" } else { "FAILED" });
    is_good
}

fn list(counts: &Counts) -> String {
    let list: Vec<String> = counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
    list.join(", ")
}
