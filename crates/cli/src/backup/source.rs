//! Where a backup comes from.

use std::time::Duration;

use d_engine_client::{BackupOf, BackupTransfer, Client, ClientError, NodeRole, NodeStatus};

use crate::args::BackupArgs;
use crate::exit::{Failure, note};
use crate::progress::waiting;
use crate::snapshot::show_building;
use crate::status::ask_everybody;

/// Interval between progress polls.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A node that can send a backup.
#[derive(Clone, Debug)]
pub(super) struct Sender {
    pub(super) node: u64,
    pub(super) address: String,
    pub(super) leads: bool,
}

/// The nodes that can send a backup, the best one first.
pub(super) struct Sources {
    client: Client,
    senders: Vec<Sender>,
    /// How a transfer that was given up is continued later.
    pub(super) continues: &'static str,
}

impl Sources {
    /// Asks all nodes for their state.
    pub(super) async fn find(args: &BackupArgs) -> Result<Self, Failure> {
        let client = args.cluster.client()?;
        let (mut found, mut silent) = (Vec::new(), Vec::new());
        for (address, answer) in ask_everybody(&client, args.cluster.endpoints.addresses()).await {
            match answer {
                Ok(status) => found.push((address, status)),
                Err(reason) => silent.push(format!("{address}: {reason}")),
            }
        }
        found.retain(|(_, status)| {
            status.stopped.is_none() && args.node.is_none_or(|node| status.node == node)
        });
        found.sort_by_key(|(_, status)| rank(status, args.stale));
        let mut senders: Vec<Sender> = Vec::new();
        for (address, status) in found {
            if !senders.iter().any(|known| known.node == status.node) {
                let leads = status.role == NodeRole::Leader;
                senders.push(Sender { node: status.node, address, leads });
            }
        }
        if senders.is_empty() {
            let wanted = args.node.map_or_else(|| "no node".to_owned(), |it| format!("node {it}"));
            let missing = match args.node {
                None => format!("{wanted} answers"),
                Some(_) => format!("{wanted} was not found"),
            };
            silent.insert(0, missing);
            return Err(Failure::failed(silent.join("; ")));
        }
        Ok(Self { client, senders, continues: "--resume continues it later" })
    }

    /// One node, which has answered.
    pub(super) fn only(client: Client, sender: Sender) -> Self {
        let continues = "run the command again, and it continues";
        Self { client, senders: vec![sender], continues }
    }

    /// Opens a backup at the first node that can send it. Waits at each for at most `timeout`.
    pub(super) async fn take(
        &self,
        what: BackupOf,
        timeout: Duration,
    ) -> Result<(Sender, BackupTransfer), Failure> {
        let patient = self.client.with_timeout(timeout);
        let mut last = None;
        for sender in &self.senders {
            if let Some(error) = last.take() {
                note(format_args!("{error}; asking node {}", sender.node));
            }
            match self.take_at(&patient, sender, what).await {
                Ok(transfer) => return Ok((sender.clone(), transfer)),
                Err(error) => last = Some(error),
            }
        }
        let reason = last.map_or_else(String::new, |error| error.to_string());
        let advice = match what {
            BackupOf::Acknowledged => {
                "; if the majority of the voters is lost, --stale backs up what a node has applied"
            }
            BackupOf::Rest { .. } => "; run it without --resume to begin a new backup",
            _ => "",
        };
        Err(Failure::failed(format!("no node sends a backup: {reason}{advice}")))
    }

    async fn take_at(
        &self,
        patient: &Client,
        sender: &Sender,
        what: BackupOf,
    ) -> Result<BackupTransfer, ClientError> {
        let bar = waiting(&format!("node {} takes a snapshot", sender.node));
        let opened = patient.backup(&sender.address, what);
        tokio::pin!(opened);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        let opened = loop {
            tokio::select! {
                opened = &mut opened => break opened,
                _ = looks.tick() => show_building(&self.client, &sender.address, &bar).await,
            }
        };
        bar.finish_and_clear();
        opened
    }

    /// Opens a backup at one node.
    pub(super) async fn open(
        &self,
        address: &str,
        what: BackupOf,
    ) -> Result<BackupTransfer, ClientError> {
        self.client.backup(address, what).await
    }
}

/// Nodes in the order in which they are asked: those that follow a leader, so that the leader is
/// not slowed down; the leader; the rest. If nothing is confirmed, the node that has applied most.
fn rank(status: &NodeStatus, stale: bool) -> (u8, u64) {
    let by_applied = u64::MAX - status.applied_index;
    let group = match (stale, status.role, status.leader) {
        (true, _, _) => 0,
        (false, NodeRole::Leader, _) => 1,
        (false, _, Some(_)) => 0,
        (false, _, None) => 2,
    };
    (group, by_applied)
}
