//! The disk behind [`super::SimFs`]: what is durable, what is only seen, and what a crash does.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::space::{self, Space};
use super::{Failure, SimImage};
use crate::fs::{FileKind, FsCounts, FsOp, OpenMode};

const SECTOR: usize = 512;

/// How much of an operation is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Whole,
    Short,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// The names as they are seen, and as they survive a crash.
    seen: Names,
    durable: Names,
    /// What separates the two, in order.
    changes: Vec<Change>,
    locks: BTreeSet<PathBuf>,
    /// Rises when the process dies; files and locks of an earlier life are invalid.
    life: u64,
    counts: FsCounts,
    /// Failures to come, by the count of operations of that kind at which they happen.
    failures: BTreeMap<(FsOp, u64), Failure>,
    /// The total of operations at which the process dies.
    halt_at: Option<u64>,
    pub(super) space: Space,
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(u64),
}

/// One change of names, atomic in a crash.
#[derive(Debug)]
struct Change {
    remove: Option<PathBuf>,
    add: Option<(PathBuf, Node)>,
}

impl Change {
    fn is_in(&self, dir: &Path) -> bool {
        let removed = self.remove.as_deref();
        let added = self.add.as_ref().map(|(path, _)| path.as_path());
        removed.into_iter().chain(added).any(|path| parent_of(path) == dir)
    }

    fn apply(self, names: &mut Names) {
        if let Some(path) = self.remove {
            names.remove(&path);
        }
        if let Some((path, node)) = self.add {
            names.insert(path, node);
        }
    }
}

#[derive(Debug, Default)]
struct Inode {
    /// What survives a crash for certain.
    durable: Vec<u8>,
    /// What a reader sees.
    seen: Vec<u8>,
    /// Sectors written since the last sync. A sector that differs from the durable one without
    /// being here was dropped by a failed sync.
    dirty: BTreeSet<usize>,
    /// The shortest length since the last sync, if the file was cut.
    cut_to: Option<usize>,
    token: Arc<()>,
}

impl Disk {
    pub(super) fn from_image(image: &SimImage) -> Self {
        let mut disk = Self::default();
        for dir in &image.dirs {
            disk.seen.insert(dir.clone(), Node::Dir);
        }
        for (path, content) in &image.files {
            let inode = Inode { durable: content.clone(), seen: content.clone(), ..Inode::default() };
            let number = disk.add_inode(inode);
            disk.seen.insert(path.clone(), Node::File(number));
        }
        disk.durable = disk.seen.clone();
        disk
    }

    pub(super) fn image(&self) -> SimImage {
        let mut image = SimImage::default();
        for (path, node) in &self.seen {
            match node {
                Node::Dir => image.dirs.push(path.clone()),
                Node::File(number) => {
                    let content = self.inodes.get(number).map(|inode| inode.seen.clone());
                    image.files.insert(path.clone(), content.unwrap_or_default());
                }
            }
        }
        image
    }

    pub(super) const fn life(&self) -> u64 {
        self.life
    }

    pub(super) const fn counts(&self) -> FsCounts {
        self.counts
    }

    pub(super) fn fail(&mut self, op: FsOp, nth: u64, failure: Failure) {
        self.failures.insert((op, self.counts.of(op) + nth), failure);
    }

    pub(super) fn halt_at(&mut self, nth: u64) {
        self.halt_at = Some(self.counts.total() + nth);
    }

    pub(super) fn is_halted(&self) -> bool {
        self.halt_at.is_some_and(|at| self.counts.total() >= at)
    }

    pub(super) fn keep_running(&mut self) {
        if !self.is_halted() {
            self.halt_at = None;
        }
    }

    pub(super) fn surviving(&self, dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let is_at_stake = |path: &Path| {
            let changed = |change: &Change| {
                let added = change.add.as_ref().map(|(added, _)| added.as_path());
                [change.remove.as_deref(), added].into_iter().flatten().any(|name| path.starts_with(name))
            };
            self.changes.iter().any(changed)
        };
        let below = self.durable.iter().filter(|(path, _)| path.starts_with(dir) && !is_at_stake(path));
        let whole = below.filter_map(|(path, node)| {
            let Node::File(number) = node else { return None };
            let inode = self.inodes.get(number).filter(|inode| inode.durable == inode.seen)?;
            Some((path.clone(), inode.durable.clone()))
        });
        whole.collect()
    }

    /// Counts an operation and says whether it happens.
    pub(super) fn begin(&mut self, op: FsOp) -> io::Result<Step> {
        self.counts.add(op);
        if self.is_halted() {
            return Err(io::Error::other("the process has died"));
        }
        match self.failures.remove(&(op, self.counts.of(op))) {
            None => Ok(Step::Whole),
            Some(Failure::Short) => Ok(Step::Short),
            Some(failure) => Err(io::Error::from_raw_os_error(failure.errno())),
        }
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        if self.seen.contains_key(path) || is_root(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        self.check_dir(parent_of(path))?;
        self.change(Change { remove: None, add: Some((path.to_owned(), Node::Dir)) });
        Ok(())
    }

    pub(super) fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<(u64, Arc<()>)> {
        self.handle_left()?;
        let number = match (self.seen.get(path), mode) {
            (Some(Node::File(number)), OpenMode::Existing | OpenMode::ReadOnly) => *number,
            (Some(_), OpenMode::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
            (Some(Node::Dir), OpenMode::Existing | OpenMode::ReadOnly) => {
                return Err(ErrorKind::IsADirectory.into());
            }
            (None, OpenMode::Existing | OpenMode::ReadOnly) => return Err(ErrorKind::NotFound.into()),
            (None, OpenMode::CreateNew) => {
                self.check_dir(parent_of(path))?;
                self.room_for_file()?;
                let number = self.add_inode(Inode::default());
                self.change(Change { remove: None, add: Some((path.to_owned(), Node::File(number))) });
                number
            }
        };
        let token = self.inodes.get(&number).map(|inode| Arc::clone(&inode.token)).unwrap_or_default();
        Ok((number, token))
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = *self.seen.get(from).ok_or(ErrorKind::NotFound)?;
        self.check_dir(parent_of(to))?;
        self.change(Change { remove: Some(from.to_owned()), add: Some((to.to_owned(), node)) });
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        if !matches!(self.seen.get(path), Some(Node::File(_))) {
            return Err(ErrorKind::NotFound.into());
        }
        self.change(Change { remove: Some(path.to_owned()), add: None });
        Ok(())
    }

    pub(super) fn kind(&self, path: &Path) -> io::Result<FileKind> {
        match self.seen.get(path) {
            Some(Node::File(_)) => Ok(FileKind::File),
            Some(Node::Dir) => Ok(FileKind::Dir),
            None if is_root(path) => Ok(FileKind::Dir),
            None => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Name by name, the deepest first: a crash loses or keeps each removal by itself.
    pub(super) fn remove_tree(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        let below: Vec<PathBuf> = self.seen.keys().filter(|path| path.starts_with(dir)).cloned().collect();
        for path in below.into_iter().rev() {
            self.change(Change { remove: Some(path), add: None });
        }
        Ok(())
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.check_dir(dir)?;
        let inside = self.seen.keys().filter(|path| parent_of(path) == dir);
        Ok(inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect())
    }

    pub(super) fn sync_dir(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        for change in std::mem::take(&mut self.changes) {
            if change.is_in(dir) {
                change.apply(&mut self.durable);
            } else {
                self.changes.push(change);
            }
        }
        self.collect_garbage();
        Ok(())
    }

    pub(super) fn lock(&mut self, path: &Path) -> io::Result<bool> {
        self.check_dir(parent_of(path))?;
        Ok(self.locks.insert(path.to_owned()))
    }

    pub(super) fn unlock(&mut self, path: &Path, life: u64) {
        if life == self.life {
            self.locks.remove(path);
        }
    }

    pub(super) fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> usize {
        let rest = self.inodes.get(&inode).and_then(|inode| inode.seen.get(offset as usize..));
        let rest = rest.unwrap_or_default();
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        len
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8]) {
        let Some(inode) = self.inodes.get_mut(&inode) else { return };
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if inode.seen.len() < end {
            inode.seen.resize(end, 0);
        }
        inode.seen[start..end].copy_from_slice(bytes);
        inode.dirty.extend(start / SECTOR..end.div_ceil(SECTOR));
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) {
        let Some(inode) = self.inodes.get_mut(&inode) else { return };
        let len = len as usize;
        if len < inode.seen.len() {
            inode.cut_to = Some(inode.cut_to.map_or(len, |cut| cut.min(len)));
            drop(inode.dirty.split_off(&len.div_ceil(SECTOR)));
        }
        inode.seen.resize(len, 0);
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.inodes.get(&inode).map_or(0, |inode| inode.seen.len() as u64)
    }

    pub(super) fn sync(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.sync();
        }
    }

    /// What a failed sync does: the pages stay as they are seen and are no longer waiting.
    pub(super) fn drop_dirty_pages(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.dirty.clear();
        }
    }

    pub(super) fn damage(&mut self, path: &Path, offset: u64, change: impl Fn(u8) -> u8) -> bool {
        let Some(Node::File(number)) = self.seen.get(path) else { return false };
        let Some(inode) = self.inodes.get_mut(number) else { return false };
        let offset = offset as usize;
        if let Some(byte) = inode.durable.get_mut(offset) {
            *byte = change(*byte);
        }
        let Some(byte) = inode.seen.get_mut(offset) else { return false };
        *byte = change(*byte);
        true
    }

    /// Ends the process: its files and locks are invalid, its failpoints gone.
    pub(super) fn end_process(&mut self) {
        self.life += 1;
        self.locks.clear();
        self.failures.clear();
        self.halt_at = None;
    }

    pub(super) fn crash(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        self.end_process();
        for change in std::mem::take(&mut self.changes) {
            if random(2) == 1 {
                change.apply(&mut self.durable);
            }
        }
        // A name in a directory that is not there is lost with it.
        let names = std::mem::take(&mut self.durable);
        self.durable = names.clone();
        self.durable.retain(|path, _| {
            let parents = path.ancestors().skip(1).filter(|parent| !is_root(parent));
            parents.into_iter().all(|parent| names.get(parent) == Some(&Node::Dir))
        });
        self.seen = self.durable.clone();
        self.collect_garbage();
        for inode in self.inodes.values_mut() {
            inode.crash(random);
        }
    }

    fn change(&mut self, change: Change) {
        if let Some(path) = &change.remove {
            self.seen.remove(path);
        }
        if let Some((path, node)) = &change.add {
            self.seen.insert(path.clone(), *node);
        }
        self.changes.push(change);
    }

    fn add_inode(&mut self, inode: Inode) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, inode);
        self.next_inode
    }

    fn check_dir(&self, path: &Path) -> io::Result<()> {
        match self.seen.get(path) {
            Some(Node::Dir) => Ok(()),
            _ if is_root(path) => Ok(()),
            _ => Err(ErrorKind::NotFound.into()),
        }
    }

    /// Forgets files that have no name left, now or after a crash, and are not open.
    fn collect_garbage(&mut self) {
        let pending = self.changes.iter().filter_map(|change| change.add.as_ref().map(|(_, node)| node));
        let named: BTreeSet<u64> = self.seen.values().chain(self.durable.values()).chain(pending).fold(
            BTreeSet::new(),
            |mut named, node| {
                if let Node::File(number) = node {
                    named.insert(*number);
                }
                named
            },
        );
        self.inodes.retain(|number, inode| named.contains(number) || inode.is_open());
    }
}

impl Inode {
    fn is_open(&self) -> bool {
        Arc::strong_count(&self.token) > 1
    }

    fn sync(&mut self) {
        if let Some(cut) = self.cut_to.take() {
            self.durable.truncate(cut);
        }
        self.durable.resize(self.seen.len(), 0);
        for sector in std::mem::take(&mut self.dirty) {
            let range = sector_range(sector, self.seen.len());
            self.durable[range.clone()].copy_from_slice(&self.seen[range]);
        }
    }

    fn crash(&mut self, random: &mut dyn FnMut(u64) -> u64) {
        let dirty = std::mem::take(&mut self.dirty);
        if let Some(cut) = self.cut_to.take()
            && random(2) == 1
        {
            self.durable.truncate(cut);
        }
        // The new length may be lost; a sector that survives behind it brings it back.
        if self.durable.len() < self.seen.len() && random(3) > 0 {
            self.durable.resize(self.seen.len(), 0);
        }
        if dirty.is_empty() {
            self.seen = self.durable.clone();
            return;
        }
        // Sector by sector alone, a large write would hardly ever survive as a whole.
        let in_order = match random(4) {
            0 | 1 => None,
            2 => Some(random(dirty.len() as u64 + 1) as usize),
            _ => Some(dirty.len()),
        };
        for (position, sector) in dirty.into_iter().enumerate() {
            let range = sector_range(sector, self.seen.len());
            let kept = match in_order.map_or_else(|| random(4), |up_to| if position < up_to { 3 } else { 0 })
            {
                0 => range.start..range.start,
                1 => range.start..range.start + random(range.len() as u64) as usize,
                2 => range.end - random(range.len() as u64) as usize..range.end,
                _ => range,
            };
            if kept.is_empty() {
                continue;
            }
            if self.durable.len() < kept.end {
                self.durable.resize(kept.end, 0);
            }
            self.durable[kept.clone()].copy_from_slice(&self.seen[kept]);
        }
        self.seen = self.durable.clone();
    }
}

impl Disk {
    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.seen.values().filter_map(Node::file).collect();
        let used = self.inodes.iter().filter(|(number, inode)| named.contains(number) || inode.is_open());
        used.map(|(_, inode)| space::taken(inode.seen.len())).sum()
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        let left = |capacity: u64| capacity.saturating_sub(self.used_bytes());
        self.space.claimed.or_else(|| self.space.capacity.map(left))
    }

    /// How many of `len` bytes at `offset` there is room for.
    pub(super) fn room_for(&self, inode: u64, offset: u64, len: usize) -> io::Result<usize> {
        let Some(capacity) = self.space.capacity else { return Ok(len) };
        let taken = self.inodes.get(&inode).map_or(0, |inode| space::taken(inode.seen.len()));
        let reach = taken + capacity.saturating_sub(self.used_bytes()) / SECTOR as u64 * SECTOR as u64;
        match usize::try_from(reach.saturating_sub(offset)).unwrap_or(usize::MAX).min(len) {
            0 if len > 0 => Err(space::no_space()),
            fits => Ok(fits),
        }
    }

    fn room_for_file(&self) -> io::Result<()> {
        let is_full = |capacity: u64| self.used_bytes() + space::taken(0) > capacity;
        if self.space.capacity.is_some_and(is_full) { Err(space::no_space()) } else { Ok(()) }
    }

    fn handle_left(&self) -> io::Result<()> {
        let Some(max) = self.space.max_open else { return Ok(()) };
        let open: usize = self.inodes.values().map(|inode| Arc::strong_count(&inode.token) - 1).sum();
        if open < max { Ok(()) } else { Err(io::Error::from_raw_os_error(Failure::TooManyFiles.errno())) }
    }
}

impl Node {
    const fn file(&self) -> Option<u64> {
        match self {
            Self::Dir => None,
            Self::File(number) => Some(*number),
        }
    }
}

fn sector_range(sector: usize, len: usize) -> std::ops::Range<usize> {
    (sector * SECTOR).min(len)..((sector + 1) * SECTOR).min(len)
}

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn is_root(path: &Path) -> bool {
    [Path::new(""), Path::new("/"), Path::new(".")].contains(&path)
}
