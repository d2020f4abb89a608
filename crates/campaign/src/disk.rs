//! A node's disk: a small ext4 file system of its own, which can be frozen and filled.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::shell::{Outcome, doing, run};

/// A file system in an image file on a loop device.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    is_frozen: bool,
}

impl Disk {
    /// Makes and mounts the file system `name` of `mib` MiB in `dir`.
    pub(crate) fn make(dir: &Path, name: &str, mib: u64) -> Outcome<Self> {
        let image = dir.join(format!("{name}.img"));
        let at = dir.join(name);
        std::fs::create_dir_all(&at).map_err(doing(at.display()))?;
        run(&format!("truncate -s {mib}M {}", image.display()))?;
        run(&format!("mkfs.ext4 -q -F -m 0 {}", image.display()))?;
        run(&format!("mount -o loop {} {}", image.display(), at.display()))?;
        Ok(Self { at, is_frozen: false })
    }

    /// Returns where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Freezes the file system: every write and sync hangs from now on.
    pub(crate) fn freeze(&mut self) -> Outcome<()> {
        run(&format!("fsfreeze --freeze {}", self.at.display()))?;
        self.is_frozen = true;
        Ok(())
    }

    /// Unfreezes the file system: hanging operations continue.
    pub(crate) fn thaw(&mut self) -> Outcome<()> {
        if self.is_frozen {
            run(&format!("fsfreeze --unfreeze {}", self.at.display()))?;
            self.is_frozen = false;
        }
        Ok(())
    }

    fn filler(&self) -> PathBuf {
        self.at.join("filler")
    }

    /// Fills the file system until `left` bytes are free.
    pub(crate) fn fill(&self, left: u64) -> Outcome<()> {
        let path = self.filler();
        let mut file = File::create(&path).map_err(doing(path.display()))?;
        let block = vec![1_u8; 64 << 10];
        // Write until no space is left; the last write may be part of a block.
        while file.write_all(&block).is_ok() {}
        file.sync_all().map_err(doing(path.display()))?;
        let length = file.metadata().map_err(doing(path.display()))?.len();
        file.set_len(length.saturating_sub(left)).map_err(doing(path.display()))
    }

    /// Removes the filler, so that its space is free again.
    pub(crate) fn empty(&self) -> Outcome<()> {
        let path = self.filler();
        if path.exists() {
            std::fs::remove_file(&path).map_err(doing(path.display()))
        } else {
            Ok(())
        }
    }

    /// Unmounts the file system.
    pub(crate) fn unmount(&mut self) -> Outcome<()> {
        self.thaw()?;
        run(&format!("umount {}", self.at.display())).map(drop)
    }
}
