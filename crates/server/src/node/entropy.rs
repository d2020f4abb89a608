//! Random numbers from the operating system: seeds and identities.

use crate::StartError;

/// Returns sixteen random bytes.
pub(crate) fn sixteen_bytes() -> Result<[u8; 16], StartError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StartError::Entropy(error.to_string()))?;
    Ok(bytes)
}

/// Returns a random seed.
pub(crate) fn seed() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::Entropy(error.to_string()))
}
