//! Snapshot archives: one file per snapshot, from the directory that a state machine wrote to the
//! one that another node's state machine reads.
//!
//! ```text
//! staging/  --pack-->  snap-T-I.snap  --read_at ... write-->  snap-T-I-SHA.part  --finish-->  snap-T-I.snap
//!                                                                                --unpack-->  unpacked/
//! ```
//!
//! Start at [`SnapshotStore`]. `docs/file-format.md` draws every byte. A finished archive comes into
//! being in one step (temporary file, sync, rename, sync of the directory) and is never written again.
//! Nothing that a file or a sender says about lengths, counts and names is believed before it is
//! compared with a bound.

mod archive;
mod chunks;
mod compress;
mod content;
mod directory;
mod error;
mod header;
mod hold;
mod names;
mod pace;
mod pack;
mod prune;
mod receive;
mod store;
mod unpack;

pub use archive::{Piece, SnapshotArchive};
pub use content::content_checksum;
pub use error::SnapshotError;
pub use header::{Compression, ENGINE_FORMAT, SnapshotFacts, SnapshotFile, SnapshotHeader};
pub use hold::Hold;
pub use pace::{FullSpeed, Pace};
pub use pack::Staging;
pub use receive::{Offer, Receiver};
pub use store::{Coverage, Health, SnapshotInfo, SnapshotOptions, SnapshotReport, SnapshotStore};
