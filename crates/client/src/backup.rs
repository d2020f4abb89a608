//! Backups: the bytes of a snapshot archive, in order, from one node.

use d_engine_api::BackupOffer;
use d_engine_api::message::{BackupReply, BackupRequest, backup_reply::Part};
use tonic::{Status, Streaming};

use crate::ClientError;
use crate::answer::Effect;
use crate::client::Client;
use crate::node::Calls;

pub use d_engine_api::message::BackupPiece;

/// A node that sends nothing for so long has failed.
const PIECE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(60);

/// Which backup to request of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum BackupOf {
    /// A new snapshot with everything that was acknowledged to any client before the call. Needs a
    /// quorum.
    Acknowledged,
    /// A new snapshot of what the node has applied. Writes that were acknowledged after that may be
    /// missing.
    Applied,
    /// The rest of an archive whose transfer was interrupted at most ten minutes ago.
    Rest {
        /// [`BackupOffer::sha256`].
        sha256: [u8; 32],
        /// How many of its bytes are here.
        from_offset: u64,
    },
}

/// A backup on its way, from [`Client::backup`]. Dropping it ends the transfer.
#[derive(Debug)]
pub struct BackupTransfer {
    client: Client,
    endpoint: String,
    offer: BackupOffer,
    /// How many bytes of the archive are here.
    received: u64,
    stream: Streaming<BackupReply>,
}

impl Client {
    /// Requests a backup of the node at `endpoint`, a snapshot archive in the format of
    /// `docs/file-format.md`. Only this node is called. Returns once the node has taken the
    /// snapshot, which may take minutes: set a timeout for it with [`Client::with_timeout`]. The
    /// timeout does not include the transfer.
    ///
    /// Write the bytes with `d_engine::offline::backup::BackupFile`, which verifies the archive as
    /// a whole and survives interruptions; or use the command `d-engine backup`, which does both.
    ///
    /// # Errors
    /// [`ClientError::SnapshotFailed`] says why there is no snapshot, also if the rest of an
    /// archive is requested and the node does not have it any more.
    pub async fn backup(
        &self,
        endpoint: &str,
        what: BackupOf,
    ) -> Result<BackupTransfer, ClientError> {
        let node = self.nodes.at(endpoint)?;
        let request = match what {
            BackupOf::Acknowledged => BackupRequest::default(),
            BackupOf::Applied => BackupRequest { stale: true, ..BackupRequest::default() },
            BackupOf::Rest { sha256, from_offset } => {
                BackupRequest { stale: false, sha256: sha256.to_vec().into(), from_offset }
            }
        };
        let call = |mut calls: Calls, _| {
            let request = request.clone();
            async move {
                let mut stream = calls.backup(request).await?.into_inner();
                match stream.message().await?.and_then(|reply| reply.part) {
                    Some(Part::Offer(offer)) => {
                        let offer = BackupOffer::try_from(offer);
                        Ok((stream, offer.map_err(|error| Status::unknown(error.to_string()))?))
                    }
                    _ => Err(Status::unknown("the node sent no offer before the backup")),
                }
            }
        };
        let (stream, offer) = self.route(Effect::Read).run_at(&node, call).await?;
        let received = match what {
            BackupOf::Rest { from_offset, .. } => from_offset,
            BackupOf::Acknowledged | BackupOf::Applied => 0,
        };
        let (client, endpoint) = (self.clone(), endpoint.to_owned());
        Ok(BackupTransfer { client, endpoint, offer, received, stream })
    }
}

impl BackupTransfer {
    /// Returns what the node sends.
    #[must_use]
    pub fn offer(&self) -> &BackupOffer {
        &self.offer
    }

    /// Returns the next piece; `None` only once all of the archive has come. Waits for a piece for
    /// at most a minute.
    ///
    /// # Errors
    /// See [`ClientError`]. Request the rest with [`BackupOf::Rest`].
    pub async fn next(&mut self) -> Result<Option<BackupPiece>, ClientError> {
        loop {
            let waited = tokio::time::timeout(PIECE_TIMEOUT, self.stream.message()).await;
            let message = waited.unwrap_or_else(|_| {
                Err(Status::unavailable(format!("no bytes for {PIECE_TIMEOUT:?}")))
            });
            match message.map_err(|status| self.client.error_at(&self.endpoint, &status))? {
                Some(BackupReply { part: Some(Part::Piece(piece)) }) => {
                    self.received = piece.offset.saturating_add(piece.data.len() as u64);
                    return Ok(Some(piece));
                }
                Some(_) => {}
                None if self.received >= self.offer.bytes => return Ok(None),
                // A node that stops may be unable to say so.
                None => {
                    return Err(ClientError::Unreachable {
                        endpoint: self.endpoint.clone(),
                        reason: format!(
                            "the node ended the transfer after {} of {} bytes",
                            self.received, self.offer.bytes
                        ),
                    });
                }
            }
        }
    }
}
