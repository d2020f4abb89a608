//! The checks of a config.

use std::fmt::Display;
use std::ops::RangeInclusive;

use d_engine_storage::ClusterId;
use d_engine_storage::address::Address;
use d_engine_wire::MAX_ENTRY_DATA_BYTES;

use super::{Config, ConfigError, JoinRole};

/// The shortest election timeout is at least this many heartbeat intervals.
const HEARTBEATS_PER_ELECTION_TIMEOUT: u64 = 3;
/// The upper bound of every interval and election timeout: ten minutes.
const LONGEST_MS: u64 = 600_000;
/// The upper bound of every limit on memory; a higher value is a typing error.
const MOST_BYTES: usize = 1 << 34;

type Checked = Result<(), ConfigError>;

pub(super) fn check(config: &Config) -> Checked {
    check_paths(config)?;
    check_times(config)?;
    check_members(config)?;
    check_join(config)?;
    check_cluster_id(config)?;
    check_listen(config)?;
    check_limits(config)?;
    check_snapshots(config)
}

pub(super) fn refused(
    field: impl Into<String>,
    value: impl Display,
    allowed: impl Into<String>,
) -> ConfigError {
    ConfigError::Refused {
        file: None,
        field: field.into(),
        value: value.to_string(),
        allowed: allowed.into(),
    }
}

fn check_paths(config: &Config) -> Checked {
    let path = &config.data_dir;
    if path.as_os_str().is_empty() {
        return Err(refused(
            "data_dir",
            "not set",
            "set it to a directory that only this node uses",
        ));
    }
    if path.starts_with("~") {
        let allowed = "`~` is not expanded: write the whole path";
        return Err(refused("data_dir", path.display(), allowed));
    }
    if path.iter().any(|part| part.as_encoded_bytes().first() == Some(&b'$')) {
        let allowed = "variables such as $HOME are not expanded: write the whole path";
        return Err(refused("data_dir", path.display(), allowed));
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(refused("data_dir", format!("{path:?}"), "a path must not contain a NUL byte"));
    }
    Ok(())
}

fn check_times(config: &Config) -> Checked {
    let heartbeat = config.heartbeat_interval_ms;
    in_range("heartbeat_interval_ms", heartbeat, 1..=LONGEST_MS, " ms")?;
    let (min, max) = (config.election_timeout_min_ms, config.election_timeout_max_ms);
    let lowest = heartbeat * HEARTBEATS_PER_ELECTION_TIMEOUT;
    if min < lowest || min > LONGEST_MS {
        let allowed = format!(
            "allowed: {lowest} ms ({HEARTBEATS_PER_ELECTION_TIMEOUT} times heartbeat_interval_ms) to {LONGEST_MS} ms"
        );
        return Err(refused("election_timeout_min_ms", min, allowed));
    }
    if max <= min || max > LONGEST_MS {
        let allowed = format!(
            "allowed: more than election_timeout_min_ms ({min} ms), so that nodes draw different timeouts, to {LONGEST_MS} ms"
        );
        return Err(refused("election_timeout_max_ms", max, allowed));
    }
    let drift = config.clock_drift_percent_max;
    if drift > 100 {
        let allowed = "allowed: 0 to 100; 100 turns the lease off";
        return Err(refused("clock_drift_percent_max", drift, allowed));
    }
    let offset = config.max_clock_offset_ms;
    if !(1..=LONGEST_MS).contains(&offset) {
        return Err(refused(
            "max_clock_offset_ms",
            offset,
            format!("allowed: 1 ms to {LONGEST_MS} ms"),
        ));
    }
    Ok(())
}

fn check_members(config: &Config) -> Checked {
    if config.node_id == Some(0) {
        return Err(refused("node_id", 0, "ids start at 1"));
    }
    let mut seen: Vec<(String, String)> = Vec::new();
    for (position, member) in config.members.iter().enumerate() {
        let field = |name: &str| format!("members[{position}].{name}");
        if member.id == 0 {
            return Err(refused(field("id"), 0, "ids start at 1"));
        }
        if config.members.iter().take(position).any(|before| before.id == member.id) {
            let allowed = "another member has the same id: every member needs its own";
            return Err(refused(field("id"), member.id, allowed));
        }
        for (name, address) in
            [("peer_addr", &member.peer_addr), ("client_addr", &member.client_addr)]
        {
            if name == "client_addr" && address.is_empty() {
                continue;
            }
            check_dialled(&field(name), address)?;
            let key = address.to_ascii_lowercase();
            if let Some((_, owner)) = seen.iter().find(|(taken, _)| *taken == key) {
                let allowed = format!(
                    "{owner} has the same address: every address belongs to one service of one node"
                );
                return Err(refused(field(name), address, allowed));
            }
            seen.push((key, field(name)));
        }
    }
    if !config.members.is_empty() && config.own_member().is_none() {
        let ids: Vec<String> = config.members.iter().map(|member| member.id.to_string()).collect();
        let allowed = format!("`members` lists {}: this node must be among them", ids.join(", "));
        return Err(refused("node_id", config.own_id(), allowed));
    }
    Ok(())
}

fn check_join(config: &Config) -> Checked {
    for (position, seed) in config.join.iter().enumerate() {
        check_dialled(&format!("join[{position}]"), seed)?;
    }
    for (field, address) in
        [("advertise_peer", &config.advertise_peer), ("advertise_client", &config.advertise_client)]
    {
        if let Some(address) = address {
            check_dialled(field, address)?;
        }
    }
    let joins = !config.join.is_empty();
    if joins && !config.members.is_empty() {
        let allowed = "`members` is set too: a node is listed when its cluster is created, or it \
                       joins one";
        return Err(refused("join", list(&config.join), allowed));
    }
    if let Some(replaced) = config.replaces {
        let allowed = match (joins, config.join_as) {
            (false, _) => Some("only a node with `join` replaces another one"),
            (true, JoinRole::Learner) => Some("a learner replaces no voter"),
            (true, JoinRole::Voter) if replaced == 0 => Some("the id of a voter; ids start at 1"),
            (true, JoinRole::Voter) => None,
        };
        if let Some(allowed) = allowed {
            return Err(refused("replaces", replaced, allowed));
        }
    }
    if joins && config.peer_listen.is_none() {
        let allowed = "with `join`, set it: other nodes must reach this one";
        return Err(refused("peer_listen", "not set", allowed));
    }
    if config.members.is_empty() && config.listens_for_peers() {
        check_advertised("peer", config.peer_listen_addr(), config.advertise_peer.as_deref())?;
        let clients = config.client_listen_addr().unwrap_or_default();
        check_advertised("client", clients, config.advertise_client.as_deref())?;
    }
    Ok(())
}

/// Refuses a wildcard if nothing says where others reach the node.
fn check_advertised(whom: &str, listens: &str, advertised: Option<&str>) -> Checked {
    let is_wildcard = Address::parse(listens).is_some_and(|address| address.is_wildcard());
    if is_wildcard && advertised.is_none() {
        let allowed = format!(
            "others cannot dial a wildcard: set `advertise_{whom}` to the address at which they \
             reach this node"
        );
        return Err(refused(format!("{whom}_listen"), quoted(listens), allowed));
    }
    Ok(())
}

fn list(addresses: &[String]) -> String {
    addresses.join(", ")
}

/// Checks an address that others dial: it must not be a wildcard, and its port must not be 0.
fn check_dialled(field: &str, text: &str) -> Checked {
    let Some(address) = Address::parse(text) else {
        return Err(refused(field, quoted(text), HOST_PORT));
    };
    if address.port == 0 {
        return Err(refused(field, quoted(text), "port 0 cannot be dialled: name the port"));
    }
    if address.is_wildcard() {
        let allowed = format!(
            "{} cannot be dialled: name the host; listen addresses may be wildcards",
            address.host
        );
        return Err(refused(field, quoted(text), allowed));
    }
    Ok(())
}

const HOST_PORT: &str = "write it as host:port, for example \"127.0.0.1:7001\" or \"[::1]:7001\"";

fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn check_cluster_id(config: &Config) -> Checked {
    let Some(text) = &config.cluster_id else {
        if config.members.len() > 1 {
            let allowed = format!(
                "a cluster of {} members needs the same 32 hexadecimal digits on every node",
                config.members.len()
            );
            return Err(refused("cluster_id", "not set", allowed));
        }
        return Ok(());
    };
    match ClusterId::from_hex(text) {
        Some(id) if id.0 != [0; 16] => Ok(()),
        _ => Err(refused("cluster_id", quoted(text), "write 32 hexadecimal digits, not all 0")),
    }
}

fn check_listen(config: &Config) -> Checked {
    let peer = config.peer_listen_addr();
    let Some(peer_address) = Address::parse(peer) else {
        return Err(refused("peer_listen", quoted(peer), HOST_PORT));
    };
    if peer_address.port == 0 && config.members.len() > 1 {
        return Err(refused(
            "peer_listen",
            quoted(peer),
            "other members cannot find port 0: name the port",
        ));
    }
    let Some(client) = config.client_listen_addr() else {
        return Ok(());
    };
    if Address::parse(client).is_none() {
        return Err(refused("client_listen", quoted(client), HOST_PORT));
    }
    if client.eq_ignore_ascii_case(peer) && peer_address.port != 0 {
        return Err(refused(
            "client_listen",
            quoted(client),
            "peer_listen has the same address: use another port",
        ));
    }
    Ok(())
}

/// Explains the lower bound of `snapshots.max_log_bytes`.
const MAX_LOG_UNIT: &str =
    " bytes; at least three times `snapshots.after_log_bytes`, plus `snapshots.tail_bytes`";

fn check_snapshots(config: &Config) -> Checked {
    let snapshots = &config.snapshots;
    in_range("snapshots.retained", snapshots.retained, 1..=1_000, "")?;
    let (bytes, segment) = (snapshots.after_log_bytes, config.limits.segment_bytes as u64);
    if bytes != 0 {
        // Purging removes whole segments, so a snapshot for less than one segment frees nothing.
        in_range("snapshots.after_log_bytes", bytes, segment..=1 << 44, " bytes, or 0: off")?;
    }
    // A snapshot of a large state is due after up to twice `after_log_bytes`, plus this node's
    // stagger of up to once that. The tail of the log stays in addition.
    let least = bytes.saturating_mul(3).saturating_add(snapshots.tail_bytes).max(segment);
    in_range("snapshots.max_log_bytes", snapshots.max_log_bytes, least..=1 << 46, MAX_LOG_UNIT)?;
    in_range("snapshots.tail_bytes", snapshots.tail_bytes, 0..=1 << 40, " bytes")?;
    for (name, value) in [
        ("pause_max_ms", snapshots.pause_max_ms),
        ("peer_timeout_ms", snapshots.peer_timeout_ms),
        ("apply_timeout_ms", snapshots.apply_timeout_ms),
        ("purge_waits_ms", snapshots.purge_waits_ms),
    ] {
        in_range(&format!("snapshots.{name}"), value, 1..=86_400_000, " ms")?;
    }
    for (name, value) in [
        ("build_bytes_per_second", snapshots.build_bytes_per_second),
        ("send_bytes_per_second", snapshots.send_bytes_per_second),
    ] {
        if value != 0 {
            in_range(&format!("snapshots.{name}"), value, 64 << 10..=1 << 40, ", or 0: no limit")?;
        }
    }
    if snapshots.scrub_bytes_per_second != 0 {
        let value = snapshots.scrub_bytes_per_second;
        in_range("snapshots.scrub_bytes_per_second", value, 64 << 10..=1 << 40, ", or 0: never")?;
    }
    in_range("snapshots.max_bytes", snapshots.max_bytes, 1 << 20..=1 << 46, " bytes")
}

fn check_limits(config: &Config) -> Checked {
    let limits = &config.limits;
    let command = limits.max_command_bytes;
    let bytes = |name: &str, value, least| {
        in_range(&format!("limits.{name}"), value, least..=MOST_BYTES, " bytes")
    };
    let count = |name: &str, value| in_range(&format!("limits.{name}"), value, 1..=1 << 24, "");
    in_range("limits.max_command_bytes", command, 1..=MAX_ENTRY_DATA_BYTES, " bytes")?;
    count("max_pending_proposals", limits.max_pending_proposals)?;
    count("max_pending_reads", limits.max_pending_reads)?;
    count("max_client_connections", limits.max_client_connections)?;
    count("max_calls_per_connection", limits.max_calls_per_connection)?;
    count("max_apply_entries", limits.max_apply_entries)?;
    count("peer_queue_frames", limits.peer_queue_frames)?;
    // A bound on commands must admit at least the longest command, or that would never be accepted.
    bytes("max_pending_bytes", limits.max_pending_bytes, command)?;
    bytes("max_client_bytes", limits.max_client_bytes, command)?;
    bytes("max_uncommitted_bytes", limits.max_uncommitted_bytes, command)?;
    bytes("max_inflight_bytes", limits.max_inflight_bytes, command)?;
    bytes("log_cache_bytes", limits.log_cache_bytes, command)?;
    in_range(
        "limits.max_append_bytes",
        limits.max_append_bytes,
        1..=MAX_ENTRY_DATA_BYTES,
        " bytes",
    )?;
    // An append is the longest message: it carries a batch, or one command that exceeds a batch.
    bytes("peer_queue_bytes", limits.peer_queue_bytes, 2 * command.max(limits.max_append_bytes))?;
    // The bound on `segment_bytes` below ensures that a segment holds at least a few write groups
    // of any size.
    in_range("limits.min_free_bytes", limits.min_free_bytes, 1..=1 << 44, " bytes")?;
    in_range(
        "limits.segment_bytes",
        limits.segment_bytes,
        (1 << 20).max(4 * command)..=1 << 30,
        " bytes",
    )
}

fn in_range<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
    unit: &str,
) -> Checked {
    if range.contains(&value) {
        return Ok(());
    }
    let allowed = format!("allowed: {} to {}{unit}", range.start(), range.end());
    Err(refused(field, value, allowed))
}
