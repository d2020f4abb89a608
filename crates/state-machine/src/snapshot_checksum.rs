//! The checksum with which the engine and a state machine verify that a snapshot is complete.

use std::io;
use std::path::Path;

use d_engine_fs::tree::{TreeError, tree_checksum};
use d_engine_fs::{FileKind, Fs, RealFs};

/// SHA-256 over every regular file below `dir`, in byte order of the relative paths (joined by
/// `/`): length of the path as u32, the path, length of the content as u64, the content; numbers
/// little-endian. Empty directories leave no trace.
///
/// A state machine returns it from `generate_snapshot_data` and compares it with
/// `SnapshotMetadata::checksum` before it installs a snapshot.
///
/// # Errors
/// An I/O error, or `InvalidData` naming the path for a link, a special file, a path that is not
/// UTF-8, or a file that changed while it was read: the snapshot must not be used.
pub fn snapshot_checksum(dir: &Path) -> io::Result<[u8; 32]> {
    refuse_unreadable_names(dir)?;
    snapshot_checksum_in(&RealFs::new(), dir)
}

/// As [`snapshot_checksum`], through a given file system. Names that are not UTF-8 are invisible to
/// [`Fs`] and left out.
///
/// # Errors
/// As [`snapshot_checksum`].
pub fn snapshot_checksum_in(fs: &dyn Fs, dir: &Path) -> io::Result<[u8; 32]> {
    if fs.kind(dir)? != FileKind::Dir {
        return Err(refused(dir, "is not a directory"));
    }
    tree_checksum(fs, dir).map_err(|error| match error {
        TreeError::Io { operation, path, source } => {
            io::Error::new(source.kind(), format!("{operation} {}: {source}", path.display()))
        }
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    })
}

/// A file whose name [`Fs`] leaves out would be missing in the snapshot silently.
fn refuse_unreadable_names(dir: &Path) -> io::Result<()> {
    if !std::fs::symlink_metadata(dir)?.is_dir() {
        return Err(refused(dir, "is not a directory"));
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_none() {
            return Err(refused(&entry.path(), "has a name that is not UTF-8"));
        }
        // `DirEntry::file_type` does not follow links.
        if entry.file_type()?.is_dir() {
            refuse_unreadable_names(&entry.path())?;
        }
    }
    Ok(())
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot path {} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use d_engine_fs::sim::{SimFs, SimImage};
    use sha2::{Digest, Sha256};

    use super::*;

    /// More than is read at a time, and not a multiple of it.
    const LONG: usize = 300_001;

    fn hex(bytes: [u8; 32]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        dir
    }

    fn checksum(files: &[(&str, &[u8])]) -> [u8; 32] {
        snapshot_checksum(tree(files).path()).unwrap()
    }

    /// The value is part of the snapshot format: it may never change.
    #[test]
    fn the_checksum_of_a_known_tree_is_the_golden_one() {
        // The same bytes put together by hand, independent of the code above.
        let mut by_hand = Vec::new();
        for (name, content) in [("a", &b"first"[..]), ("dir.x", b""), ("dir/b", b"second")] {
            by_hand.extend_from_slice(&(name.len() as u32).to_le_bytes());
            by_hand.extend_from_slice(name.as_bytes());
            by_hand.extend_from_slice(&(content.len() as u64).to_le_bytes());
            by_hand.extend_from_slice(content);
        }
        let found = checksum(&[("dir/b", b"second"), ("dir.x", b""), ("a", b"first")]);
        assert_eq!(found, <[u8; 32]>::from(Sha256::digest(&by_hand)));
        assert_eq!(hex(found), "7a6ec88e208dce264a23737dcdf9268b999bf8751219eaa8ad3ee9974647af70");
    }

    #[test]
    fn an_empty_directory_has_the_checksum_of_nothing() {
        assert_eq!(
            hex(checksum(&[])),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn any_change_of_content_name_or_place_changes_the_checksum() {
        let original = checksum(&[("a", b"12"), ("b", b"3")]);
        for changed in [
            checksum(&[("a", b"12"), ("b", b"4")]),
            checksum(&[("a", b"1"), ("b", b"23")]),
            checksum(&[("a", b"12"), ("c", b"3")]),
            checksum(&[("a", b"12"), ("d/b", b"3")]),
            checksum(&[("a", b"12")]),
        ] {
            assert_ne!(changed, original);
        }
    }

    #[test]
    fn a_file_longer_than_the_buffer_is_read_whole() {
        let mut content = vec![1; LONG];
        let original = checksum(&[("a", &content)]);
        content[LONG - 1] = 2;
        assert_ne!(checksum(&[("a", &content)]), original);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused_by_name() {
        let outside = tree(&[("secret", b"x"), ("sub/secret", b"x")]);
        for target in ["secret", "sub"] {
            let dir = tree(&[("a", b"1")]);
            std::os::unix::fs::symlink(outside.path().join(target), dir.path().join("link"))
                .unwrap();
            let error = snapshot_checksum(dir.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("link"), "{error}");
        }
        let dir = tree(&[]);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(outside.path(), &link).unwrap();
        assert!(snapshot_checksum(&link).is_err(), "the directory itself is a link");
    }
    #[cfg(target_os = "linux")]
    #[test]
    fn a_name_that_is_not_utf8_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let dir = tree(&[("sub/a", b"1")]);
        let name = std::ffi::OsStr::from_bytes(b"sub/\xff");
        fs::write(dir.path().join(name), "x").unwrap();
        let error = snapshot_checksum(dir.path()).unwrap_err();
        assert!(error.to_string().contains("UTF-8"), "{error}");
    }

    /// The simulator's machines get the same value as those on a real disk.
    #[test]
    fn every_file_system_gives_the_same_checksum() {
        let files: [(&str, &[u8]); 3] = [("dir/b", b"second"), ("dir.x", b""), ("a", &[7; LONG])];
        let mut image =
            SimImage { dirs: vec!["/s".into(), "/s/dir".into()], ..SimImage::default() };
        for (name, content) in files {
            image.files.insert(Path::new("/s").join(name), content.to_vec());
        }
        let fs = SimFs::from_image(&image);
        assert_eq!(snapshot_checksum_in(&fs, Path::new("/s")).unwrap(), checksum(&files));
        assert!(snapshot_checksum_in(&fs, Path::new("/s/a")).is_err(), "a file is no snapshot");
        let missing = snapshot_checksum_in(&fs, Path::new("/none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
