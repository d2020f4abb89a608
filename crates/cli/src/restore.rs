//! `d-engine restore`: a new cluster of one node from a snapshot file.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use d_engine_offline::inspect::{SnapshotError, rfc3339};
use d_engine_offline::restore::{RestoreError, RestoreRequest, restore as restore_offline};
use d_engine_offline::{Fs, RealFs};

use crate::args::RestoreArgs;
use crate::blocking::{Reading, Stop, interruptible};
use crate::exit::{Exit, Failure, say};

pub(crate) async fn restore(args: RestoreArgs) -> Result<(), Failure> {
    interruptible(move |stop| run(args, stop)).await
}

fn run(args: RestoreArgs, stop: &Stop) -> Result<(), Failure> {
    let RestoreArgs { file, data_dir, peer, client, node_id } = args;
    let request = RestoreRequest {
        file,
        data_dir,
        node: node_id,
        peer_addr: peer.unwrap_or_default(),
        client_addr: client.unwrap_or_default(),
    };
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let mut copied = Reading::begin("restoring");
    let restored = restore_offline(&fs, &request, &mut |bytes| {
        copied.add(bytes);
        stop.flow()
    });
    copied.end();
    let restored = restored.map_err(failure)?;
    let (id, node) = (restored.last_included, request.node);
    say(format_args!(
        "entry {} of term {} of cluster {} becomes cluster {} with node {node} alone, in {}",
        id.index,
        id.term,
        restored.from,
        restored.cluster,
        request.data_dir.display()
    ));
    say(format_args!("log time continues from {}", rfc3339(restored.time_ms)));
    if is_held(restored.time_ms, SystemTime::now()) {
        say(CLOCK_ADVICE);
    }
    say(CONFIG_ADVICE);
    say(match restored.membership.admission() {
        d_engine_offline::restore::Admission::Open => {
            "start it with this `data_dir`, then start further nodes with `join`; each fetches the \
             data by itself"
        }
        d_engine_offline::restore::Admission::Invited => {
            "start it with this `data_dir`, then invite further nodes with `d-engine member add` \
             and start them with `join`; each fetches the data by itself"
        }
    });
    Ok(())
}

/// What to do about log time that is more than an hour ago.
pub(crate) const CLOCK_ADVICE: &str = "that is more than an hour ago: start the node the first time with \
                            `accept_clock = true`, or its log time stands still; keys whose time \
                            to live has passed by now then expire at once";
/// What to change in the configuration of the node.
pub(crate) const CONFIG_ADVICE: &str = "take `cluster_id`, `members`, `join` and `replaces` of the old cluster \
                             out of its configuration";

/// Whether a node that is alone does not let log time go on to its clock by itself.
pub(crate) fn is_held(time_ms: u64, now: SystemTime) -> bool {
    let now_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    now_ms.abs_diff(u128::from(time_ms)) >= HOUR_MS
}

/// `accept_clock` in docs/command-line.md, less a minute, because the node starts later.
const HOUR_MS: u128 = 59 * 60 * 1_000;

fn failure(error: RestoreError) -> Failure {
    let exit = match &error {
        RestoreError::Address(_) | RestoreError::Membership(_) | RestoreError::Occupied { .. } => {
            Exit::Refused
        }
        RestoreError::Snapshot(SnapshotError::Io { source, .. })
            if source.kind() == ErrorKind::NotFound =>
        {
            Exit::Refused
        }
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A node that is alone holds log time after an hour; it starts within a minute.
    #[test]
    fn a_snapshot_of_more_than_an_hour_ago_needs_the_clock_to_be_accepted() {
        let hour = 60 * 60;
        let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds);
        for (seconds, held) in [(0, false), (hour - 61, false), (hour, true), (9 * hour, true)] {
            assert_eq!(is_held(1_000_000_000, at(seconds)), held, "{seconds}");
        }
        assert!(is_held(1_000_000_000 + 3_600_000, at(0)), "a clock that is behind");
    }
}
