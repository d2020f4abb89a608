//! The rows of `d-engine status`: one per node, as a line of the table or an object of the JSON.

use d_engine_client::NodeStatus;
use indicatif::DecimalBytes;
use serde::ser::{Serialize, SerializeStruct as _, Serializer};

use super::answers::{Answers, members};
use super::snapshots::Json;
use crate::exit::say;
use crate::json::hex;

/// One row: a node that answered, or an address that did not.
#[derive(Debug)]
pub(super) struct Row {
    /// `None` for an address that does not answer and is in no member list.
    node: Option<u64>,
    address: Option<String>,
    /// The node's status, or why there is none.
    answer: Result<NodeStatus, String>,
}

impl Row {
    /// Returns the status of a node that answered.
    fn status(&self) -> Option<&NodeStatus> {
        self.answer.as_ref().ok()
    }

    /// Returns the status of a node that answered and has not stopped: one that has stopped reports
    /// no numbers.
    fn running(&self) -> Option<&NodeStatus> {
        self.status().filter(|status| status.stopped.is_none())
    }

    fn role(&self) -> Option<&'static str> {
        let stopped = self.status().map(|_| "stopped");
        self.running().map(|status| status.role.as_str()).or(stopped)
    }

    /// Returns why the node has stopped, why its state machine has halted, why it cannot be
    /// reached, or which peers refuse it or are refused by it.
    fn reason(&self) -> Option<String> {
        let status = match &self.answer {
            Ok(status) => status,
            Err(reason) => return Some(reason.clone()),
        };
        let halted = status.stopped.clone().or_else(|| status.apply_stopped.clone());
        halted.or_else(|| Some(status.refusals.join("; ")).filter(|refusals| !refusals.is_empty()))
    }

    /// Returns the cells of the row in the table.
    fn cells(&self) -> [String; HEAD.len()] {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let number = |value: Option<u64>| or_dash(value.map(|number| number.to_string()));
        let (status, running) = (self.status(), self.running());
        let log = running.map(|status| DecimalBytes(status.log_bytes_on_disk).to_string());
        let ready = status.map(|status| if status.ready { "yes" } else { "no" }.to_owned());
        [
            number(self.node),
            or_dash(self.address.clone()),
            self.role().unwrap_or("unreachable").to_owned(),
            number(running.map(|status| status.term)),
            number(status.and_then(|status| status.leader)),
            number(running.map(|status| status.commit_index)),
            number(running.map(|status| status.applied_index)),
            number(status.and_then(|status| Some(status.snapshots.newest?.index))),
            or_dash(log),
            or_dash(ready),
            self.reason().unwrap_or_default(),
        ]
    }
}

/// The object of a node in the JSON. What a node does not report is null.
impl Serialize for Row {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (status, running) = (self.status(), self.running());
        let mut row = serializer.serialize_struct("Row", 24)?;
        row.serialize_field("node", &self.node)?;
        row.serialize_field("address", &self.address)?;
        row.serialize_field("reachable", &status.is_some())?;
        row.serialize_field("role", &self.role())?;
        row.serialize_field("term", &running.map(|status| status.term))?;
        row.serialize_field("leader", &status.and_then(|status| status.leader))?;
        row.serialize_field("commit_index", &running.map(|status| status.commit_index))?;
        row.serialize_field("applied_index", &running.map(|status| status.applied_index))?;
        // Entries that the node knows to be committed and has not applied yet.
        let lag = |status: &NodeStatus| status.commit_index.saturating_sub(status.applied_index);
        row.serialize_field("apply_lag", &running.map(lag))?;
        row.serialize_field("persisted_index", &running.map(|status| status.persisted_index))?;
        row.serialize_field("records", &running.and_then(|status| status.records))?;
        row.serialize_field("log_bytes_on_disk", &running.map(|status| status.log_bytes_on_disk))?;
        row.serialize_field("snapshots", &status.map(|status| Json(&status.snapshots)))?;
        row.serialize_field("ready", &status.map(|status| status.ready))?;
        row.serialize_field("version", &status.map(|status| &status.version))?;
        row.serialize_field("cluster_id", &status.map(|status| hex(&status.cluster_id)))?;
        row.serialize_field("group", &status.map(|status| status.group))?;
        row.serialize_field("incarnation", &status.map(|status| hex(&status.incarnation)))?;
        // In the form that `skip-entry` takes.
        let halted_at = status.and_then(|status| status.halted_at);
        row.serialize_field("halted_at", &halted_at.map(|entry| entry.to_string()))?;
        // Command versions are omitted where no program knows them.
        let decodes = status.map(|status| status.command_version_max);
        match decodes.filter(|version| *version > 0) {
            Some(version) => row.serialize_field("command_version_max", &version)?,
            None => row.skip_field("command_version_max")?,
        }
        let accepts = status.and_then(|status| status.command_version_allowed);
        match accepts.filter(|version| *version > 0) {
            Some(version) => row.serialize_field("command_version_allowed", &version)?,
            None => row.skip_field("command_version_allowed")?,
        }
        row.serialize_field("reason", &self.reason())?;
        let none = Vec::new();
        row.serialize_field("refusals", status.map_or(&none, |status| &status.refusals))?;
        row.serialize_field("alarms", status.map_or(&none, |status| &status.alarms))?;
        row.end()
    }
}

/// Returns a row for each node, sorted.
pub(super) fn rows(answers: &Answers) -> Vec<Row> {
    let members = members(answers);
    let mut rows: Vec<Row> = Vec::new();
    for (address, answer) in answers {
        let named = members.iter().find(|(_, of)| of.as_deref() == Some(address));
        let node = match answer {
            Ok(status) => Some(status.node),
            Err(_) => named.map(|(node, _)| *node),
        };
        rows.push(Row { node, address: Some(address.clone()), answer: answer.clone() });
    }
    for node in members.iter().filter(|(_, address)| address.is_none()).map(|(node, _)| *node) {
        if !rows.iter().any(|row| row.node == Some(node)) {
            let answer = Err("it has no client address".to_owned());
            rows.push(Row { node: Some(node), address: None, answer });
        }
    }
    rows.sort_by_key(|row| (row.node.unwrap_or(u64::MAX), row.address.clone()));
    rows
}

const HEAD: [&str; 11] = [
    "NODE", "ADDRESS", "ROLE", "TERM", "LEADER", "COMMIT", "APPLIED", "SNAPSHOT", "LOG", "READY",
    "REASON",
];

/// Prints the rows as a table.
pub(super) fn print_table(rows: &[Row]) {
    let mut table = vec![HEAD.map(str::to_owned)];
    table.extend(rows.iter().map(Row::cells));
    let width =
        |column: usize| table.iter().filter_map(|row| row.get(column)).map(String::len).max();
    let widths: Vec<usize> = (0..HEAD.len()).map(|column| width(column).unwrap_or(0)).collect();
    for row in &table {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        say(cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    // Responses of real clusters are tested in `tests/`.
    use d_engine_client::{EntryId, NodeRole};

    use super::*;
    use crate::status::leader_with_quorum;

    fn json(row: &Row) -> String {
        serde_json::to_string(row).unwrap_or_else(|error| error.to_string())
    }

    fn row(answer: Result<NodeStatus, String>) -> Row {
        Row { node: Some(2), address: Some("n2:1".to_owned()), answer }
    }

    #[test]
    fn an_address_without_an_answer_is_a_row_of_its_own() {
        let answers = Answers::from([("127.0.0.1:1".to_owned(), Err("refused".to_owned()))]);
        let rows = rows(&answers);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].status(), None);
        assert_eq!(rows[0].reason().as_deref(), Some("refused"));
        assert_eq!(leader_with_quorum(&answers), None);
    }

    /// Programs read this: keys are added, never renamed.
    #[test]
    fn the_json_of_a_row_has_every_key_and_what_is_not_reported_is_null() {
        assert_eq!(
            json(&row(Err("refused".to_owned()))),
            r#"{"node":2,"address":"n2:1","reachable":false,"role":null,"term":null,"leader":null,"commit_index":null,"applied_index":null,"apply_lag":null,"persisted_index":null,"records":null,"log_bytes_on_disk":null,"snapshots":null,"ready":null,"version":null,"cluster_id":null,"group":null,"incarnation":null,"halted_at":null,"reason":"refused","refusals":[],"alarms":[]}"#
        );
        let mut status = NodeStatus::default();
        status.role = NodeRole::Leader;
        status.term = 3;
        status.commit_index = 9;
        status.applied_index = 7;
        status.records = Some(5);
        status.halted_at = Some(EntryId { term: 3, index: 8 });
        status.command_version_max = 2;
        status.command_version_allowed = Some(1);
        let running = json(&row(Ok(status.clone())));
        let numbers = r#""reachable":true,"role":"leader","term":3,"leader":null,"commit_index":9,"applied_index":7,"apply_lag":2,"persisted_index":0,"records":5,"log_bytes_on_disk":0,"snapshots":{"#;
        assert!(running.contains(numbers), "{running}");
        let halted = r#""halted_at":"3:8","command_version_max":2,"command_version_allowed":1,"reason":null"#;
        assert!(running.contains(halted), "{running}");
        status.stopped = Some("disk".to_owned());
        let stopped = json(&row(Ok(status)));
        let numbers = r#""role":"stopped","term":null,"leader":null,"commit_index":null,"applied_index":null,"apply_lag":null,"persisted_index":null,"records":null,"log_bytes_on_disk":null,"snapshots":{"#;
        assert!(stopped.contains(numbers) && stopped.contains(r#""reason":"disk""#), "{stopped}");
    }
}
