//! `d-engine restore`: a new cluster of one node from a snapshot file.

use std::io::ErrorKind;
use std::sync::Arc;

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
    say(format_args!(
        "log time continues from {}: keys whose time to live has passed by now expire when the node \
         leads",
        rfc3339(restored.time_ms)
    ));
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
