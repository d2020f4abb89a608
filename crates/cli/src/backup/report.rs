//! What `d-engine backup` prints.

use std::path::Path;

use d_engine_offline::inspect::rfc3339;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::transfer::Received;
use crate::args::BackupArgs;
use crate::exit::{Failure, say};
use crate::json::hex;

/// A finished backup.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    file: String,
    /// Who has sent the end of it; null: all of it was there.
    node: Option<u64>,
    #[serde(skip)]
    leads: bool,
    cluster_id: String,
    index: u64,
    term: u64,
    /// Every acknowledged write is at this index or before it; null: not confirmed.
    complete_up_to: Option<u64>,
    log_time: String,
    bytes: u64,
    sha256: String,
}

impl Report {
    pub(super) fn of(received: &Received) -> Self {
        let Received { sender, offer, complete_up_to, header } = received;
        Self {
            file: String::new(),
            node: sender.as_ref().map(|sender| sender.node),
            leads: sender.as_ref().is_some_and(|sender| sender.leads),
            cluster_id: header.cluster.to_string(),
            index: offer.last_included.index.get(),
            term: offer.last_included.term.get(),
            complete_up_to: *complete_up_to,
            log_time: rfc3339(header.facts.time_ms),
            bytes: offer.len,
            sha256: hex(&offer.sha256),
        }
    }

    pub(super) fn print(mut self, file: &Path, args: &BackupArgs) -> Result<(), Failure> {
        self.file = file.display().to_string();
        if args.json {
            let json = serde_json::to_string_pretty(&self);
            say(json.map_err(|error| {
                Failure::failed(format!("the JSON cannot be written: {error}"))
            })?);
            return Ok(());
        }
        let role = if self.leads { "leader" } else { "follower" };
        let from = match self.node {
            Some(node) => format!("from node {node} ({role})"),
            None => "everything was there already".to_owned(),
        };
        say(format_args!("{from}: {}", self.promise()));
        say(format_args!(
            "entry {} of term {} of cluster {}, {}, SHA-256 {}: verified and synced in {}",
            self.index,
            self.term,
            self.cluster_id,
            DecimalBytes(self.bytes),
            self.sha256,
            self.file
        ));
        Ok(())
    }

    /// Whether an earlier run has confirmed what was acknowledged before it is not recorded.
    fn promise(&self) -> String {
        match self.complete_up_to {
            Some(_) => "every write that was acknowledged before this command is in it".to_owned(),
            None => format!(
                "as of entry {}; writes that were acknowledged after it may be missing",
                self.index
            ),
        }
    }
}
