//! The snapshots of a directory.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use d_engine_core::LogId;
use d_engine_storage::snapshot::{
    ChunkDamage, SNAPSHOT_DIR, SnapshotContent, SnapshotError, SnapshotHeader, SnapshotSurvey,
    archive_name, is_archive,
};
use d_engine_storage::survey::Survey;

use super::report::{InspectError, Progress, Snapshots};

/// A finished snapshot of a directory.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    /// The file.
    pub path: PathBuf,
    /// Its length in bytes.
    pub len: u64,
    /// Its header, if that verifies.
    pub header: Option<Arc<SnapshotHeader>>,
    /// What is known of it.
    pub state: SnapshotState,
}

/// What is known of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotState {
    /// Header and trailer verify; the content was not read.
    Unchecked,
    /// Every checksum matches.
    Whole,
    /// These places do not verify.
    Damaged(Vec<ChunkDamage>),
    /// It verifies, but a start does not use it, for this reason.
    Unusable(String),
}

impl SnapshotState {
    /// Whether a start may use it.
    pub(crate) fn may_be_used(&self) -> bool {
        matches!(self, Self::Unchecked | Self::Whole)
    }

    /// Whether it does not verify.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Damaged(_))
    }
}

impl SnapshotFile {
    /// Returns the log id of the last included entry.
    #[must_use]
    pub fn id(&self) -> Option<LogId> {
        self.header.as_ref().map(|header| header.facts.last_included)
    }
}

/// Returns the snapshots, newest first, and the names of everything else in their directory.
pub(super) fn find(
    survey: &Survey,
    which: Snapshots,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(Vec<SnapshotFile>, Vec<String>), InspectError> {
    let dir = survey.dir().join(SNAPSHOT_DIR);
    let names = match survey.fs().list(&dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        listed => listed.map_err(|source| SnapshotError::Io {
            operation: "list",
            path: dir.clone(),
            source: Arc::new(source),
        })?,
    };
    let (archives, others): (Vec<String>, _) = names.into_iter().partition(|name| is_archive(name));
    let mut found = Vec::new();
    for name in archives {
        match read(survey, dir.join(&name), which, progress) {
            // A process that works in the directory has pruned it meanwhile.
            Err(InspectError::Snapshot(SnapshotError::Io { source, .. }))
                if source.kind() == ErrorKind::NotFound => {}
            read => found.push(read?),
        }
    }
    found.sort_by_key(|file| std::cmp::Reverse(file.id()));
    Ok((found, others))
}

fn read(
    survey: &Survey,
    path: PathBuf,
    which: Snapshots,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<SnapshotFile, InspectError> {
    let archive = SnapshotSurvey::of(&**survey.fs(), &path)?;
    let (len, header) = (archive.len(), archive.header().ok().cloned());
    let newer = archive.header().err().filter(|it| !matches!(it, SnapshotError::Damaged { .. }));
    let state = if let Some(error) = newer {
        SnapshotState::Unusable(error.to_string())
    } else if let Some(reason) = header.as_ref().and_then(|it| not_ours(survey, it, &path)) {
        SnapshotState::Unusable(reason)
    } else {
        let is_readable = archive.header().is_ok() && archive.announced_sha256().is_ok();
        match which {
            Snapshots::HeadersOnly if is_readable => SnapshotState::Unchecked,
            _ => state_of(&archive, progress)?,
        }
    };
    Ok(SnapshotFile { path, len, header, state })
}

fn state_of(
    archive: &SnapshotSurvey,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<SnapshotState, InspectError> {
    let read = archive.read(&mut |bytes| progress(Progress::Snapshot(bytes)));
    match read {
        Err(SnapshotError::Aborted) => Err(InspectError::Stopped),
        Err(error) => Err(error.into()),
        Ok(content) if content.is_whole() => Ok(SnapshotState::Whole),
        Ok(SnapshotContent { damage, .. }) => Ok(SnapshotState::Damaged(damage)),
    }
}

/// Returns why a start would not use an intact archive.
fn not_ours(survey: &Survey, header: &SnapshotHeader, path: &std::path::Path) -> Option<String> {
    let owner = survey.owner()?;
    if header.cluster != owner.cluster {
        return Some(format!("it is of cluster {}, not {}", header.cluster, owner.cluster));
    }
    if header.group != survey.group() {
        return Some(format!("it is of Raft group {}", header.group.get()));
    }
    let expected = archive_name(header.facts.last_included);
    let is_named = path.file_name().is_some_and(|name| name == expected.as_str());
    (!is_named).then(|| format!("its header requires the name {expected}"))
}
