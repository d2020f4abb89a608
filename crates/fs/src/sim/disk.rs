//! The disk of a [`super::SimFs`]: what is durable, what is only visible, and the effect of a
//! crash.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::failure::Failure;
use super::image::SimImage;
use super::inode::{Inode, SECTOR};
use super::space::{self, Space};
use crate::{FileKind, FsCounts, FsOp, OpenMode};

/// How much of an operation is performed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Whole,
    Short,
}

#[derive(Debug, Default)]
pub(super) struct Disk {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// The visible names, and below them those that survive a crash.
    seen: Names,
    durable: Names,
    /// The changes between the two, in order.
    changes: Vec<Change>,
    /// The locked paths, by number: a renamed directory keeps its locks.
    locks: BTreeMap<u64, PathBuf>,
    /// How many locks were taken.
    locked: u64,
    /// Rises when the process crashes; files and locks of an earlier process are invalid.
    boot: u64,
    counts: FsCounts,
    /// Failures to inject, by the count of operations of that kind at which they happen.
    failures: BTreeMap<(FsOp, u64), Failure>,
    /// The total of operations at which the process crashes.
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
#[derive(Debug, Default)]
struct Change {
    remove: Option<PathBuf>,
    add: Option<(PathBuf, Node)>,
    /// A directory is renamed, and with it everything below.
    moves: Option<(PathBuf, PathBuf)>,
}

impl Change {
    fn is_in(&self, dir: &Path) -> bool {
        let removed = self.remove.as_deref();
        let added = self.add.as_ref().map(|(path, _)| path.as_path());
        let moved = self.moves.iter().flat_map(|(from, to)| [from.as_path(), to.as_path()]);
        removed.into_iter().chain(added).chain(moved).any(|path| parent_of(path) == dir)
    }

    fn apply(self, names: &mut Names) {
        if let Some((from, to)) = self.moves {
            move_below(names, &from, &to);
        }
        if let Some(path) = self.remove {
            names.remove(&path);
        }
        if let Some((path, node)) = self.add {
            names.insert(path, node);
        }
    }
}

/// Moves the directory `from` and everything below it to `to`.
fn move_below(names: &mut Names, from: &Path, to: &Path) {
    let below: Vec<PathBuf> = names.keys().filter(|path| path.starts_with(from)).cloned().collect();
    for path in below {
        if let Some(node) = names.remove(&path) {
            names.insert(moved(&path, from, to), node);
        }
    }
}

/// The path after the directory `from` was renamed to `to`.
fn moved(path: &Path, from: &Path, to: &Path) -> PathBuf {
    match path.strip_prefix(from) {
        Ok(rest) if rest.as_os_str().is_empty() => to.to_owned(),
        Ok(rest) => to.join(rest),
        Err(_) => path.to_owned(),
    }
}

impl Disk {
    pub(super) fn from_image(image: &SimImage) -> Self {
        let mut disk = Self::default();
        for dir in &image.dirs {
            disk.seen.insert(dir.clone(), Node::Dir);
        }
        for (path, content) in &image.files {
            let number = disk.add_inode(Inode::stored(content));
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

    pub(super) const fn boot(&self) -> u64 {
        self.boot
    }

    pub(super) const fn counts(&self) -> FsCounts {
        self.counts
    }

    pub(super) fn fail(&mut self, op: FsOp, nth: u64, failure: Failure) {
        self.failures.insert((op, self.counts.of(op) + nth), failure);
    }

    pub(super) fn fail_no_more(&mut self) {
        self.failures.clear();
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
        let changed: BTreeSet<&Path> = self
            .changes
            .iter()
            .flat_map(|change| {
                let moves = change.moves.as_ref();
                [
                    change.remove.as_deref(),
                    change.add.as_ref().map(|it| &*it.0),
                    moves.map(|it| &*it.0),
                    moves.map(|it| &*it.1),
                ]
            })
            .flatten()
            .collect();
        let is_at_stake = |path: &Path| path.ancestors().any(|path| changed.contains(path));
        let below =
            self.durable.iter().filter(|(path, _)| path.starts_with(dir) && !is_at_stake(path));
        let whole = below.filter_map(|(path, node)| {
            let Node::File(number) = node else { return None };
            let inode = self.inodes.get(number).filter(|inode| inode.durable == inode.seen)?;
            Some((path.clone(), inode.durable.clone()))
        });
        whole.collect()
    }

    /// Counts an operation and returns whether it happens.
    pub(super) fn begin(&mut self, op: FsOp) -> io::Result<Step> {
        self.counts.add(op);
        if self.is_halted() {
            return Err(io::Error::other("the process has crashed"));
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
        self.change(Change { add: Some((path.to_owned(), Node::Dir)), ..Change::default() });
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
            (None, OpenMode::Existing | OpenMode::ReadOnly) => {
                return Err(ErrorKind::NotFound.into());
            }
            (None, OpenMode::CreateNew) => {
                self.check_dir(parent_of(path))?;
                self.room_for_file()?;
                let number = self.add_inode(Inode::default());
                let add = Some((path.to_owned(), Node::File(number)));
                self.change(Change { add, ..Change::default() });
                number
            }
        };
        let token =
            self.inodes.get(&number).map(|inode| Arc::clone(&inode.token)).unwrap_or_default();
        Ok((number, token))
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let node = *self.seen.get(from).ok_or(ErrorKind::NotFound)?;
        self.check_dir(parent_of(to))?;
        if node == Node::Dir {
            return self.rename_dir(from, to);
        }
        let (remove, add) = (Some(from.to_owned()), Some((to.to_owned(), node)));
        self.change(Change { remove, add, moves: None });
        Ok(())
    }

    /// Changes below the directory that are not durable yet become part of it under its new name: a
    /// crash that loses the rename loses them too.
    fn rename_dir(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let is_empty = |dir: &Path| self.seen.keys().all(|path| parent_of(path) != dir);
        let is_free = match self.seen.get(to) {
            None => true,
            // An empty directory is replaced.
            Some(Node::Dir) => is_empty(to),
            Some(Node::File(_)) => false,
        };
        if !is_free || to.starts_with(from) {
            return Err(ErrorKind::DirectoryNotEmpty.into());
        }
        for change in &mut self.changes {
            if let Some(path) = &mut change.remove {
                *path = moved(path, from, to);
            }
            if let Some((path, _)) = &mut change.add
                && path != from
            {
                *path = moved(path, from, to);
            }
        }
        move_below(&mut self.seen, from, to);
        for path in self.locks.values_mut() {
            *path = moved(path, from, to);
        }
        let moves = Some((from.to_owned(), to.to_owned()));
        self.changes.push(Change { moves, ..Change::default() });
        Ok(())
    }

    pub(super) fn remove_file(&mut self, path: &Path) -> io::Result<()> {
        if !matches!(self.seen.get(path), Some(Node::File(_))) {
            return Err(ErrorKind::NotFound.into());
        }
        self.change(Change { remove: Some(path.to_owned()), ..Change::default() });
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

    /// Removes name by name, the deepest first: a crash loses or keeps each removal separately.
    pub(super) fn remove_tree(&mut self, dir: &Path) -> io::Result<()> {
        self.check_dir(dir)?;
        let below: Vec<PathBuf> =
            self.seen.keys().filter(|path| path.starts_with(dir)).cloned().collect();
        for path in below.into_iter().rev() {
            self.change(Change { remove: Some(path), ..Change::default() });
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

    /// Locks a path; returns the number of the lock, or `None` if it is locked.
    pub(super) fn lock(&mut self, path: &Path) -> io::Result<Option<u64>> {
        self.check_dir(parent_of(path))?;
        if self.is_locked(path) {
            return Ok(None);
        }
        self.locked += 1;
        self.locks.insert(self.locked, path.to_owned());
        Ok(Some(self.locked))
    }

    pub(super) fn is_locked(&self, path: &Path) -> bool {
        self.locks.values().any(|locked| locked == path)
    }

    pub(super) fn unlock(&mut self, number: u64, boot: u64) {
        if boot == self.boot {
            self.locks.remove(&number);
        }
    }

    pub(super) fn read(&self, inode: u64, offset: u64, buffer: &mut [u8]) -> usize {
        self.inodes.get(&inode).map_or(0, |inode| inode.read(offset as usize, buffer))
    }

    pub(super) fn write(&mut self, inode: u64, offset: u64, bytes: &[u8]) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.write(offset as usize, bytes);
        }
    }

    pub(super) fn set_len(&mut self, inode: u64, len: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.set_len(len as usize);
        }
    }

    pub(super) fn len(&self, inode: u64) -> u64 {
        self.inodes.get(&inode).map_or(0, |inode| inode.seen.len() as u64)
    }

    pub(super) fn sync(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.sync();
        }
    }

    /// Simulates a failed sync: the pages stay readable and no longer wait to be written.
    pub(super) fn drop_dirty_pages(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.drop_dirty_pages();
        }
    }

    pub(super) fn damage(&mut self, path: &Path, offset: u64, change: impl Fn(u8) -> u8) -> bool {
        let Some(Node::File(number)) = self.seen.get(path) else { return false };
        let Some(inode) = self.inodes.get_mut(number) else { return false };
        inode.damage(offset as usize, change)
    }

    /// Ends the process: invalidates its files and locks and clears its failpoints.
    pub(super) fn end_process(&mut self) {
        self.boot += 1;
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
        // A name in a directory that does not survive is lost with it.
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

    /// Removes files that have no name left, now or after a crash, and are not open.
    fn collect_garbage(&mut self) {
        let pending =
            self.changes.iter().filter_map(|change| change.add.as_ref().map(|(_, node)| node));
        let named: BTreeSet<u64> =
            self.seen.values().chain(self.durable.values()).chain(pending).fold(
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

impl Disk {
    pub(super) fn used_bytes(&self) -> u64 {
        let named: BTreeSet<u64> = self.seen.values().filter_map(Node::file).collect();
        let used =
            self.inodes.iter().filter(|(number, inode)| named.contains(number) || inode.is_open());
        used.map(|(_, inode)| space::taken(inode.seen.len())).sum()
    }

    pub(super) fn free_bytes(&self) -> Option<u64> {
        let left = |capacity: u64| capacity.saturating_sub(self.used_bytes());
        self.space.claimed.or_else(|| self.space.capacity.map(left))
    }

    /// Returns how many of `len` bytes at `offset` there is space for.
    pub(super) fn room_for(&self, inode: u64, offset: u64, len: usize) -> io::Result<usize> {
        let Some(capacity) = self.space.capacity else { return Ok(len) };
        let taken = self.inodes.get(&inode).map_or(0, |inode| space::taken(inode.seen.len()));
        let reach =
            taken + capacity.saturating_sub(self.used_bytes()) / SECTOR as u64 * SECTOR as u64;
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
        let open: usize =
            self.inodes.values().map(|inode| Arc::strong_count(&inode.token) - 1).sum();
        if open < max {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(Failure::TooManyFiles.errno()))
        }
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

fn parent_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

fn is_root(path: &Path) -> bool {
    [Path::new(""), Path::new("/"), Path::new(".")].contains(&path)
}
