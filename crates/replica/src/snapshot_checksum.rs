//! placeholder until merged
use std::path::Path;
/// Checksum of a snapshot directory.
///
/// # Errors
/// I/O.
pub fn snapshot_checksum(_dir: &Path) -> crate::Result<[u8; 32]> {
    Ok([0; 32])
}
