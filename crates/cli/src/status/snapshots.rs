//! What `d-engine status` tells of snapshots.

use d_engine_client::{NodeStatus, ReceivingSnapshot, SendingSnapshot};
use indicatif::DecimalBytes;
use serde::Serialize;

/// A node's snapshots, for programs.
#[derive(Clone, Serialize, Debug)]
pub(super) struct Snapshots {
    newest_index: Option<u64>,
    newest_bytes: u64,
    count: u64,
    disk_bytes: u64,
    /// Bytes so far of one that is being built.
    building: Option<u64>,
    built: u64,
    failed: u64,
    last_failure: Option<String>,
    pause_us: u128,
    /// The log is larger than `snapshots.max_log_bytes`.
    overdue: bool,
    sending: Vec<Sending>,
    receiving: Option<Receiving>,
}

#[derive(Clone, Serialize, Debug)]
struct Sending {
    to: u64,
    index: Option<u64>,
    confirmed: u64,
    bytes: u64,
    resumed_at: u64,
    installing: bool,
    failures: u64,
    last_failure: Option<String>,
}

#[derive(Clone, Serialize, Debug)]
struct Receiving {
    from: u64,
    index: u64,
    received: u64,
    bytes: u64,
    installing: bool,
}

impl Snapshots {
    /// The last entry in the newest one.
    pub(super) fn newest_index(&self) -> Option<u64> {
        self.newest_index
    }
}

impl From<&NodeStatus> for Snapshots {
    fn from(status: &NodeStatus) -> Self {
        let snapshots = &status.snapshots;
        Self {
            newest_index: snapshots.newest_index,
            newest_bytes: snapshots.newest_bytes,
            count: snapshots.count,
            disk_bytes: snapshots.disk_bytes,
            building: snapshots.building,
            built: snapshots.built,
            failed: snapshots.failed,
            last_failure: snapshots.last_failure.clone(),
            pause_us: snapshots.pause.as_micros(),
            overdue: snapshots.overdue,
            sending: snapshots.sending.iter().map(Sending::from).collect(),
            receiving: snapshots.receiving.as_ref().map(Receiving::from),
        }
    }
}

impl From<&SendingSnapshot> for Sending {
    fn from(sending: &SendingSnapshot) -> Self {
        Self {
            to: sending.to,
            index: sending.index,
            confirmed: sending.confirmed,
            bytes: sending.bytes,
            resumed_at: sending.resumed_at,
            installing: sending.is_installing,
            failures: sending.failures,
            last_failure: sending.last_failure.clone(),
        }
    }
}

impl From<&ReceivingSnapshot> for Receiving {
    fn from(receiving: &ReceivingSnapshot) -> Self {
        Self {
            from: receiving.from,
            index: receiving.index,
            received: receiving.received,
            bytes: receiving.bytes,
            installing: receiving.is_installing,
        }
    }
}

/// Lines for below the table: what is going on with the snapshots of these nodes, and what needs looking after.
pub(super) fn lines<'a>(nodes: impl Iterator<Item = &'a NodeStatus>) -> Vec<String> {
    nodes.flat_map(of_node).collect()
}

fn of_node(status: &NodeStatus) -> Vec<String> {
    let (node, snapshots) = (status.node, &status.snapshots);
    let mut lines: Vec<String> =
        status.alarms.iter().map(|alarm| format!("ALARM: node {node}: {alarm}")).collect();
    if status.lease_revoked {
        lines.push(format!(
            "node {node} serves lease reads by rounds until the next election: it has tried to hand leadership over"
        ));
    }
    if status.late_replies > 0 {
        lines.push(format!(
            "node {node}: its state machine gave {} replies too late or twice; nobody got them",
            status.late_replies
        ));
    }
    if snapshots.overdue {
        let (log, why) = (DecimalBytes(status.log_bytes_on_disk), snapshots.last_failure.as_deref());
        let why = why.map(|why| format!(" (the last snapshot failed: {why})")).unwrap_or_default();
        lines.push(format!(
            "ALARM: node {node}: its log has {log}, more than snapshots.max_log_bytes; take a snapshot with \
             `d-engine snapshot --node {node}`{why}"
        ));
    }
    if let Some(why) = snapshots.last_failure.as_deref().filter(|_| !snapshots.overdue) {
        lines.push(format!(
            "node {node} gave up its last snapshot ({} since it started): {why}",
            snapshots.failed
        ));
    }
    if let Some(bytes) = snapshots.building {
        lines.push(format!("node {node} takes a snapshot: {} so far", DecimalBytes(bytes)));
    }
    for sending in &snapshots.sending {
        let what = match sending.index {
            Some(index) => format!(
                "node {node} sends its snapshot {index} to node {}: {}",
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
        lines.push(format!("node {node} receives snapshot {index} from node {from}: {part}"));
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
