//! Writes the store into a snapshot file and reads it back. The format is in
//! `snapshot_file.rs`.

use std::path::Path;

use d_engine_fs::Fs;
use d_engine_kv_language::rules::KvRead;
use d_engine_state_machine::{LogId, SnapshotRoom};

use crate::snapshot_file::{
    SnapshotFileError, SnapshotFileReader, SnapshotFileWriter, SnapshotHead, SnapshotRecord,
};
use crate::store::{Store, Stored};

/// Writes the store as of `last_included` into `dir`. The file is complete and synced before it
/// gets its final name.
pub(crate) fn write(
    fs: &dyn Fs,
    dir: &Path,
    last_included: LogId,
    store: &Store,
    room: &SnapshotRoom<'_>,
) -> d_engine_state_machine::Result<()> {
    let head = SnapshotHead {
        last_included,
        records: store.len() as u64,
        time_ms: KvRead::time_ms(store),
    };
    let mut out = SnapshotFileWriter::create(fs, dir, &head)?;
    for (key, Stored { value, expires_ms }) in store.records() {
        let (key, value) = (key.as_ref(), value.as_ref());
        room.written((key.len() + value.len()) as u64)?;
        out.write(&SnapshotRecord { key, value, expires_ms: *expires_ms })?;
    }
    Ok(out.finish()?)
}

/// Reads the whole file from `dir` and verifies every part of it.
pub(crate) fn read(
    fs: &dyn Fs,
    dir: &Path,
    last_included: LogId,
) -> Result<Store, SnapshotFileError> {
    let mut input = SnapshotFileReader::open(fs, dir, last_included)?;
    let mut records = Vec::new();
    while let Some(SnapshotRecord { key, value, expires_ms }) = input.next()? {
        records.push((key.into(), Stored { value: value.into(), expires_ms }));
    }
    Ok(Store::from_records(records, input.head().time_ms))
}
