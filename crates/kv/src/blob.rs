//! Bytes of a key or a value.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes stored with their reference count: one allocation, 16 bytes in the map, and a clone that
/// does not allocate. A [`Bytes`] takes twice the space in the map and allocates its reference
/// count at the first clone, which for a copied leaf of the map means for every record in it
/// (`docs/performance.md` has the figures).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Blob(Arc<[u8]>);

impl From<&[u8]> for Blob {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl From<Blob> for Bytes {
    /// Shares the bytes with the map; they are not copied.
    fn from(blob: Blob) -> Self {
        Self::from_owner(blob)
    }
}

impl AsRef<[u8]> for Blob {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Blob {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}
