//! Damages the files of a node that does not run.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use d_engine_sim::Prng;

use crate::Outcome;

/// A page of a disk.
const PAGE: u64 = 4096;

/// Damages one to three places below `data`. Returns what was done.
pub(crate) fn damage(data: &Path, random: &mut Prng) -> Outcome<String> {
    let mut done = Vec::new();
    for _ in 0..=random.below(6).saturating_sub(3) {
        done.push(one_place(data, random)?);
    }
    Ok(done.join("; "))
}

fn one_place(data: &Path, random: &mut Prng) -> Outcome<String> {
    let all = files_below(data)?;
    let wanted = match random.below(10) {
        0..=5 => "/log/",
        6..=7 => "/snapshots/",
        8 => ".meta",
        _ => "",
    };
    let wanted: Vec<&PathBuf> =
        all.iter().filter(|path| path.to_string_lossy().contains(wanted)).collect();
    let Some(path) = random.pick(&wanted).copied().or_else(|| random.pick(&all)) else {
        return Ok("no file".to_owned());
    };
    let name = path.strip_prefix(data).unwrap_or(path).display().to_string();
    let bytes = fs::read(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    // The zeros ahead of the log hold nothing.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    let at = random.below(used.max(1));
    let changed = match random.below(10) {
        0 => fs::remove_file(path).map(|()| format!("{name} is removed")),
        1 => OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|file| file.set_len(at))
            .map(|()| format!("{name} is cut off at {at}")),
        2..=3 => {
            let from = at / PAGE * PAGE;
            let zeros = vec![0; usize::try_from(PAGE.min(used - from)).unwrap_or(0)];
            write(path, from, &zeros).map(|()| format!("{name} has a page of zeros at {from}"))
        }
        4 => {
            let noise: Vec<u8> = (0..512).map(|_| random.below(256) as u8).collect();
            write(path, at, &noise).map(|()| format!("{name} has 512 random bytes at {at}"))
        }
        _ => {
            let nth = usize::try_from(at).unwrap_or(0);
            let byte = bytes.get(nth).copied().unwrap_or(0) ^ (1 << random.below(8));
            write(path, at, &[byte]).map(|()| format!("{name} has a flipped bit at {at}"))
        }
    };
    changed.map_err(|error| format!("{name} cannot be damaged: {error}"))
}

fn write(path: &Path, at: u64, bytes: &[u8]) -> std::io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all_at(bytes, at)
}

fn files_below(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> Outcome<()> {
    let doing = |error: std::io::Error| format!("{} cannot be copied: {error}", from.display());
    if to.exists() {
        fs::remove_dir_all(to).map_err(doing)?;
    }
    for path in files_below(from)? {
        let target = to.join(path.strip_prefix(from).unwrap_or(&path));
        fs::create_dir_all(target.parent().unwrap_or(to)).map_err(doing)?;
        fs::copy(&path, &target).map_err(doing)?;
    }
    Ok(())
}
