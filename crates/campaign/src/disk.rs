//! A node's disk: a small ext4 file system of its own, which can be frozen and filled.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::shell::{Outcome, doing, run};

/// One file system in an image on a loop device.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    is_frozen: bool,
}

impl Disk {
    /// Makes and mounts the file system `name` of this many MiB below `dir`.
    pub(crate) fn make(dir: &Path, name: &str, mib: u64) -> Outcome<Self> {
        let image = dir.join(format!("{name}.img"));
        let at = dir.join(name);
        std::fs::create_dir_all(&at).map_err(doing(at.display()))?;
        run(&format!("truncate -s {mib}M {}", image.display()))?;
        run(&format!("mkfs.ext4 -q -F -m 0 {}", image.display()))?;
        run(&format!("mount -o loop {} {}", image.display(), at.display()))?;
        Ok(Self { at, is_frozen: false })
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> &Path {
        &self.at
    }

    /// Every write and sync hangs from now on.
    pub(crate) fn freeze(&mut self) -> Outcome<()> {
        run(&format!("fsfreeze --freeze {}", self.at.display()))?;
        self.is_frozen = true;
        Ok(())
    }

    /// What hung goes on.
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

    /// Takes all room but `left` bytes.
    pub(crate) fn fill(&self, left: u64) -> Outcome<()> {
        let path = self.filler();
        let mut file = File::create(&path).map_err(doing(path.display()))?;
        let block = vec![1_u8; 64 << 10];
        // Until there is no room any more; the last write may be a part of a block.
        while file.write_all(&block).is_ok() {}
        file.sync_all().map_err(doing(path.display()))?;
        let length = file.metadata().map_err(doing(path.display()))?.len();
        file.set_len(length.saturating_sub(left)).map_err(doing(path.display()))
    }

    /// Gives the room back.
    pub(crate) fn empty(&self) -> Outcome<()> {
        let path = self.filler();
        if path.exists() { std::fs::remove_file(&path).map_err(doing(path.display())) } else { Ok(()) }
    }

    /// Takes the file system away.
    pub(crate) fn unmount(&mut self) -> Outcome<()> {
        self.thaw()?;
        run(&format!("umount {}", self.at.display())).map(drop)
    }
}
