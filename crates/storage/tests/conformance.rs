//! The file-based storage engine keeps the contract of a storage engine.

use std::sync::Arc;

use d_engine_storage::{FileStorageEngine, FileStorageOptions, RealFs};

fn small() -> FileStorageOptions {
    FileStorageOptions {
        segment_bytes: 4 << 10,
        grow_bytes: 1 << 10,
        prepare_bytes: 2 << 10,
        ..FileStorageOptions::default()
    }
}

d_engine_conformance::storage_engine_suite!(
    d_engine_conformance::StorageEngineCase::new(|dir| FileStorageEngine::new(
        dir,
        small(),
        Arc::new(RealFs::new())
    ))
    .on_fs(|fs, dir| FileStorageEngine::new(dir, small(), fs))
);
