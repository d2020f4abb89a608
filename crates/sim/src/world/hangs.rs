//! Disks and state machines that hang, and disks that are full, for a while.

use crate::faults::Fault;
use crate::time::SECOND;
use crate::world::World;
use crate::world::event::{Chain, SimEvent};
use crate::world::refused::RefusedStarts;

impl World {
    /// Makes a disk or a state machine hang for a while.
    pub(crate) fn hang_some(&mut self) {
        let node = self.turn_prng.between(1, self.profile.nodes);
        let (is_disk, length) =
            (self.turn_prng.chance(600_000), self.turn_prng.between(2, 20) * SECOND);
        let until = self.now + length;
        let now = self.now;
        self.trace.note(
            now,
            format_args!("node {node} hangs for {} s (disk: {is_disk})", length / SECOND),
        );
        if is_disk {
            self.counts.fault(Fault::DiskHang);
            self.node(node).disk_hangs_until = until;
        } else {
            self.counts.fault(Fault::ApplyHang);
            self.node(node).apply_hangs_until = until;
        }
        self.plan(self.profile.hang_every, Chain::Hang);
    }

    /// Leaves some disk little free space for a while.
    pub(crate) fn fill_some(&mut self) {
        let node = self.turn_prng.between(1, self.profile.nodes);
        let (left, length) =
            (self.turn_prng.below(64 << 10), self.turn_prng.between(1, 15) * SECOND);
        self.fill(node, left, length);
        self.plan(self.profile.fill_every, Chain::DiskFull);
    }

    /// Limits a disk's free space to `left` bytes for the time `length`.
    pub(crate) fn fill(&mut self, id: u64, left: u64, length: u64) {
        let now = self.now;
        self.trace.note(
            now,
            format_args!("{left} bytes are free on node {id} for {} s", length / SECOND),
        );
        self.counts.fault(Fault::DiskFull);
        let node = self.node(id);
        node.is_full = true;
        // With more space than before, a start may come further before it is refused.
        node.refused = RefusedStarts::default();
        node.fs.set_capacity(Some(node.fs.used_bytes() + left));
        self.after(length, SimEvent::RoomAgain { node: id });
    }

    /// Removes the limit of a disk's space.
    pub(crate) fn room_again(&mut self, id: u64) {
        let node = self.node(id);
        node.is_full = false;
        node.fs.set_capacity(None);
    }
}
