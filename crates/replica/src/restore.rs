//! A start: brings the log, the snapshots and the state machine together, whatever a crash has left of them.
//!
//! | found | done |
//! |---|---|
//! | a whole snapshot past the log, or one whose last entry the log does not hold | an install was cut short: the log begins anew behind it |
//! | a damaged snapshot | the one before it, if the log still reaches back to that |
//! | a `Rebuilt` machine | reset; the newest whole snapshot; the log from there |
//! | a `Durable` machine that is empty or stands before the log's beginning | the newest whole snapshot; the log from there |
//! | a `Durable` machine inside the log | the log from where it stands |
//! | a log that begins later than every whole snapshot ends | refused: entries between them are gone |

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use d_engine_core::{HardState, LogId as CoreLogId, LogIndex, Term};
use d_engine_storage::snapshot::{
    FullSpeed, Health, SnapshotError, SnapshotHeader, SnapshotInfo, SnapshotStore,
};
use d_engine_storage::{Identity, LogStore, LogSuffix, Membership, RecoveredLog};

use crate::command_version::check_state;
use crate::state_machine_handler::{Applied, check_own_snapshot, check_position, failed};
use crate::{
    Binding, Durability, LogId, SnapshotMetadata, SnapshotPolicy, StateMachine, StateMachineHandler,
    StopReason,
};

/// Where the log and the state machine of a node stand at its start.
#[derive(Clone, Debug, Default)]
pub struct Footing {
    /// The last entry whose effect is in the state machine.
    pub applied: LogIndex,
    /// The members where the log begins; `None`: those of the node's identity.
    pub membership: Option<Membership>,
    /// Log time where the log begins, in UNIX milliseconds.
    pub time_ms: u64,
    /// Up to here a snapshot of this node reaches that was read whole at this start.
    pub covered: LogIndex,
    /// Length of the newest snapshot in bytes.
    pub covered_bytes: u64,
    /// Up to here the oldest of the retained ones reaches that is not known to be damaged.
    pub oldest: LogIndex,
    /// The highest version of a command that the state machine decodes.
    pub command_version_max: u32,
    /// The highest version of a command that took effect in its state.
    pub command_version_floor: u32,
}

impl Footing {
    /// The log is purged behind what other nodes take, and no further than the oldest snapshot that is retained.
    fn limit_to(&mut self, snapshots: &SnapshotStore) {
        let coverage = snapshots.coverage();
        self.covered_bytes = coverage.as_ref().map_or(0, |coverage| coverage.newest_bytes);
        let (newest, oldest) = coverage.map_or((LogIndex::ZERO, LogIndex::ZERO), |coverage| {
            (coverage.newest.index, coverage.oldest.index)
        });
        self.covered = self.covered.min(newest);
        self.oldest = self.covered.min(oldest);
    }
}

/// What a node starts from.
pub struct Start<'a> {
    /// Who the node is.
    pub identity: &'a Identity,
    /// The recovered log; it is begun anew when the install of a snapshot was cut short.
    pub log: &'a mut dyn LogStore,
    /// What the log held; brought up to date with `log`.
    pub recovered: &'a mut RecoveredLog,
    /// The node's snapshots.
    pub snapshots: &'a SnapshotStore,
}

impl StateMachineHandler {
    /// Starts a state machine and brings it where the log goes on.
    ///
    /// # Errors
    /// The node must not start: the machine refused, what it says of itself does not fit the log, or entries
    /// between the newest usable snapshot and the log are gone. The values are in the message.
    pub async fn open(
        machine: Arc<dyn StateMachine>,
        policy: Arc<dyn SnapshotPolicy>,
        mut start: Start<'_>,
    ) -> Result<(Self, Footing), StopReason> {
        machine.bind(&Binding::of(start.identity)).map_err(|error| failed("bind", &error))?;
        machine
            .start()
            .map_err(|error| StopReason::new(format_args!("the state machine did not start: {error}")))?;
        let checked = check_rebuilt(machine.as_ref()).and_then(|()| start.check_commands());
        let opened = match checked {
            Ok(()) => start.bring_up(machine.as_ref()).await,
            Err(reason) => Err(reason),
        };
        let opened = opened.and_then(|(applied, mut footing)| {
            // Of a machine that keeps its own state: a snapshot of that kind is not in the list.
            check_state(machine.as_ref(), applied.command_version, applied.id)?;
            footing.limit_to(start.snapshots);
            footing.command_version_max = machine.command_version_max();
            footing.command_version_floor = applied.command_version;
            let mut handler = Self::new(machine.clone(), policy, applied);
            handler.learn_newest(&start).map(|()| (handler, footing))
        });
        if opened.is_err() {
            // It was started, so it is told that this is the end; the reason above is what counts.
            machine.stop().ok();
        }
        opened
    }
}

impl StateMachineHandler {
    /// A crash may have come between a snapshot and the machine's being told of it.
    fn learn_newest(&mut self, start: &Start<'_>) -> Result<(), StopReason> {
        let usable = |info: &SnapshotInfo| {
            info.health != Health::Damaged && info.label().index.get() <= self.applied().index
        };
        let newest = start.snapshots.list().into_iter().find(usable);
        // What the state holds beyond it has been growing the log, in an earlier life.
        let covered = newest.as_ref().map_or(LogIndex::new(0), |info| info.label().index);
        let applied = self.applied().index;
        let beyond = start.recovered.entries.iter().filter(|head| head.id.index > covered);
        for head in beyond.take_while(|head| head.id.index.get() <= applied) {
            self.due.applied(head.data_len as usize);
        }
        let Some(newest) = newest else { return Ok(()) };
        self.snapshot_bytes = newest.len;
        let meta = metadata_of(&newest);
        let known = self.machine().snapshot_metadata().map(|meta| meta.last_included);
        if known == Some(meta.last_included) {
            self.snapshot = meta.last_included;
            return Ok(());
        }
        self.tell_of(&meta).map(|_| ())
    }
}

impl Start<'_> {
    /// A snapshot of this node that holds the effect of commands which this program does not decode: it is older than what
    /// ran here before. Said at once, and not where the log comes to the first of these commands.
    fn check_commands(&self) -> Result<(), StopReason> {
        let newer = self
            .snapshots
            .unusable()
            .iter()
            .find(|error| matches!(error, SnapshotError::NewerCommands { .. }));
        newer.map_or(Ok(()), |error| Err(StopReason::of_older_program(error)))
    }

    async fn bring_up(&mut self, machine: &dyn StateMachine) -> Result<(Applied, Footing), StopReason> {
        let rebuilt = machine.durability() == Durability::Rebuilt;
        let stands_at = if rebuilt { LogId::default() } else { machine.last_applied() };
        if !rebuilt {
            check_own_snapshot(machine, stands_at)?;
        }
        // It has lost its state, or is new in this directory: the snapshot is nearer than the first entry.
        let is_new = !rebuilt && stands_at == LogId::default() && machine.is_empty();
        let mut damage = Vec::new();
        for info in self.snapshots.list() {
            let needed = rebuilt
                || is_new
                || stands_at.index < self.recovered.base.index.get()
                || self.is_past_log(&info);
            if info.label().index < self.recovered.base.index || !needed {
                break;
            }
            check_state(machine, info.header.facts.command_version, info.label().into())?;
            match self.restore(machine, &info).await {
                Ok(footing) => return Ok((installed(machine, &info).map_err(StopReason::new)?, footing)),
                // A disk that cannot take what is unpacked says nothing of the archive.
                Err(Restore::Unusable(error @ SnapshotError::Io { .. })) if !is_of_archive(&error, &info) => {
                    return Err(StopReason::new(format_args!(
                        "a snapshot could not be unpacked: {error}; repair the cause, and start again"
                    )));
                }
                Err(Restore::Unusable(error)) => {
                    tracing::warn!(%error, "a snapshot cannot be used; the one before it is tried");
                    damage.push(error);
                }
                Err(Restore::Failed(reason)) => return Err(reason),
            }
        }
        self.without_snapshot(machine, stands_at, &damage).await
    }

    /// No snapshot has to be installed, or none can be.
    async fn without_snapshot(
        &self,
        machine: &dyn StateMachine,
        stands_at: LogId,
        damage: &[SnapshotError],
    ) -> Result<(Applied, Footing), StopReason> {
        let base = self.recovered.base;
        let rebuilt = machine.durability() == Durability::Rebuilt;
        if base != CoreLogId::ZERO && (rebuilt || stands_at.index < base.index.get()) {
            return Err(self.does_not_reach(stands_at, damage));
        }
        let mut footing = Footing::default();
        if rebuilt {
            machine.reset().await.map_err(|error| {
                StopReason::new(format_args!("the state machine could not be reset: {error}"))
            })?;
        } else {
            check_position(machine, stands_at, self.recovered)?;
            footing.applied = LogIndex::new(stands_at.index);
        }
        if let Some(time_ms) = self.recovered.base_time_ms.filter(|_| base != CoreLogId::ZERO) {
            // The log itself knows, whatever became of the snapshots.
            footing.time_ms = time_ms;
            let payload = self.recovered.base_membership.as_deref();
            footing.membership = payload.map(Membership::decode).transpose().map_err(StopReason::new)?;
            let applied = self.facts_at(footing.applied, &footing);
            return Ok((applied, footing));
        }
        // Behind a snapshot that was received, its header alone says who the members were.
        let newest = self.snapshots.list().into_iter().find(|info| info.label().index >= base.index);
        if let Some(info) = newest.filter(|_| base != CoreLogId::ZERO) {
            footing.membership = Some(info.header.facts.membership.clone());
            footing.time_ms = info.header.facts.time_ms;
        } else if base != CoreLogId::ZERO {
            return Err(StopReason::new(format_args!(
                "the log begins after {base}, and there is no snapshot that says who the members were there; \
                 bring back a copy of this node's directory (docs/snapshots.md)"
            )));
        }
        let applied = self.facts_at(footing.applied, &footing);
        Ok((applied, footing))
    }

    /// Why there is nothing to go on from, and what helps.
    fn does_not_reach(&self, stands_at: LogId, damage: &[SnapshotError]) -> StopReason {
        let base = self.recovered.base;
        let unusable: Vec<&SnapshotError> = self.snapshots.unusable().iter().chain(damage).collect();
        let newer = unusable.iter().any(|error| matches!(error, SnapshotError::NewerFormat { .. }));
        let mut known: Vec<String> = unusable.iter().map(ToString::to_string).collect();
        let earlier = self.snapshots.list().into_iter().find(|info| info.label().index < base.index);
        known.extend(earlier.map(|info| format!("{} ends before that", info.path.display())));
        let known = if known.is_empty() { "there is none".to_owned() } else { known.join("; ") };
        let next = if newer {
            "nothing is lost: start this node with the newer program".to_owned()
        } else {
            format!(
                "entries between them are gone on this node; copy the newest snap-*.snap of another node of this cluster \
                 into {}, or bring back a copy of this node's directory, and start again (docs/snapshots.md)",
                self.snapshots.dir().display()
            )
        };
        StopReason::new(format_args!(
            "the state machine stands at {stands_at}, but the log begins after {base} and no snapshot that reaches there \
             can be used ({known}): {next}"
        ))
    }

    /// Whether the snapshot is of entries that the log does not hold: it was received, and the log not yet begun
    /// anew. Snapshots of the node's own never reach past what its log has stored.
    fn is_past_log(&self, info: &SnapshotInfo) -> bool {
        let label = info.label();
        label.index >= self.recovered.base.index && self.term_at(label.index) != Some(label.term)
    }

    fn term_at(&self, index: LogIndex) -> Option<Term> {
        let base = self.recovered.base;
        if index == base.index {
            return Some(base.term);
        }
        let position = index.get().checked_sub(base.index.get() + 1)?;
        let head = self.recovered.entries.get(usize::try_from(position).ok()?)?;
        Some(head.id.term)
    }

    /// Installs a snapshot into the state machine, and begins the log anew if it does not reach there.
    async fn restore(&mut self, machine: &dyn StateMachine, info: &SnapshotInfo) -> Result<Footing, Restore> {
        let label = info.label();
        let path = self.snapshots.unpack_dir();
        self.snapshots.clear_unpacked().map_err(|error| Restore::of(error, &path))?;
        // Every checksum is compared here: nothing is dropped for a snapshot that cannot take its place.
        self.snapshots.unpack(label, &path, &mut FullSpeed).map_err(|error| Restore::of(error, &path))?;
        if self.is_past_log(info) {
            self.begin_log_anew(label).map_err(Restore::Failed)?;
        }
        // One that keeps its own state, and is to get all of it anew because it stands outside its log, begins anew too: what
        // it has left is of no use to anybody.
        if machine.durability() == Durability::Rebuilt || machine.last_applied() != LogId::default() {
            machine.reset().await.map_err(|error| Restore::Failed(failed("reset", &error)))?;
        }
        let meta = metadata_of(info);
        let installed = machine.apply_snapshot_from_file(&meta, path).await;
        // What cannot be removed now is removed at the next start.
        self.snapshots.clear_unpacked().ok();
        let done = |method, result: crate::Result<()>| {
            result.map_err(|error| Restore::Failed(failed(method, &error)))
        };
        done("apply_snapshot_from_file", installed)?;
        machine.update_last_applied(meta.last_included);
        // The log may be purged up to here as soon as the node runs.
        done("persist_last_applied", machine.persist_last_applied(meta.last_included))?;
        done("flush", machine.flush())?;
        done("update_last_snapshot_metadata", machine.update_last_snapshot_metadata(&meta))?;
        done("persist_last_snapshot_metadata", machine.persist_last_snapshot_metadata(&meta))?;
        let facts = &info.header.facts;
        let membership = Some(facts.membership.clone());
        Ok(Footing {
            applied: label.index,
            membership,
            time_ms: facts.time_ms,
            covered: label.index,
            covered_bytes: info.len,
            oldest: label.index,
            ..Footing::default()
        })
    }

    /// The second half of an install that a crash has cut short. The term of the snapshot's last entry is at
    /// most that of its sender, which this node must not fall behind.
    fn begin_log_anew(&mut self, label: CoreLogId) -> Result<(), StopReason> {
        if self.recovered.hard_state.term < label.term {
            let HardState { stickiness, .. } = self.recovered.hard_state;
            let hard_state = HardState { term: label.term, vote: None, commit: label.index, stickiness };
            self.log.append(self.identity.group, Some(hard_state), &[]).map_err(StopReason::new)?;
            self.log.sync().map_err(StopReason::new)?;
            self.recovered.hard_state = hard_state;
        }
        self.log.install(self.identity.group, label, LogSuffix::Drop).map_err(StopReason::new)?;
        tracing::info!(%label, "the install of a snapshot was cut short; the log begins behind it now");
        self.recovered.base = label;
        self.recovered.base_time_ms = None;
        self.recovered.base_membership = None;
        self.recovered.entries.clear();
        self.recovered.memberships.clear();
        self.recovered.skips.clear();
        Ok(())
    }

    /// What a snapshot taken at `index` would say of itself.
    fn facts_at(&self, index: LogIndex, footing: &Footing) -> Applied {
        let heads = self.recovered.entries.iter().take_while(|head| head.id.index <= index);
        let in_heads = heads.clone().map(|head| head.version).max().unwrap_or(0);
        // What is purged is in a snapshot. Where none can be read any more, less is known than was applied: a leader then only
        // asks the voters once more.
        let snapshots = self.snapshots.list().into_iter().filter(|info| info.label().index <= index);
        let in_snapshots = snapshots.map(|info| info.header.facts.command_version).max().unwrap_or(0);
        let time_ms = heads.map(|head| head.time_ms).max().unwrap_or(0).max(footing.time_ms);
        let in_log = self.recovered.memberships.iter().take_while(|(at, _)| *at <= index).last();
        let membership = in_log
            .and_then(|(_, payload)| Membership::decode(payload).ok())
            .or_else(|| footing.membership.clone())
            .unwrap_or_else(|| self.identity.initial.clone());
        let term = self.term_at(index).map_or(0, Term::get);
        let command_version = in_heads.max(in_snapshots);
        Applied { id: LogId { term, index: index.get() }, time_ms, membership, command_version }
    }
}

/// A machine that is rebuilt at every start has nothing yet. One that does has loaded a state of its own, which a reset
/// would take away without a word.
fn check_rebuilt(machine: &dyn StateMachine) -> Result<(), StopReason> {
    if machine.durability() == Durability::Durable {
        return Ok(());
    }
    let stands_at = machine.last_applied();
    if stands_at.index == 0 {
        return Ok(());
    }
    Err(StopReason::new(format_args!(
        "the state machine says that it is rebuilt at every start, but it stands at {stands_at} right after start(): if it \
         keeps its state by itself, return Durability::Durable from durability(); if it does not, begin empty in start()"
    )))
}

/// Where a machine stands that has installed a snapshot. One that keeps its own state must say the same.
pub(crate) fn installed(machine: &dyn StateMachine, info: &SnapshotInfo) -> Result<Applied, String> {
    let label = LogId::from(info.label());
    if machine.durability() == Durability::Durable && machine.last_applied() != label {
        let says = machine.last_applied();
        return Err(format!("the state machine says it stands at {says} after it has installed {label}"));
    }
    let facts = &info.header.facts;
    Ok(Applied {
        id: label,
        time_ms: facts.time_ms,
        membership: facts.membership.clone(),
        command_version: facts.command_version,
    })
}

/// Whether an I/O error came from the archive itself, which may have a bad sector, and not from the files beside it.
fn is_of_archive(error: &SnapshotError, info: &SnapshotInfo) -> bool {
    matches!(error, SnapshotError::Io { path, .. } if *path == info.path)
}

/// Why a snapshot was not restored.
enum Restore {
    /// It is damaged; another one may do.
    Unusable(SnapshotError),
    /// The node must not start.
    Failed(StopReason),
}

impl Restore {
    /// Why an archive was not unpacked into `unpacked`. A disk that is full, a process without descriptors, and whatever
    /// goes wrong with the files that are written say nothing of the archive: once that is mended, it is as good as ever.
    fn of(error: SnapshotError, unpacked: &Path) -> Self {
        const NO_DESCRIPTORS: [i32; 2] = [23, 24];
        let next = match &error {
            SnapshotError::NoSpace { .. } => ", and start again",
            SnapshotError::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) =>
            {
                "; make room on this disk, and start again"
            }
            SnapshotError::Io { source, .. }
                if source.raw_os_error().is_some_and(|number| NO_DESCRIPTORS.contains(&number)) =>
            {
                "; raise the limit of open files (ulimit -n), and start again"
            }
            SnapshotError::Io { path, .. } if path.starts_with(unpacked) => {
                "; look at this disk, and start again"
            }
            _ => return Self::Unusable(error),
        };
        Self::Failed(StopReason::new(format_args!("a snapshot could not be unpacked: {error}{next}")))
    }
}

/// What a state machine is told of an archive.
pub(crate) fn metadata_of(info: &SnapshotInfo) -> SnapshotMetadata {
    metadata_in(&info.header)
}

/// The same of a header.
pub(crate) fn metadata_in(header: &SnapshotHeader) -> SnapshotMetadata {
    let facts = &header.facts;
    SnapshotMetadata::new(LogId::from(facts.label), facts.checksum).with_format(facts.user_format)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;

    use super::*;

    /// Only what is wrong with the archive itself makes an older one the better choice.
    #[test]
    fn an_error_of_the_disk_or_the_process_is_not_taken_for_damage_of_the_archive() {
        let (archive, unpacked) = ("/data/snapshots/snap-1-9.snap", Path::new("/data/snapshots/unpacked"));
        let of = |path: &str, source: io::Error| {
            let error =
                SnapshotError::Io { operation: "write", path: PathBuf::from(path), source: Arc::new(source) };
            match Restore::of(error, unpacked) {
                Restore::Failed(reason) => Some(reason.to_string()),
                Restore::Unusable(_) => None,
            }
        };
        for (number, advice) in
            [(28, "make room"), (122, "make room"), (24, "ulimit"), (23, "ulimit"), (5, "this disk")]
        {
            let told = of("/data/snapshots/unpacked/kv.data", io::Error::from_raw_os_error(number));
            assert!(told.as_ref().is_some_and(|told| told.contains(advice)), "{number}: {told:?}");
        }
        assert!(of(archive, io::Error::from_raw_os_error(24)).is_some());
        assert_eq!(of(archive, io::Error::from_raw_os_error(5)), None, "a bad sector in the archive");
    }
}
