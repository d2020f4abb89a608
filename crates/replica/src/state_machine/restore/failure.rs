//! What a failure to restore a snapshot means: damage of the archive, or a cause that an operator
//! can remove.

use std::io::ErrorKind;
use std::path::Path;

use d_engine_storage::snapshot::SnapshotError;

use crate::StopReason;

/// Why a snapshot was not restored.
pub(super) enum Restore {
    /// It is damaged; an older one may be usable.
    Unusable(SnapshotError),
    /// The node must not start.
    Failed(StopReason),
}

impl Restore {
    /// Classifies an error of unpacking into `unpacked`. A full disk, a process without file
    /// descriptors and errors on the unpacked files do not mean that the archive is damaged: once
    /// the cause is repaired, it is usable.
    pub(super) fn of(error: SnapshotError, unpacked: &Path) -> Self {
        const NO_DESCRIPTORS: [i32; 2] = [23, 24];
        let next = match &error {
            SnapshotError::NoSpace { .. } => " and start again",
            SnapshotError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                "; make space on this disk and start again"
            }
            SnapshotError::Io { source, .. }
                if source.raw_os_error().is_some_and(|number| NO_DESCRIPTORS.contains(&number)) =>
            {
                "; raise the limit of open files (ulimit -n) and start again"
            }
            SnapshotError::Io { path, .. } if path.starts_with(unpacked) => {
                "; check this disk and start again"
            }
            _ => return Self::Unusable(error),
        };
        Self::Failed(StopReason::new(format_args!(
            "a snapshot could not be unpacked: {error}{next}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;

    /// Only damage of the archive itself is a reason to use an older one.
    #[test]
    fn an_error_of_the_disk_or_the_process_is_not_taken_for_damage_of_the_archive() {
        let (archive, unpacked) =
            ("/data/snapshots/snap-1-9.snap", Path::new("/data/snapshots/unpacked"));
        let of = |path: &str, source: io::Error| {
            let error = SnapshotError::Io {
                operation: "write",
                path: PathBuf::from(path),
                source: Arc::new(source),
            };
            match Restore::of(error, unpacked) {
                Restore::Failed(reason) => Some(reason.to_string()),
                Restore::Unusable(_) => None,
            }
        };
        for (number, advice) in [
            (28, "make space"),
            (122, "make space"),
            (24, "ulimit"),
            (23, "ulimit"),
            (5, "this disk"),
        ] {
            let told = of("/data/snapshots/unpacked/kv.data", io::Error::from_raw_os_error(number));
            assert!(told.as_ref().is_some_and(|told| told.contains(advice)), "{number}: {told:?}");
        }
        assert!(of(archive, io::Error::from_raw_os_error(24)).is_some());
        assert_eq!(
            of(archive, io::Error::from_raw_os_error(5)),
            None,
            "a bad sector in the archive"
        );
    }
}
