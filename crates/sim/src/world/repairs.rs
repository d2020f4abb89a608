//! A bit of a node's log is flipped while the node is down, and an operator mends the log.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_offline::repair::{
    Cause, Fetch, MissingSnapshot, RepairError, RepairRequest, RepairedDirectory, RepairedLog,
    repair,
};
use d_engine_storage::RecoveredLog;
use d_engine_storage::fs::sim::SimFs;
use d_engine_storage::fs::{Fs, OpenMode, write_all_at};

use crate::faults::{Fault, Sometimes};
use crate::monitors::snapshots::{archive_path, is_whole, surviving_snapshots};
use crate::monitors::violation::{Rule, Violation};
use crate::names::SNAPSHOT_DIR;
use crate::profile::snapshots::Kind;
use crate::world::World;

const LOG: &str = "/data/log";

impl World {
    /// Damages the log of a node that is down, and mends it. On one node at most, and only where
    /// other voters are a majority without it: they have what was committed. If a snapshot covers
    /// the damage, nothing is mended, and the start skips it. If the log cannot be mended, the
    /// damage is undone.
    pub(crate) fn maybe_damage_log(&mut self, id: u64) -> Result<(), Violation> {
        let (chosen, file, place, bit) = (
            self.repair_prng.chance(self.profile.log_damage),
            self.repair_prng.next(),
            self.repair_prng.next(),
            u8::try_from(self.repair_prng.below(8)).unwrap_or(0),
        );
        let is_rebuilt = self.profile.snapshots.machine_of(id) == Kind::Rebuilt;
        let others_decide = self.profile.nodes > 2 && self.profile.members.change_every == 0;
        if !chosen || self.healed || !is_rebuilt || !others_decide {
            return Ok(());
        }
        if self.log_damaged.is_some_and(|node| node != id) || self.node(id).is_full {
            return Ok(());
        }
        let Some((path, offset)) = place_in(&self.node(id).fs, file, place) else { return Ok(()) };
        let profile = self.profile.clone();
        let image = self.node(id).fs.image();
        let Ok(whole) = self.node(id).recovered_in(&SimFs::from_image(&image), &profile) else {
            return Ok(());
        };
        let mut damage = Damage {
            place: Some((path, offset, bit)),
            snapshot: (place >> 32).is_multiple_of(3).then(|| self.snapshot_beside(id)).flatten(),
            is_repaired: true,
        };
        // On a copy first: what is refused must not have happened.
        match damage.and_repair(&SimFs::from_image(&image), self.now) {
            Err(RepairError::Cannot { cause: Cause::Covered, .. }) => damage.is_repaired = false,
            Ok(None) | Err(RepairError::Cannot { .. } | RepairError::WrongSnapshot { .. }) => {
                return Ok(());
            }
            // What is damaged is harmless, or the snapshot covers it: only the snapshots are lost.
            Ok(Some(repaired)) if repaired.log == RepairedLog::Kept => damage.place = None,
            Ok(Some(_)) | Err(_) => {}
        }
        let fs = self.node(id).fs.clone();
        match damage.and_repair(&fs, self.now) {
            Ok(Some(repaired)) if repaired.fetched.is_some() => {
                self.counts.reached(Sometimes::RepairFetchedSnapshot);
            }
            Ok(None) if !damage.is_repaired => self.counts.reached(Sometimes::DamageSkipped),
            Ok(_) => {}
            Err(error) => {
                return Rule::Recovery
                    .broken_by(id, format_args!("the log of node {id} is not mended: {error}"));
            }
        }
        let mended = match self.node(id).recovered_in(&SimFs::from_image(&fs.image()), &profile) {
            Ok(mended) => mended,
            Err(reason) => {
                return Rule::Recovery
                    .broken_by(id, format_args!("the mended log of node {id}: {reason}"));
            }
        };
        self.monitors.on_mended(id, &whole, &mended, &surviving_snapshots(&fs))?;
        self.note_mended(id, &whole, &mended);
        Ok(())
    }

    fn note_mended(&mut self, id: u64, whole: &RecoveredLog, mended: &RecoveredLog) {
        self.log_damaged = Some(id);
        self.counts.fault(Fault::LogDamaged);
        if mended.last() < whole.last() {
            self.counts.reached(Sometimes::MendedLogLacksEntries);
        }
        let (now, last, had) = (self.now, mended.last(), whole.last());
        self.trace.note(
            now,
            format_args!(
                "the log of node {id} is mended: it ends at {last}, had {had}, and promises {}",
                mended.promised
            ),
        );
    }

    /// The newest snapshot that another node has on its disk.
    fn snapshot_beside(&self, id: u64) -> Option<Vec<u8>> {
        let newest = self.nodes.iter().filter(|other| other.id != id).filter_map(|other| {
            let fs = &other.fs;
            let newest = surviving_snapshots(fs).pop().filter(|newest| is_whole(fs, *newest))?;
            Some((newest, fs.surviving(&archive_path(newest)).into_values().next()?))
        });
        newest.max_by_key(|(newest, _)| *newest).map(|(_, bytes)| bytes)
    }
}

/// A place in the log of a node that is down; the newest segments are more likely.
fn place_in(fs: &SimFs, file: u64, place: u64) -> Option<(PathBuf, u64)> {
    let files = fs.surviving(Path::new(LOG));
    let count = files.len() as u64;
    let from_end = if file.is_multiple_of(2) { 1 } else { 1 + (file >> 1) % count.max(1) };
    let nth = usize::try_from(count.checked_sub(from_end)?).ok()?;
    let (path, bytes) = files.into_iter().nth(nth)?;
    // The zeros ahead of the log hold nothing.
    let end = bytes.iter().rposition(|byte| *byte != 0)? as u64;
    Some((path, place % end.max(1)))
}

/// What happens to the files of one node.
struct Damage {
    /// File, offset and bit.
    place: Option<(PathBuf, u64, u8)>,
    /// If so, the node's own snapshots are lost, and this one of another node is offered.
    snapshot: Option<Vec<u8>>,
    /// Otherwise the next start skips the damage.
    is_repaired: bool,
}

impl Damage {
    /// Returns `None` if there is nothing at the place, or nothing was repaired.
    fn and_repair(&self, fs: &SimFs, now: u64) -> Result<Option<RepairedDirectory>, RepairError> {
        if self.place.as_ref().is_some_and(|(path, offset, bit)| !fs.flip_bit(path, *offset, *bit))
        {
            return Ok(None);
        }
        if !self.is_repaired {
            return Ok(None);
        }
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        if self.snapshot.is_some() {
            shared.remove_tree(Path::new(SNAPSHOT_DIR)).ok();
        }
        let mut write = |missing: &MissingSnapshot| {
            let written = shared
                .open(&missing.file, OpenMode::CreateNew)
                .and_then(|file| write_all_at(&*file, 0, self.snapshot.as_deref().unwrap_or(&[])));
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        };
        let fetch: Option<Fetch<'_>> = self.snapshot.is_some().then_some(&mut write);
        let request = RepairRequest { data_dir: PathBuf::from("/data"), at_ms: now };
        let repaired = repair(&shared, &request, fetch, &mut |_| ControlFlow::Continue(()))?;
        if let RepairedLog::Mended { old_dir, .. } = &repaired.log {
            shared.remove_tree(old_dir).ok();
        }
        Ok(Some(repaired))
    }
}
