//! The part of `d-engine status` about snapshots.

use d_engine_client::{NodeStatus, ReceivingSnapshot, SendingSnapshot, SnapshotStatus};
use indicatif::DecimalBytes;
use serde::ser::{Serialize, SerializeStruct as _, Serializer};

/// A part of a status as the object that the JSON has for it. Programs read this: keys are added,
/// never renamed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json<'a, T>(pub(super) &'a T);

impl Serialize for Json<'_, SnapshotStatus> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(status) = self;
        let sending: Vec<_> = status.sending.iter().map(Json).collect();
        let mut object = serializer.serialize_struct("Snapshots", 12)?;
        object.serialize_field("newest_index", &status.newest.map(|newest| newest.index))?;
        object.serialize_field("newest_bytes", &status.newest_bytes)?;
        object.serialize_field("count", &status.count)?;
        object.serialize_field("disk_bytes", &status.disk_bytes)?;
        object.serialize_field("building", &status.building)?;
        object.serialize_field("built", &status.built)?;
        object.serialize_field("failed", &status.failed)?;
        object.serialize_field("last_failure", &status.last_failure)?;
        object.serialize_field("pause_us", &status.pause.as_micros())?;
        object.serialize_field("overdue", &status.overdue)?;
        object.serialize_field("sending", &sending)?;
        object.serialize_field("receiving", &status.receiving.as_ref().map(Json))?;
        object.end()
    }
}

impl Serialize for Json<'_, SendingSnapshot> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(sending) = self;
        let mut object = serializer.serialize_struct("Sending", 8)?;
        object.serialize_field("to", &sending.to)?;
        object.serialize_field("index", &sending.index)?;
        object.serialize_field("confirmed", &sending.confirmed)?;
        object.serialize_field("bytes", &sending.bytes)?;
        object.serialize_field("resumed_at", &sending.resumed_at)?;
        object.serialize_field("installing", &sending.is_installing)?;
        object.serialize_field("failures", &sending.failures)?;
        object.serialize_field("last_failure", &sending.last_failure)?;
        object.end()
    }
}

impl Serialize for Json<'_, ReceivingSnapshot> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(receiving) = self;
        let mut object = serializer.serialize_struct("Receiving", 5)?;
        object.serialize_field("from", &receiving.from)?;
        object.serialize_field("index", &receiving.index)?;
        object.serialize_field("received", &receiving.received)?;
        object.serialize_field("bytes", &receiving.bytes)?;
        object.serialize_field("installing", &receiving.is_installing)?;
        object.end()
    }
}

/// Returns the lines below the table: alarms, failures, and snapshots in progress.
pub(super) fn lines<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> Vec<String> {
    nodes.flat_map(of_node).collect()
}

fn of_node(status: &NodeStatus) -> Vec<String> {
    let (node, snapshots) = (status.node, &status.snapshots);
    let mut lines: Vec<String> =
        status.alarms.iter().map(|alarm| format!("ALARM: node {node}: {alarm}")).collect();
    if status.lease_revoked {
        lines.push(format!(
            "node {node} serves lease reads with read rounds until the next election, because it \
             has tried to transfer leadership"
        ));
    }
    if status.late_replies > 0 {
        lines.push(format!(
            "node {node}: its state machine returned {} replies too late or twice; they are lost",
            status.late_replies
        ));
    }
    if snapshots.overdue {
        let (log, why) =
            (DecimalBytes(status.log_bytes_on_disk), snapshots.last_failure.as_deref());
        let why = why.map(|why| format!(" (the last snapshot failed: {why})")).unwrap_or_default();
        lines.push(format!(
            "ALARM: node {node}: its log has {log}, more than snapshots.max_log_bytes; take a \
             snapshot with `d-engine snapshot --node {node}`{why}"
        ));
    }
    if let Some(why) = snapshots.last_failure.as_deref().filter(|_| !snapshots.overdue) {
        lines.push(format!(
            "node {node}: the last snapshot failed ({} failed since the node started): {why}",
            snapshots.failed
        ));
    }
    if let Some(bytes) = snapshots.building {
        lines.push(format!("node {node} is taking a snapshot: {} so far", DecimalBytes(bytes)));
    }
    for sending in &snapshots.sending {
        let what = match sending.index {
            Some(index) => format!(
                "node {node} is sending its snapshot {index} to node {}: {}",
                sending.to,
                part(sending.confirmed, sending.bytes, sending.is_installing)
            ),
            None => format!("node {node} has a snapshot to send to node {}", sending.to),
        };
        let failed = match &sending.last_failure {
            Some(why) => format!("; {} attempts failed, the last one: {why}", sending.failures),
            None => String::new(),
        };
        lines.push(format!("{what}{failed}"));
    }
    if let Some(receiving) = &snapshots.receiving {
        let part = part(receiving.received, receiving.bytes, receiving.is_installing);
        let (index, from) = (receiving.index, receiving.from);
        lines.push(format!("node {node} is receiving snapshot {index} from node {from}: {part}"));
    }
    lines
}

fn part(done: u64, of: u64, is_installing: bool) -> String {
    if is_installing {
        return format!("all of {}, being installed", DecimalBytes(of));
    }
    let percent = u128::from(done) * 100 / u128::from(of.max(1));
    format!("{percent} % of {}", DecimalBytes(of))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use d_engine_client::EntryId;

    use super::*;

    #[test]
    fn the_json_of_snapshots_has_every_key() {
        let (mut sending, mut receiving) =
            (SendingSnapshot::default(), ReceivingSnapshot::default());
        (sending.to, sending.failures, receiving.from) = (11, 1, 12);
        let mut status = SnapshotStatus::default();
        status.newest = Some(EntryId { term: 1, index: 2 });
        status.newest_bytes = 3;
        status.count = 4;
        status.disk_bytes = 5;
        status.building = Some(6);
        status.built = 7;
        status.failed = 8;
        status.last_failure = Some("full".to_owned());
        status.pause = Duration::from_micros(9);
        status.bytes_since = 10;
        status.overdue = true;
        status.sending = vec![sending];
        status.receiving = Some(receiving);
        let json = serde_json::to_string(&Json(&status)).unwrap_or_else(|error| error.to_string());
        assert_eq!(
            json,
            r#"{"newest_index":2,"newest_bytes":3,"count":4,"disk_bytes":5,"building":6,"built":7,"failed":8,"last_failure":"full","pause_us":9,"overdue":true,"sending":[{"to":11,"index":null,"confirmed":0,"bytes":0,"resumed_at":0,"installing":false,"failures":1,"last_failure":null}],"receiving":{"from":12,"index":0,"received":0,"bytes":0,"installing":false}}"#
        );
    }
}
