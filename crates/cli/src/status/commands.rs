//! Versions of commands: what the nodes' programs decode, and what the leader takes. Nothing where all is version 0.

use d_engine_client::NodeStatus;

/// What a leader takes now, and what each node decodes; `None` where no program knows versions.
pub(super) fn line<'a>(statuses: impl Iterator<Item = &'a NodeStatus>) -> Option<String> {
    let mut statuses: Vec<&NodeStatus> = statuses.collect();
    statuses.sort_by_key(|status| status.node);
    let allowed = statuses.iter().filter_map(|status| status.command_version_allowed).max();
    let knows = |status: &&NodeStatus| status.command_version_max > 0;
    if !statuses.iter().any(knows) && allowed.unwrap_or(0) == 0 {
        return None;
    }
    let each = |status: &&NodeStatus| format!("node {} up to {}", status.node, status.command_version_max);
    let decode = statuses.iter().filter(|status| status.stopped.is_none()).map(each).collect::<Vec<_>>();
    let taken = match allowed {
        Some(allowed) => format!("commands up to version {allowed} are taken"),
        None => "no leader says which versions of commands are taken".to_owned(),
    };
    Some(format!("{taken}; programs decode: {}", decode.join(", ")))
}
