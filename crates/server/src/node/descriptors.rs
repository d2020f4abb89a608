//! File descriptors: the limit of this process, and the reserve for the node's own files.
//!
//! A log that cannot open its next file stops the node; a client that cannot connect retries. So
//! clients get what the reserve leaves. The limit belongs to the whole process: only a program that
//! is nothing but a node (`d-engine serve`) raises it; an embedded engine logs the limit that it
//! found.

use std::io;

/// The smallest reserve for the node's own files and for other nodes: log, snapshots, connections,
/// handshakes.
const RESERVE_MIN: u64 = 128;
/// The largest reserve; a node never needs more.
const RESERVE_MAX: u64 = 1_024;

/// Returns the present limit of descriptors of this process; `None` if there is none, or it cannot
/// be read.
pub(crate) fn limit() -> Option<u64> {
    #[cfg(unix)]
    return rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    None
}

/// Returns how many clients may be connected at a time, of the `wanted` that the configuration
/// allows.
pub(crate) fn client_places(wanted: usize, limit: Option<u64>) -> usize {
    let Some(limit) = limit else { return wanted };
    let left = limit.saturating_sub(reserve(limit)).max(1);
    wanted.min(usize::try_from(left).unwrap_or(usize::MAX))
}

/// Logs a warning if fewer clients than configured can be connected.
pub(crate) fn warn_if_short(node: u64, wanted: usize, limit: Option<u64>) {
    let places = client_places(wanted, limit);
    if let Some(limit) = limit
        && places < wanted
    {
        tracing::warn!(
            node,
            limit,
            reserved = reserve(limit),
            places,
            wanted,
            "fewer clients can be connected than limits.max_client_connections allows: this \
             process may open {limit} file descriptors (RLIMIT_NOFILE); raise the limit with \
             `ulimit -n` or LimitNOFILE="
        );
    }
}

/// Logs a warning if the limit is low for a whole node.
pub(crate) fn warn_if_scarce(node: u64, limit: Option<u64>) {
    if let Some(limit) = limit
        && limit < 2 * RESERVE_MIN
    {
        tracing::warn!(
            node,
            limit,
            "this process may open only {limit} file descriptors (RLIMIT_NOFILE), too few for a \
             busy node; raise the limit with `ulimit -n` or LimitNOFILE="
        );
    }
}

/// A quarter of the limit, within bounds.
fn reserve(limit: u64) -> u64 {
    (limit / 4).clamp(RESERVE_MIN, RESERVE_MAX)
}

/// Describes an error of `accept`, with the limit if that is the cause.
pub(crate) fn explain(error: &io::Error) -> String {
    #[cfg(unix)]
    match rustix::io::Errno::from_io_error(error) {
        Some(rustix::io::Errno::MFILE) => {
            let limit = limit().map_or_else(|| "unknown".to_owned(), |limit| limit.to_string());
            return format!(
                "this process has no file descriptors left; its limit (RLIMIT_NOFILE) is {limit}; \
                 raise it with `ulimit -n` or LimitNOFILE="
            );
        }
        Some(rustix::io::Errno::NFILE) => {
            return "this machine has no file descriptors left; raise fs.file-max".to_owned();
        }
        _ => {}
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_what_the_reserve_leaves_and_never_nothing() {
        assert_eq!(client_places(1_024, None), 1_024);
        assert_eq!(client_places(1_024, Some(1 << 20)), 1_024);
        assert_eq!(client_places(1_024, Some(1_024)), 768);
        assert_eq!(client_places(1_024, Some(256)), 128);
        assert_eq!(client_places(10, Some(256)), 10);
        assert_eq!(client_places(1_024, Some(64)), 1);
    }

    #[cfg(unix)]
    #[test]
    fn no_descriptor_left_is_told_with_the_limit() {
        let text = explain(&rustix::io::Errno::MFILE.into());
        assert!(
            text.contains("RLIMIT_NOFILE") && text.contains(&limit().unwrap().to_string()),
            "{text}"
        );
        assert!(explain(&rustix::io::Errno::NFILE.into()).contains("fs.file-max"));
        assert_eq!(explain(&io::ErrorKind::BrokenPipe.into()), "broken pipe");
    }
}
