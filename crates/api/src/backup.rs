//! What a node offers as a backup.

use crate::message;

/// The snapshot archive that a node sends as a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct BackupOffer {
    /// The node that sends it.
    pub node: u64,
    /// Last included index.
    pub index: u64,
    /// Last included term.
    pub term: u64,
    /// Length of the archive in bytes.
    pub bytes: u64,
    /// SHA-256 of the archive, which identifies it.
    pub sha256: [u8; 32],
    /// Every write that was acknowledged before the call is at this index or before it, and in the
    /// archive. `None` if that was not confirmed.
    pub complete_up_to: Option<u64>,
}

/// An offer without a SHA-256 of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the node offers a backup with a SHA-256 of {0} bytes instead of 32")]
pub struct NotAnOffer(usize);

impl TryFrom<message::BackupOffer> for BackupOffer {
    type Error = NotAnOffer;

    fn try_from(offer: message::BackupOffer) -> Result<Self, NotAnOffer> {
        let message::BackupOffer { node, index, term, bytes, sha256, complete_up_to } = offer;
        let sha256 = <[u8; 32]>::try_from(&sha256[..]).map_err(|_| NotAnOffer(sha256.len()))?;
        Ok(Self { node, index, term, bytes, sha256, complete_up_to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_taken_over_field_by_field_and_not_without_its_checksum() {
        let sent = message::BackupOffer {
            node: 3,
            index: 20,
            term: 7,
            bytes: 1_000,
            sha256: vec![9; 32].into(),
            complete_up_to: Some(19),
        };
        let offer = BackupOffer::try_from(sent.clone());
        let expected = BackupOffer {
            node: 3,
            index: 20,
            term: 7,
            bytes: 1_000,
            sha256: [9; 32],
            complete_up_to: Some(19),
        };
        assert_eq!(offer, Ok(expected));
        let short = message::BackupOffer { sha256: vec![9; 31].into(), ..sent };
        assert_eq!(BackupOffer::try_from(short), Err(NotAnOffer(31)));
    }
}
