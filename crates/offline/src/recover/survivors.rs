//! Which of the directories that are left has the most, and what may be lost with the others.

use std::cmp::Reverse;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_core::{LogId, NodeId};
use d_engine_fs::Fs;
use d_engine_storage::survey::Owner;
use d_engine_storage::{Membership, Retired};

use super::error::Unfit;
use super::holdings::Holdings;
use crate::inspect::{Directory, InspectError, Progress, Snapshots};

/// What is known of the directories together.
#[derive(Clone, Debug)]
pub struct Findings {
    /// One for each directory, in the order given.
    pub survivors: Vec<Survivor>,
    /// The newest configuration in any of the usable ones.
    pub members: Option<Membership>,
    /// The position of the directory to take: the one with the latest last entry, term first; among
    /// equal ones the one that knows more to be committed, then the first one.
    pub best: Option<usize>,
    /// How many of the voters of `members` survive; two sets while it is joint.
    pub voters: Vec<VoterSet>,
}

/// A directory.
#[derive(Clone, Debug)]
pub struct Survivor {
    /// The directory.
    pub dir: PathBuf,
    /// Whose it is, if that can be read.
    pub owner: Option<Owner>,
    /// What it holds; `None` if it cannot be recovered by itself.
    pub holdings: Option<Holdings>,
    /// Why it is not taken.
    pub unfit: Option<Unfit>,
}

/// A set of voters of which a majority stored every acknowledged write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VoterSet {
    /// How many voters it has.
    pub of: usize,
    /// How many of them had to store a write.
    pub needed: usize,
    /// How many of them survive, with what they had stored.
    pub survive: usize,
}

impl VoterSet {
    fn of(voters: &[NodeId], survives: impl Fn(NodeId) -> bool) -> Self {
        let survive = voters.iter().filter(|voter| survives(**voter)).count();
        Self { of: voters.len(), needed: voters.len() / 2 + 1, survive }
    }

    /// Whether every majority has a survivor in it.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.of - self.survive < self.needed
    }
}

impl Findings {
    /// Whether every acknowledged write is on a survivor, and so in the directory to take.
    ///
    /// A write is acknowledged when a majority of the voters has stored it, and while the
    /// configuration is joint, a majority of each set. If every majority has a survivor in it, one
    /// of the survivors stored an entry of the term in which the write was committed. A log whose
    /// last entry is at least as late contains the write (leader completeness, Raft paper, section
    /// 5.4.3). A survivor whose log was repaired counts only if that is at least as late as what it
    /// had before. Both sets of a joint configuration must be covered, because it may not have been
    /// in force everywhere: then a majority of the old set was enough.
    #[must_use]
    pub fn nothing_is_lost(&self) -> bool {
        self.best.is_some() && self.voters.iter().all(VoterSet::is_covered)
    }

    /// Returns the directory to take.
    #[must_use]
    pub fn best(&self) -> Option<&Survivor> {
        self.survivors.get(self.best?)
    }
}

/// Reads directories of one cluster and compares them. Changes nothing and locks nothing.
/// `progress` ends the work by `Break`.
///
/// # Errors
/// A directory does not exist, is no data directory, or must not be read. Damage is part of the
/// result.
pub fn inspect(
    fs: &Arc<dyn Fs>,
    dirs: &[PathBuf],
    which: Snapshots,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Findings, InspectError> {
    let mut survivors = Vec::new();
    for dir in dirs {
        survivors.push(look_at(fs, dir, which, progress)?);
    }
    exclude_strangers(&mut survivors);
    exclude_copies(&mut survivors);
    let members = usable(&survivors).map(|(_, it)| &it.members).max_by_key(|it| it.id()).cloned();
    if let Some(members) = &members {
        exclude_other_directories(&mut survivors, members);
    }
    let best = usable(&survivors)
        .max_by_key(|(at, it)| (it.last, it.committed, Reverse(*at)))
        .map(|(at, _)| at);
    let latest = usable(&survivors).map(|(_, it)| it.last).max().unwrap_or_default();
    let voters = members.as_ref().map(|it| sets(it, &survivors, latest)).unwrap_or_default();
    Ok(Findings { survivors, members, best, voters })
}

fn look_at(
    fs: &Arc<dyn Fs>,
    dir: &Path,
    which: Snapshots,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Survivor, InspectError> {
    let directory = Directory::read(Arc::clone(fs), dir, which, progress)?;
    let (holdings, unfit) = match Holdings::of(&directory)? {
        Ok(holdings) => (Some(holdings), None),
        Err(unfit) => (None, Some(unfit)),
    };
    Ok(Survivor { dir: dir.to_owned(), owner: directory.survey().owner(), holdings, unfit })
}

fn usable(survivors: &[Survivor]) -> impl Iterator<Item = (usize, &Holdings)> {
    let usable = survivors.iter().enumerate().filter(|(_, it)| it.unfit.is_none());
    usable.filter_map(|(at, it)| Some((at, it.holdings.as_ref()?)))
}

/// Directories of another cluster or group than the first usable one.
fn exclude_strangers(survivors: &mut [Survivor]) {
    let first = usable(survivors).next().map(|(_, it)| (it.owner.cluster, it.group));
    let Some((cluster, group)) = first else { return };
    for survivor in survivors.iter_mut().filter(|it| it.unfit.is_none()) {
        let Some(holdings) = &survivor.holdings else { continue };
        let (its, its_group) = (holdings.owner.cluster, holdings.group);
        if its != cluster {
            survivor.unfit = Some(Unfit::OtherCluster { cluster: its, expected: cluster });
        } else if its_group != group {
            survivor.unfit = Some(Unfit::OtherGroup { group: its_group, expected: group });
        }
    }
}

/// All copies of one directory but the one that has the most.
fn exclude_copies(survivors: &mut [Survivor]) {
    let owners: Vec<Owner> = usable(survivors).map(|(_, it)| it.owner).collect();
    for owner in owners {
        let copies = usable(survivors).filter(|(_, it)| it.owner == owner);
        let most = copies.max_by_key(|(at, it)| (it.last, it.committed, Reverse(*at)));
        let Some((most, _)) = most else { continue };
        let of = survivors[most].dir.clone();
        for (at, survivor) in survivors.iter_mut().enumerate() {
            if at != most && survivor.unfit.is_none() && survivor.owner == Some(owner) {
                survivor.unfit = Some(Unfit::Copy { of: of.clone() });
            }
        }
    }
}

/// Directories of nodes that the cluster knows by another directory.
fn exclude_other_directories(survivors: &mut [Survivor], members: &Membership) {
    for survivor in survivors.iter_mut().filter(|it| it.unfit.is_none()) {
        let Some(owner) = survivor.owner else { continue };
        let bound = members.member(owner.node).and_then(|member| member.incarnation);
        if bound.is_some_and(|bound| bound != owner.incarnation) {
            survivor.unfit = Some(Unfit::OtherDirectory { node: owner.node });
        }
    }
}

/// The sets of voters. `latest` is the latest last entry of a survivor: one that has promised more
/// than that has lost what it stored, and does not count.
fn sets(members: &Membership, survivors: &[Survivor], latest: LogId) -> Vec<VoterSet> {
    let configuration = members.configuration();
    let survives = |node| {
        let survivors = &mut usable(survivors).map(|(_, it)| it);
        survivors.any(|it| it.owner.node == node && it.promised.is_none_or(|it| it <= latest))
    };
    [configuration.voters(), configuration.outgoing()]
        .into_iter()
        .filter(|voters| !voters.is_empty())
        .map(|voters| VoterSet::of(voters, survives))
        .collect()
}

/// What another directory says that has replaced this one.
impl Survivor {
    /// Returns by what the directory was replaced, if it was.
    #[must_use]
    pub fn retired(&self) -> Option<&Retired> {
        match &self.unfit {
            Some(Unfit::Retired(retired)) => Some(retired),
            _ => None,
        }
    }
}
