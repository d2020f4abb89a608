//! Snapshot archives: one file per snapshot. An archive is packed from the directory that a state
//! machine wrote, and unpacked into the directory that another node's state machine reads.
//!
//! ```text
//! sender:    staging/ --pack--> snap-T-I.snap --read_at--> pieces
//! receiver:  pieces --write--> snap-T-I-SHA.part --finish--> snap-T-I.snap --unpack--> unpacked/
//! ```
//!
//! Start at [`SnapshotStore`]. `docs/file-format.md` draws every byte. A finished archive appears
//! in one step (temporary file, sync, rename, sync of the directory) and is never written again.
//! Lengths, counts and names from a file or a sender are compared with a bound before they are
//! used.

mod archive;
mod backup;
mod chunks;
mod compress;
mod directory;
mod error;
mod header;
mod hold;
mod info;
mod offer;
mod pace;
mod pack;
mod partial;
mod prune;
mod receive;
mod repack;
mod store;
mod survey;
mod unpack;

pub use crate::fs::tree::TreeFile as SnapshotFile;
pub use archive::{Piece, SnapshotArchive};
pub use backup::BackupFile;
pub use directory::{FETCHED_NAME, SNAPSHOT_DIR, archive_name, is_archive};
pub use error::SnapshotError;
pub use header::{Compression, ENGINE_FORMAT, SnapshotFacts, SnapshotHeader};
pub use hold::Hold;
pub use info::{Coverage, Health, SnapshotInfo, SnapshotOptions, SnapshotReport};
pub use offer::Offer;
pub use pace::{FullSpeed, Pace};
pub use pack::Staging;
pub use receive::Receiver;
pub use store::SnapshotStore;
pub use survey::{ChunkDamage, SnapshotContent, SnapshotSurvey};
