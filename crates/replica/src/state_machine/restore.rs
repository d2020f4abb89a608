//! The start of a node: brings the log, the snapshots and the state machine to one position,
//! whatever state a crash has left them in.
//!
//! | found | done |
//! |---|---|
//! | an intact snapshot past the log, or one whose last included entry the log lacks | an install was cut short: the log restarts after it |
//! | a damaged snapshot | the previous one, if the log still reaches back to that |
//! | a `Rebuilt` machine | reset; the newest intact snapshot; the log from there |
//! | a `Durable` machine that is empty or whose position is before the log's base | the newest intact snapshot; the log from there |
//! | a `Durable` machine inside the log | the log from its position |
//! | a log that begins after the end of every intact snapshot | refused: entries between them are missing |

mod failure;

use std::sync::Arc;

use d_engine_core::{HardState, LogIndex, Term};
use d_engine_storage::snapshot::{FullSpeed, Health, SnapshotError, SnapshotInfo, SnapshotStore};
use d_engine_storage::{Identity, LogStore, LogSuffix, Membership, RecoveredLog};

use failure::Restore;

use crate::clients::command_version::check_state;
use crate::state_machine::position::{
    Applied, check_own_snapshot, check_position, failed, installed, metadata_of,
};
use crate::{
    Binding, Durability, LogId, SnapshotPolicy, StateMachine, StateMachineHandler, StopReason,
};

/// The positions of log and state machine at a node's start.
#[derive(Clone, Debug, Default)]
pub struct StartPosition {
    /// The last entry whose effect is in the state machine.
    pub applied: LogIndex,
    /// The membership at the log's base; `None`: that of the node's identity.
    pub membership: Option<Membership>,
    /// Log time at the log's base, in UNIX milliseconds.
    pub time_ms: u64,
    /// Last included index of the newest snapshot that was read completely at this start.
    pub covered: LogIndex,
    /// Length of the newest snapshot in bytes.
    pub covered_bytes: u64,
    /// Last included index of the oldest retained snapshot that is not known to be damaged.
    pub oldest: LogIndex,
    /// The highest command version that the state machine decodes.
    pub command_version_max: u32,
    /// The highest version among the commands that took effect in its state.
    pub command_version_floor: u32,
}

impl StartPosition {
    /// The log may be purged only up to a snapshot that the other nodes accept, and no further than
    /// the oldest retained one.
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

/// The durable state from which a node starts.
pub struct Start<'a> {
    /// The identity of the node.
    pub identity: &'a Identity,
    /// The recovered log. It is restarted after the snapshot if the install of a snapshot was cut
    /// short.
    pub log: &'a mut dyn LogStore,
    /// The recovered content of `log`; kept consistent with it.
    pub recovered: &'a mut RecoveredLog,
    /// The node's snapshots.
    pub snapshots: &'a SnapshotStore,
}

impl StateMachineHandler {
    /// Starts a state machine and brings it to a position from which the log continues.
    ///
    /// # Errors
    /// The node must not start: the machine returned an error, its position does not fit the log,
    /// or entries between the newest usable snapshot and the log are missing. The message contains
    /// the values.
    pub async fn open(
        machine: Arc<dyn StateMachine>,
        policy: Arc<dyn SnapshotPolicy>,
        mut start: Start<'_>,
    ) -> Result<(Self, StartPosition), StopReason> {
        let Identity { cluster, group, incarnation, continues, .. } = start.identity;
        let mut binding = Binding::new(*cluster, group.get(), *incarnation);
        binding.continues.clone_from(continues);
        machine.bind(&binding).map_err(|error| failed("bind", &error))?;
        machine.start().map_err(|error| {
            StopReason::new(format_args!("the state machine did not start: {error}"))
        })?;
        let checked = check_rebuilt(machine.as_ref()).and_then(|()| start.check_commands());
        let opened = match checked {
            Ok(()) => start.bring_up(machine.as_ref()).await,
            Err(reason) => Err(reason),
        };
        let opened = opened.and_then(|(applied, mut start_position)| {
            // Checked here for durable machines too: their state need not come from a snapshot in
            // the list.
            check_state(machine.as_ref(), applied.command_version, applied.id)?;
            start_position.limit_to(start.snapshots);
            start_position.command_version_max = machine.command_version_max();
            start_position.command_version_floor = applied.command_version;
            let mut handler = Self::new(machine.clone(), policy, applied);
            handler.learn_newest(&start).map(|()| (handler, start_position))
        });
        if opened.is_err() {
            // It was started, so it is stopped. An error of `stop` does not matter beside the
            // reason above.
            machine.stop().ok();
        }
        opened
    }
}

impl StateMachineHandler {
    /// Reports the newest snapshot to the machine, because a crash may have come between the
    /// snapshot and that report.
    fn learn_newest(&mut self, start: &Start<'_>) -> Result<(), StopReason> {
        let usable = |info: &SnapshotInfo| {
            info.health != Health::Damaged && info.last_included().index <= self.applied().index
        };
        let newest = start.snapshots.list().into_iter().find(usable);
        // Entries applied after it have grown the log in an earlier boot.
        let covered = newest.as_ref().map_or(LogIndex::new(0), |info| info.last_included().index);
        let applied = self.applied().index;
        let beyond = start.recovered.entries.iter().filter(|head| head.id.index > covered);
        for head in beyond.take_while(|head| head.id.index <= applied) {
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
    /// Refuses the start if a snapshot of this node contains the effect of commands that this
    /// program does not decode: the program is older than one that ran here before. The check at
    /// the start comes before the log reaches the first of these commands.
    fn check_commands(&self) -> Result<(), StopReason> {
        let newer = self
            .snapshots
            .unusable()
            .iter()
            .find(|error| matches!(error, SnapshotError::NewerCommands { .. }));
        newer.map_or(Ok(()), |error| Err(StopReason::of_older_program(error)))
    }

    async fn bring_up(
        &mut self,
        machine: &dyn StateMachine,
    ) -> Result<(Applied, StartPosition), StopReason> {
        let rebuilt = machine.durability() == Durability::Rebuilt;
        let position = if rebuilt { LogId::default() } else { machine.last_applied() };
        if !rebuilt {
            check_own_snapshot(machine, position)?;
        }
        // It has lost its state or is new in this directory: a snapshot is quicker than the whole
        // log.
        let is_new = !rebuilt && position == LogId::default() && machine.is_empty();
        let mut damage = Vec::new();
        for info in self.snapshots.list() {
            let needed = rebuilt
                || is_new
                || position.index < self.recovered.base.index.get()
                || self.is_past_log(&info);
            if info.last_included().index < self.recovered.base.index || !needed {
                break;
            }
            check_state(machine, info.header.facts.command_version, info.last_included())?;
            match self.restore(machine, &info).await {
                Ok(start_position) => {
                    return Ok((
                        installed(machine, &info).map_err(StopReason::new)?,
                        start_position,
                    ));
                }
                // A disk that cannot store the unpacked files does not mean that the archive is
                // damaged.
                Err(Restore::Unusable(error @ SnapshotError::Io { .. }))
                    if !is_of_archive(&error, &info) =>
                {
                    return Err(StopReason::new(format_args!(
                        "a snapshot could not be unpacked: {error}; repair the cause and start \
                         again"
                    )));
                }
                Err(Restore::Unusable(error)) => {
                    tracing::warn!(%error, "a snapshot is unusable; the previous one is tried");
                    damage.push(error);
                }
                Err(Restore::Failed(reason)) => return Err(reason),
            }
        }
        self.without_snapshot(machine, position, &damage).await
    }

    /// The start without a snapshot: none has to be installed, or none can be.
    async fn without_snapshot(
        &self,
        machine: &dyn StateMachine,
        position: LogId,
        damage: &[SnapshotError],
    ) -> Result<(Applied, StartPosition), StopReason> {
        let base = self.recovered.base;
        let rebuilt = machine.durability() == Durability::Rebuilt;
        if base != LogId::ZERO && (rebuilt || position.index < base.index) {
            return Err(self.does_not_reach(position, damage));
        }
        let mut start_position = StartPosition::default();
        if rebuilt {
            machine.reset().await.map_err(|error| {
                StopReason::new(format_args!("the state machine could not be reset: {error}"))
            })?;
        } else {
            let continued = !self.identity.continues.is_empty();
            check_position(machine, position, self.recovered, continued)?;
            start_position.applied = position.index;
        }
        if let Some(time_ms) = self.recovered.base_time_ms.filter(|_| base != LogId::ZERO) {
            // The log itself records these values, whatever happened to the snapshots.
            start_position.time_ms = time_ms;
            let payload = self.recovered.base_membership.as_deref();
            start_position.membership =
                payload.map(Membership::decode).transpose().map_err(StopReason::new)?;
            let applied = self.facts_at(start_position.applied, &start_position);
            return Ok((applied, start_position));
        }
        // After a received snapshot, only its header records the membership. A later snapshot is
        // damaged, or the log would begin after it; it has a later membership.
        let from_base =
            self.snapshots.list().into_iter().filter(|it| it.last_included().index >= base.index);
        let oldest = from_base.last();
        if let Some(info) = oldest.filter(|_| base != LogId::ZERO) {
            start_position.membership = Some(info.header.facts.membership.clone());
            start_position.time_ms = info.header.facts.time_ms;
        } else if base != LogId::ZERO {
            return Err(StopReason::new(format_args!(
                "the log begins after {base}, and no snapshot contains the membership at that \
                 point; bring back a copy of this node's directory (docs/snapshots.md)"
            )));
        }
        let applied = self.facts_at(start_position.applied, &start_position);
        Ok((applied, start_position))
    }

    /// The error for a log that no usable snapshot reaches, with advice.
    fn does_not_reach(&self, position: LogId, damage: &[SnapshotError]) -> StopReason {
        let base = self.recovered.base;
        let unusable: Vec<&SnapshotError> =
            self.snapshots.unusable().iter().chain(damage).collect();
        let newer =
            unusable.iter().any(|error| matches!(error, SnapshotError::UnsupportedFormat { .. }));
        let mut known: Vec<String> = unusable.iter().map(ToString::to_string).collect();
        let earlier =
            self.snapshots.list().into_iter().find(|info| info.last_included().index < base.index);
        known.extend(earlier.map(|info| format!("{} ends before that", info.path.display())));
        let known = if known.is_empty() { "there is none".to_owned() } else { known.join("; ") };
        let next = if newer {
            "nothing is lost: start this node with the newer program".to_owned()
        } else {
            format!(
                "the entries between them are missing on this node; fetch a snapshot of another \
                 member with `d-engine repair --data-dir DIR --from HOST:PORT`, or copy the newest \
                 snap-*.snap of another node into {}, and start again (docs/recovery.md)",
                self.snapshots.dir().display()
            )
        };
        StopReason::new(format_args!(
            "the state machine has applied up to {position}, but the log begins after {base}, and \
             this node has no usable snapshot that reaches that point ({known}): {next}"
        ))
    }

    /// Whether the snapshot contains entries that the log lacks: it was received, and the log was
    /// not yet restarted after it. A node's own snapshots never reach past the log that it has
    /// persisted.
    fn is_past_log(&self, info: &SnapshotInfo) -> bool {
        let last_included = info.last_included();
        last_included.index >= self.recovered.base.index
            && self.term_at(last_included.index) != Some(last_included.term)
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

    /// Installs a snapshot into the state machine, and restarts the log after it if the log does
    /// not reach it. The unpacked files are removed, also if the start is refused: a full disk
    /// would not have their space until a start succeeds.
    async fn restore(
        &mut self,
        machine: &dyn StateMachine,
        info: &SnapshotInfo,
    ) -> Result<StartPosition, Restore> {
        let restored = self.restore_unpacked(machine, info).await;
        // Files that cannot be removed now are removed at the next start.
        self.snapshots.clear_unpacked().ok();
        restored
    }

    async fn restore_unpacked(
        &mut self,
        machine: &dyn StateMachine,
        info: &SnapshotInfo,
    ) -> Result<StartPosition, Restore> {
        let last_included = info.last_included();
        let path = self.snapshots.unpack_dir();
        self.snapshots.clear_unpacked().map_err(|error| Restore::of(error, &path))?;
        // Every checksum is verified here: no state is dropped for a snapshot that cannot replace
        // it.
        self.snapshots
            .unpack(last_included, &path, &mut FullSpeed)
            .map_err(|error| Restore::of(error, &path))?;
        if self.is_past_log(info) {
            self.begin_log_anew(last_included).map_err(Restore::Failed)?;
        }
        // A durable machine that receives its whole state because it is outside its log is reset
        // too: the rest of its old state is of no use.
        if machine.durability() == Durability::Rebuilt || machine.last_applied() != LogId::default()
        {
            machine.reset().await.map_err(|error| Restore::Failed(failed("reset", &error)))?;
        }
        let meta = metadata_of(info);
        let installed = machine.apply_snapshot_from_file(&meta, path).await;
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
        Ok(StartPosition {
            applied: last_included.index,
            membership,
            time_ms: facts.time_ms,
            covered: last_included.index,
            covered_bytes: info.len,
            oldest: last_included.index,
            ..StartPosition::default()
        })
    }

    /// Completes an install that a crash has cut short. The term of the last included entry is at
    /// most the sender's term, which this node must not fall below.
    fn begin_log_anew(&mut self, last_included: LogId) -> Result<(), StopReason> {
        if self.recovered.hard_state.term < last_included.term {
            let HardState { stickiness, .. } = self.recovered.hard_state;
            let hard_state = HardState {
                term: last_included.term,
                vote: None,
                commit: last_included.index,
                stickiness,
            };
            self.log.append(self.identity.group, Some(hard_state), &[]).map_err(StopReason::new)?;
            self.log.sync().map_err(StopReason::new)?;
            self.recovered.hard_state = hard_state;
        }
        self.log
            .install(self.identity.group, last_included, LogSuffix::Drop)
            .map_err(StopReason::new)?;
        tracing::info!(
            %last_included,
            "the install of a snapshot was cut short at the last stop; it is completed, and the \
             log now begins after the snapshot"
        );
        self.recovered.base = last_included;
        self.recovered.base_time_ms = None;
        self.recovered.base_membership = None;
        self.recovered.entries.clear();
        self.recovered.memberships.clear();
        self.recovered.skips.clear();
        Ok(())
    }

    /// The facts that a snapshot taken at `index` would contain.
    fn facts_at(&self, index: LogIndex, start_position: &StartPosition) -> Applied {
        let heads = self.recovered.entries.iter().take_while(|head| head.id.index <= index);
        let in_heads = heads.clone().map(|head| head.version).max().unwrap_or(0);
        // Purged entries are in a snapshot. If none can be read any more, the version found is
        // lower than the true one: a leader then only has to wait for the voters' announcements
        // once more.
        let snapshots =
            self.snapshots.list().into_iter().filter(|info| info.last_included().index <= index);
        let in_snapshots =
            snapshots.map(|info| info.header.facts.command_version).max().unwrap_or(0);
        let time_ms = heads.map(|head| head.time_ms).max().unwrap_or(0).max(start_position.time_ms);
        let in_log = self.recovered.memberships.iter().take_while(|(at, _)| *at <= index).last();
        let membership = in_log
            .and_then(|(_, payload)| Membership::decode(payload).ok())
            .or_else(|| start_position.membership.clone())
            .unwrap_or_else(|| self.identity.initial.clone());
        let term = self.term_at(index).unwrap_or_default();
        let command_version = in_heads.max(in_snapshots);
        Applied { id: LogId::new(term, index), time_ms, membership, command_version }
    }
}

/// Refuses a `Rebuilt` machine that is not empty: it has loaded state of its own, which a reset
/// would remove silently.
fn check_rebuilt(machine: &dyn StateMachine) -> Result<(), StopReason> {
    if machine.durability() == Durability::Durable {
        return Ok(());
    }
    let position = machine.last_applied();
    if position.index == 0 {
        return Ok(());
    }
    Err(StopReason::new(format_args!(
        "the state machine declares Durability::Rebuilt, but reports that it has applied up to \
         {position} right after start(): if it stores its state itself, return \
         Durability::Durable from durability(); if it does not, begin empty in start()"
    )))
}

/// Whether an I/O error comes from the archive itself, which may have a bad sector, rather than
/// from the unpacked files.
fn is_of_archive(error: &SnapshotError, info: &SnapshotInfo) -> bool {
    matches!(error, SnapshotError::Io { path, .. } if *path == info.path)
}
