//! The keys and values of the clients, as bytes.

use bytes::Bytes;

use crate::monitors::violation::{Rule, Violation};

/// Returns the two keys of a batch that expires.
pub(crate) fn expiring_slots(value: u64) -> [u64; 2] {
    [value % 5, 5 + value % 7]
}

pub(crate) fn expiring_bytes(slot: u64) -> Bytes {
    Bytes::from(format!("expiring-{slot}"))
}

pub(crate) fn key_bytes(key: u64) -> Bytes {
    Bytes::from(format!("key-{key}"))
}

/// Encodes the number, followed by padding: equal numbers give equal bytes.
pub(crate) fn value_bytes(value: u64, length: u64) -> Bytes {
    let mut bytes = value.to_be_bytes().to_vec();
    bytes.resize(usize::try_from(length.max(8)).unwrap_or(8), 0x5a);
    Bytes::from(bytes)
}

pub(crate) fn parse_value(bytes: &Bytes) -> Result<u64, Violation> {
    let head: [u8; 8] = bytes.get(..8).and_then(|head| head.try_into().ok()).ok_or_else(|| {
        Violation::of(
            Rule::Replies,
            format_args!("a value of {} bytes was read that no client wrote", bytes.len()),
        )
    })?;
    Ok(u64::from_be_bytes(head))
}
