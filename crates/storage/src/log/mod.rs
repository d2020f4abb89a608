//! The write-ahead log: engine, segments, write groups, recovery, scrub.

pub(crate) mod engine;
pub(crate) mod entry;
pub(crate) mod file_engine;
pub(crate) mod frame;
pub(crate) mod group_reader;
pub(crate) mod index;
pub(crate) mod latch;
pub(crate) mod meta;
pub(crate) mod options;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod retire;
pub(crate) mod scrub;
pub(crate) mod segment;
pub(crate) mod segment_files;
pub(crate) mod segment_name;
pub(crate) mod spares;
pub mod survey;
pub(crate) mod wal;
