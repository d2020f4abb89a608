//! "config = f(log)": the membership in force at a node is that of the last membership entry in its
//! log, committed or not, or, if there is none, the one in force where its log begins. Computed
//! from what the node writes and, after a start, from what is on its disk.
//!
//! "one change at a time": at a leader at most one membership entry is not committed, or a joint
//! one and the return from it.

use std::collections::BTreeMap;

use d_engine_core::{EntryKind, LogId, RoleKind};
use d_engine_replica::{PersistJob, Replica};
use d_engine_storage::{ConfigId, LogSuffix, Member, Membership, RecoveredLog};

use crate::monitors::memberships::Memberships;
use crate::monitors::violation::{Rule, Violation};

/// The membership entries in a node's log.
#[derive(Debug, Default)]
struct Log {
    /// The log once began after this entry.
    base: LogId,
    entries: Vec<LogId>,
    /// What was checked last: the entry, and the name of its membership.
    checked: Option<(LogId, ConfigId)>,
}

/// The membership entries in all logs.
#[derive(Debug, Default)]
pub(crate) struct ConfigOfLog {
    logs: BTreeMap<u64, Log>,
}

impl ConfigOfLog {
    /// A node has started with this log.
    ///
    /// # Errors
    /// Its disk holds a membership that no leader has written.
    pub(crate) fn on_started(
        &mut self,
        node: u64,
        log: &RecoveredLog,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let of_kind = log.entries.iter().filter(|head| head.kind == EntryKind::Membership);
        let entries: Vec<LogId> = of_kind.map(|head| head.id).collect();
        for (id, (index, data)) in entries.iter().zip(&log.memberships) {
            let found = Membership::decode(data).ok();
            if id.index != *index || found.as_ref() != memberships.written(*id) {
                return Rule::ConfigOfLog.broken_by(
                    node,
                    format_args!("the disk of node {node} holds {found:?} as {id}"),
                );
            }
        }
        self.logs.insert(node, Log { base: log.base, entries, checked: None });
        Ok(())
    }

    /// A node writes to its log.
    pub(crate) fn on_write(&mut self, node: u64, job: &PersistJob) {
        let log = self.logs.entry(node).or_default();
        if let Some(first) = job.entries.first() {
            log.entries.retain(|id| id.index < first.id.index);
        }
        let of_kind = job.entries.iter().filter(|entry| entry.kind == EntryKind::Membership);
        log.entries.extend(of_kind.map(|entry| entry.id));
        if let Some(install) = job.install {
            log.base = install.base;
            let keeps = install.suffix == LogSuffix::Keep;
            log.entries.retain(|id| keeps && id.index > install.base.index);
        }
    }

    /// Checks a node that has handled an event.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn check(
        &mut self,
        node: u64,
        replica: &Replica,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let log = self.logs.entry(node).or_default();
        let last = log.entries.last().copied();
        let (in_force, core) = (replica.membership(), replica.core());
        let now = (last.unwrap_or(log.base), in_force.id());
        if log.checked == Some(now) {
            return Ok(());
        }
        log.checked = Some(now);
        let expected = match last {
            Some(entry) => memberships.written(entry),
            // A node that has not joined yet knows of no member.
            None if log.base == LogId::ZERO => None,
            None => memberships.committed_at(log.base.index),
        };
        let is_right = match expected {
            Some(expected) => is_same(expected, in_force),
            None => in_force.is_nobody() || in_force.id() == ConfigId::default(),
        };
        if !is_right || last.is_some_and(|last| core.configuration_entry().0 != last) {
            return Rule::ConfigOfLog.broken_by(
                node,
                format_args!(
                    "at node {node} {in_force:?} of {} is in force, but its log with the \
                     membership entries {:?} after {} says {expected:?}",
                    core.configuration_entry().0,
                    log.entries,
                    log.base
                ),
            );
        }
        if core.role() == RoleKind::Leader && core.leads_with_commit() {
            return log.check_open(node, core.log().committed.get(), memberships);
        }
        Ok(())
    }
}

impl Log {
    fn check_open(
        &self,
        node: u64,
        committed: u64,
        memberships: &Memberships,
    ) -> Result<(), Violation> {
        let open = self.entries.iter().filter(|id| id.index.get() > committed);
        let open: Vec<&Membership> = open.filter_map(|id| memberships.written(*id)).collect();
        let is_legal = match open.as_slice() {
            [] | [_] => true,
            [joint, back] => {
                joint.is_joint()
                    && back.configuration().voters() == joint.configuration().outgoing()
            }
            _ => false,
        };
        match is_legal {
            true => Ok(()),
            false => Rule::OneChange.broken_by(
                node,
                format_args!("leader {node} has these uncommitted memberships: {open:?}"),
            ),
        }
    }
}

/// Whether two memberships are the same but for the addresses, which a node's own configuration may
/// override.
fn is_same(one: &Membership, other: &Membership) -> bool {
    let of_member = |member: &Member| (member.node, member.role, member.incarnation);
    let members = one.members().iter().map(of_member);
    one.id() == other.id()
        && one.last_node() == other.last_node()
        && members.eq(other.members().iter().map(of_member))
}
