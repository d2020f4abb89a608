//! The rules for file names in a tree. A name decides where a receiver writes.

use std::collections::BTreeSet;

/// Longest name, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;
/// Longest part of a name between two slashes, in bytes: the limit of file systems.
const MAX_PART_BYTES: usize = 255;
/// Most parts of a name.
pub const MAX_DEPTH: usize = 16;
/// Most files in a tree.
pub const MAX_FILES: usize = 65_536;

/// Returns which rule a name violates, if any.
#[must_use]
pub fn fault_of(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        return Some("is empty");
    }
    if name.len() > MAX_NAME_BYTES {
        return Some("is longer than 1024 bytes");
    }
    if name.starts_with('/') {
        return Some("is absolute");
    }
    if name.chars().any(char::is_control) {
        return Some("contains a control character");
    }
    // On no system that this program runs on does this separate directories, but it might on a
    // receiver's.
    if name.contains('\\') {
        return Some("contains a backslash");
    }
    if name.split('/').count() > MAX_DEPTH {
        return Some("has more than 16 parts");
    }
    name.split('/').find_map(|part| match part {
        "" => Some("has an empty part"),
        "." | ".." => Some("has the part `.` or `..`"),
        _ if part.len() > MAX_PART_BYTES => Some("has a part longer than 255 bytes"),
        _ => None,
    })
}

/// Returns the first name that cannot be in a list together with the others, and why: names are in
/// byte order, no name occurs twice, and none is a directory of another one.
pub fn conflict<'a>(
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<(&'a str, &'static str)> {
    let files: BTreeSet<&str> = names.clone().collect();
    let mut before = None;
    for name in names {
        if before.is_some_and(|before| before >= name) {
            return Some((name, "occurs twice or is not in byte order"));
        }
        before = Some(name);
        let mut slashes = name.match_indices('/');
        if slashes.any(|(at, _)| name.get(..at).is_some_and(|parent| files.contains(parent))) {
            return Some((name, "is below another file"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{conflict, fault_of};

    /// FAULTS section 5, path traversal.
    #[test]
    fn hostile_names_are_refused() {
        let long = "x".repeat(256);
        let longer = "x/".repeat(600);
        let deep = "x/".repeat(16) + "x";
        let hostile = [
            "",
            "/",
            "/etc/passwd",
            "//x",
            "..",
            ".",
            "../x",
            "a/..",
            "a/../x",
            "a/./x",
            "./x",
            "a//x",
            "a/",
            "/a/",
            "a\0",
            "\0",
            "a\nb",
            "a\u{7f}",
            "..\\x",
            "a\\b",
            "C:\\x",
            "\u{85}x",
            &long,
            &longer,
            &deep,
        ];
        for name in hostile {
            assert!(fault_of(name).is_some(), "{name:?} was accepted");
        }
    }

    #[test]
    fn ordinary_names_are_accepted() {
        let part = "x".repeat(255);
        for name in ["a", "a/b", "...", "..a", "a..", ".hidden", "data.bin", "ä/ö", "a b", &part]
        {
            assert_eq!(fault_of(name), None, "{name:?}");
        }
    }

    #[test]
    fn names_that_cannot_be_together_are_refused() {
        for names in
            [&["a", "a"][..], &["b", "a"], &["a", "a/b"], &["a", "a.x", "a/b"], &["a/b", "a/b/c/d"]]
        {
            assert!(conflict(names.iter().copied()).is_some(), "{names:?}");
        }
        for names in [&["a", "b"][..], &["a.x", "a/b", "a/c", "ab"], &[]] {
            assert_eq!(conflict(names.iter().copied()), None, "{names:?}");
        }
    }
}
