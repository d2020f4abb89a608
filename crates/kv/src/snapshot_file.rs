//! The store into the file of a snapshot, and out of it. The format is `d_engine_proto::key_value::snapshot_file`'s.

use std::path::Path;

use d_engine_proto::key_value::rules::KvRead;
use d_engine_proto::key_value::snapshot_file::{
    SnapshotFileError, SnapshotFileReader, SnapshotFileWriter, SnapshotHead, SnapshotRecord,
};
use d_engine_replica::{LogId, SnapshotRoom};
use d_engine_storage::Fs;

use crate::store::{Store, Stored};

/// Writes the store as of `label` into `dir`; whole and synced before it has its name.
pub(crate) fn write(
    fs: &dyn Fs,
    dir: &Path,
    label: LogId,
    store: &Store,
    room: &SnapshotRoom<'_>,
) -> d_engine_replica::Result<()> {
    let head = SnapshotHead { label, records: store.len() as u64, time_ms: KvRead::time_ms(store) };
    let mut out = SnapshotFileWriter::create(fs, dir, &head)?;
    for (key, Stored { value, expires_ms }) in store.records() {
        let (key, value) = (key.as_ref(), value.as_ref());
        room.written((key.len() + value.len()) as u64)?;
        out.write(&SnapshotRecord { key, value, expires_ms: *expires_ms })?;
    }
    Ok(out.finish()?)
}

/// Reads the whole file from `dir` and checks every part of it.
pub(crate) fn read(fs: &dyn Fs, dir: &Path, label: LogId) -> Result<Store, SnapshotFileError> {
    let mut input = SnapshotFileReader::open(fs, dir, label)?;
    let mut records = Vec::new();
    while let Some(SnapshotRecord { key, value, expires_ms }) = input.next()? {
        records.push((key.into(), Stored { value: value.into(), expires_ms }));
    }
    Ok(Store::from_records(records, input.head().time_ms))
}
