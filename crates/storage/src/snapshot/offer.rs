//! What identifies an archive that is sent, and the partial file that holds it until it is
//! complete.

use d_engine_core::LogId;

use super::archive::SnapshotArchive;
use super::error::hex;

/// What a sender announces. Two nodes that have the same archive announce the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Log id of the last included entry.
    pub last_included: LogId,
    /// Length of the archive in bytes.
    pub len: u64,
    /// [`SnapshotArchive::sha256`].
    pub sha256: [u8; 32],
}

impl From<&SnapshotArchive> for Offer {
    fn from(archive: &SnapshotArchive) -> Self {
        Self {
            last_included: archive.last_included(),
            len: archive.len(),
            sha256: archive.sha256(),
        }
    }
}

const PARTIAL: &str = ".part";

/// Returns the name of the partial file. It contains the whole offer, so that bytes of two archives
/// are never in one file.
pub(super) fn partial_name(offer: &Offer) -> String {
    format!(
        "snap-{}-{}-{}{PARTIAL}",
        offer.last_included.term,
        offer.last_included.index,
        hex(&offer.sha256)
    )
}

/// Whether a file is a partly received archive.
pub(super) fn is_partial(name: &str) -> bool {
    name.starts_with("snap-") && name.ends_with(PARTIAL)
}
