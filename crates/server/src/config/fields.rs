//! The field names of a config file, and the search for the one most similar to an unknown name.

use toml::{Table, Value};

use super::ConfigError;

pub(super) const CONFIG: &[&str] = &[
    "node_id",
    "cluster_id",
    "data_dir",
    "peer_listen",
    "client_listen",
    "members",
    "join",
    "join_as",
    "replaces",
    "admission",
    "advertise_peer",
    "advertise_client",
    "heartbeat_interval_ms",
    "election_timeout_min_ms",
    "election_timeout_max_ms",
    "clock_drift_percent_max",
    "max_clock_offset_ms",
    "accept_clock",
    "ignore_superseded",
    "snapshots",
    "limits",
];

pub(super) const SNAPSHOTS: &[&str] = &[
    "after_entries",
    "after_log_bytes",
    "after_seconds",
    "max_log_bytes",
    "retained",
    "tail_entries",
    "tail_bytes",
    "compression",
    "pause_max_ms",
    "build_bytes_per_second",
    "send_bytes_per_second",
    "scrub_bytes_per_second",
    "peer_timeout_ms",
    "apply_timeout_ms",
    "purge_waits_ms",
    "max_bytes",
    "reserve_bytes",
];

pub(super) const MEMBER: &[&str] = &["id", "peer_addr", "client_addr"];

pub(super) const LIMITS: &[&str] = &[
    "max_command_bytes",
    "max_pending_proposals",
    "max_pending_bytes",
    "max_pending_reads",
    "max_client_connections",
    "max_client_bytes",
    "max_calls_per_connection",
    "max_uncommitted_bytes",
    "max_inflight_bytes",
    "max_append_bytes",
    "max_apply_entries",
    "log_cache_bytes",
    "segment_bytes",
    "min_free_bytes",
    "peer_queue_frames",
    "peer_queue_bytes",
];

/// Refuses the first unknown name.
pub(super) fn check_names(table: &Table) -> Result<(), ConfigError> {
    check_table(table, "", CONFIG)?;
    if let Some(Value::Table(limits)) = table.get("limits") {
        check_table(limits, "limits.", LIMITS)?;
    }
    if let Some(Value::Table(snapshots)) = table.get("snapshots") {
        check_table(snapshots, "snapshots.", SNAPSHOTS)?;
    }
    if let Some(Value::Array(members)) = table.get("members") {
        for (position, member) in members.iter().enumerate() {
            if let Value::Table(member) = member {
                check_table(member, &format!("members[{position}]."), MEMBER)?;
            }
        }
    }
    Ok(())
}

fn check_table(table: &Table, prefix: &str, known: &[&'static str]) -> Result<(), ConfigError> {
    let Some(unknown) = table.keys().find(|name| !known.contains(&name.as_str())) else {
        return Ok(());
    };
    let field = format!("{prefix}{unknown}");
    Err(ConfigError::UnknownField { file: None, field, nearest: nearest(unknown, known) })
}

/// Returns the known name at the smallest edit distance, unless the distance exceeds half of that
/// name's length.
fn nearest(written: &str, known: &[&'static str]) -> Option<&'static str> {
    let (changes, name) = known.iter().map(|name| (distance(written, name), *name)).min()?;
    (changes * 2 <= name.len()).then_some(name)
}

/// Levenshtein distance in bytes.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (above, b) in row.iter().skip(1).zip(other.bytes()) {
            left = (diagonal + usize::from(a != b)).min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}
