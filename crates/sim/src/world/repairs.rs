//! A bit of a node's log is flipped while the node is down, and an operator mends the log.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use d_engine_offline::repair::{RepairError, RepairRequest, repair};
use d_engine_storage::Fs;
use d_engine_storage::fs::sim::SimFs;

use crate::faults::{Fault, Sometimes};
use crate::monitors::snapshots::surviving_snapshots;
use crate::monitors::violation::{Rule, Violation};
use crate::profile::snapshots::Kind;
use crate::world::World;

const LOG: &str = "/data/log";

impl World {
    /// Damages the log of a node that is down, and mends it. On one node at most, and only where
    /// other voters are a majority without it: they have what was committed. If the log cannot be
    /// mended there, the damage is undone.
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
        let fs = self.node(id).fs.clone();
        if !fs.flip_bit(&path, offset, bit) {
            return Ok(());
        }
        let shared: Arc<dyn Fs> = Arc::new(fs.clone());
        let request = RepairRequest { data_dir: PathBuf::from("/data"), at_ms: self.now };
        let repaired = match repair(&shared, &request, &mut |_| ControlFlow::Continue(())) {
            Ok(repaired) => repaired,
            Err(RepairError::Cannot { .. }) => {
                fs.flip_bit(&path, offset, bit);
                return Ok(());
            }
            Err(error) => {
                return Rule::Recovery
                    .broken_by(id, format_args!("the log of node {id} is not mended: {error}"));
            }
        };
        shared.remove_tree(&repaired.old_dir).ok();
        let image = self.node(id).fs.image();
        let mended = match self.node(id).recovered_in(&SimFs::from_image(&image), &profile) {
            Ok(mended) => mended,
            Err(reason) => {
                return Rule::Recovery
                    .broken_by(id, format_args!("the mended log of node {id}: {reason}"));
            }
        };
        let snapshots = surviving_snapshots(&fs);
        self.monitors.on_mended(id, &whole, &mended, &snapshots)?;
        self.log_damaged = Some(id);
        self.counts.fault(Fault::LogDamaged);
        if mended.last() < whole.last() {
            self.counts.reached(Sometimes::MendedLogLacksEntries);
        }
        let (now, last, promised) = (self.now, mended.last(), whole.last());
        self.trace.note(
            now,
            format_args!("the log of node {id} is mended: it ends at {last} and had {promised}"),
        );
        Ok(())
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
