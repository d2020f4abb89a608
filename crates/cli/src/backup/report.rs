//! What `d-engine backup` prints.

use std::path::Path;

use d_engine_client::BackupOffer;
use d_engine_offline::backup::SnapshotHeader;
use d_engine_offline::inspect::rfc3339;
use indicatif::DecimalBytes;
use serde::Serialize;

use super::source::Sender;
use crate::args::BackupArgs;
use crate::exit::{Failure, say};
use crate::json::hex;

/// A finished backup.
#[derive(Serialize, Debug)]
pub(super) struct Report {
    file: String,
    node: u64,
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
    pub(super) fn of(sender: &Sender, offer: &BackupOffer, header: &SnapshotHeader) -> Self {
        Self {
            file: String::new(),
            node: sender.node,
            leads: sender.leads,
            cluster_id: header.cluster.to_string(),
            index: offer.index,
            term: offer.term,
            complete_up_to: offer.complete_up_to,
            log_time: rfc3339(header.facts.time_ms),
            bytes: offer.bytes,
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
        say(format_args!("from node {} ({role}): {}", self.node, self.promise(args)));
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

    fn promise(&self, args: &BackupArgs) -> String {
        match self.complete_up_to {
            Some(_) => "every write that was acknowledged before this command is in it".to_owned(),
            None if args.resume => {
                "writes that were acknowledged after the first run began may be missing".to_owned()
            }
            None => format!(
                "as of entry {}; writes that were acknowledged after it may be missing",
                self.index
            ),
        }
    }
}
