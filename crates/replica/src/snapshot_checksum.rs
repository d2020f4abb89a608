//! The checksum by which the engine and a state machine agree that a snapshot is whole.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// How much of a file is in memory at a time.
const READ_AT_ONCE: usize = 64 << 10;

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
    if !fs::symlink_metadata(dir)?.is_dir() {
        return Err(refused(dir, "is not a directory"));
    }
    let mut files = Vec::new();
    collect(dir, "", &mut files)?;
    files.sort_unstable();
    let mut hash = Sha256::new();
    for relative in &files {
        add_file(&dir.join(relative), relative, &mut hash)?;
    }
    Ok(hash.finalize().into())
}

/// Adds the relative paths of the files in `dir`, whose own relative path is `prefix`.
fn collect(dir: &Path, prefix: &str, files: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let name =
            entry.file_name().into_string().map_err(|_| refused(&path, "has a name that is not UTF-8"))?;
        let relative = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        // `DirEntry::file_type` does not follow links.
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&path, &relative, files)?;
        } else if kind.is_file() {
            files.push(relative);
        } else {
            return Err(refused(&path, "is neither a regular file nor a directory"));
        }
    }
    Ok(())
}

fn add_file(path: &Path, relative: &str, hash: &mut Sha256) -> io::Result<()> {
    let name_length = u32::try_from(relative.len()).map_err(|_| refused(path, "has too long a path"))?;
    let mut file = File::open(path)?;
    let announced = file.metadata()?.len();
    hash.update(name_length.to_le_bytes());
    hash.update(relative.as_bytes());
    hash.update(announced.to_le_bytes());
    let mut buffer = vec![0; READ_AT_ONCE];
    let mut found = 0_u64;
    loop {
        let length = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        found += length as u64;
        hash.update(buffer.get(..length).unwrap_or_default());
    }
    if found == announced { Ok(()) } else { Err(refused(path, "changed while it was read")) }
}

fn refused(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot path {} {why}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
        assert_eq!(hex(checksum(&[])), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
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
        let mut content = vec![1; READ_AT_ONCE * 2 + 1];
        let original = checksum(&[("a", &content)]);
        content[READ_AT_ONCE * 2] = 2;
        assert_ne!(checksum(&[("a", &content)]), original);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_refused_by_name() {
        let outside = tree(&[("secret", b"x"), ("sub/secret", b"x")]);
        for target in ["secret", "sub"] {
            let dir = tree(&[("a", b"1")]);
            std::os::unix::fs::symlink(outside.path().join(target), dir.path().join("link")).unwrap();
            let error = snapshot_checksum(dir.path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            assert!(error.to_string().contains("link"), "{error}");
        }
        let dir = tree(&[]);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(outside.path(), &link).unwrap();
        assert!(snapshot_checksum(&link).is_err(), "the directory itself is a link");
    }
}
