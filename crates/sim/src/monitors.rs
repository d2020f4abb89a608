//! What must hold at every step of every run. A monitor is trusted where random search is not: a
//! rule that is checked only through its consequences is found broken late or never.
//!
//! | rule | where it comes from |
//! |---|---|
//! | election safety | Raft paper, figure 3: at most one leader per term |
//! | whom one follows | whoever a node takes for its leader was elected in that term |
//! | vote once | per (node, term), across restarts |
//! | durable before sent | a vote, an ack or a new term leaves only after its write |
//! | committed on a durable quorum | the disks of a quorum hold the entry, crashed nodes counted |
//! | commit-term rule | Raft paper, section 5.4.2: counting commits only own-term entries |
//! | committed is immutable | State Machine Safety: one entry per committed index, for ever |
//! | leader completeness | Raft paper, figure 3: a new leader holds all committed entries |
//! | log matching | Raft paper, section 5.3: (index, term) fixes the entry and the one before |
//! | monotonic | term for ever; commit and applied within a life |
//! | applied is committed and stored | nothing is applied beyond min(commit, own disk) |
//! | recovery | a restart finds what was synced, plus at most whole writes that were not |
//!
//! What snapshots add is in `snapshot_monitors.rs`, and what programs of several versions add in `program.rs`. A log that was purged or begun anew behind a snapshot holds
//! everything up to there: that the snapshot is durable was checked then.

use std::collections::BTreeMap;

use d_engine_core::{
    AppendOutcome, EntryKind, HardState, LogId, LogIndex, NodeId, PersistId, RaftCore, RoleKind, Term,
};
use d_engine_replica::{ApplyJob, ApplySource, Install, PeerMessage, PersistJob};
use d_engine_storage::{LogEntry, LogSuffix, RecoveredLog};

use crate::bound_directories::BoundDirectories;
use crate::bounds::Bounds;
use crate::program::ProgramMonitor;
use crate::snapshot_monitors::SnapshotMonitors;
use crate::traffic::Traffic;

/// What a broken rule is called, and what broke it.
pub(crate) type Broken = String;

/// What a node's disk must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Disk {
    pub(crate) hard_state: HardState,
    /// The entry before the first.
    pub(crate) base: LogId,
    /// The terms of the entries behind it.
    pub(crate) terms: Vec<u64>,
}

impl Disk {
    fn of(recovered: &RecoveredLog) -> Self {
        Self {
            hard_state: recovered.hard_state,
            base: recovered.base,
            terms: recovered.entries.iter().map(|head| head.id.term.get()).collect(),
        }
    }

    fn write(&mut self, job: &PersistJob) {
        if let Some(hard_state) = job.hard_state {
            self.hard_state = hard_state;
        }
        if let Some(first) = job.entries.first() {
            let kept = first.id.index.previous().get().saturating_sub(self.base.index.get());
            self.terms.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
            self.terms.extend(job.entries.iter().map(|entry| entry.id.term.get()));
        }
    }

    fn purge(&mut self, through: LogId) {
        if through.index <= self.base.index {
            // It was ordered before a snapshot took the place of the log.
            return;
        }
        let gone = through.index.get().saturating_sub(self.base.index.get());
        self.terms.drain(..usize::try_from(gone).unwrap_or(usize::MAX).min(self.terms.len()));
        self.base = through;
    }

    fn install(&mut self, install: Install) {
        self.purge(install.base);
        if install.suffix == LogSuffix::Drop {
            self.terms.clear();
        }
    }

    fn last(&self) -> u64 {
        self.base.index.get() + self.terms.len() as u64
    }

    pub(crate) fn term_at(&self, index: LogIndex) -> Option<u64> {
        let Some(position) = index.get().checked_sub(self.base.index.get() + 1) else {
            return (index == self.base.index).then_some(self.base.term.get());
        };
        self.terms.get(usize::try_from(position).ok()?).copied()
    }

    /// What was purged is in a snapshot.
    fn holds(&self, index: LogIndex, term: u64) -> bool {
        index < self.base.index || self.term_at(index) == Some(term)
    }

    pub(crate) fn same(&self, other: &Self) -> bool {
        // The commit index in the hard state is a hint and may be of any age.
        (self.base, &self.terms) == (other.base, &other.terms)
            && self.hard_state.term == other.hard_state.term
            && self.hard_state.vote == other.hard_state.vote
    }
}

/// What a node's log was given and has not reported.
#[derive(Debug, Default)]
struct Begun {
    jobs: Vec<PersistJob>,
    purge: Option<LogId>,
}

impl Begun {
    /// What the disk may hold instead of `disk`, the furthest last.
    fn states(&self, disk: &Disk) -> Vec<Disk> {
        let purged = self.purge.map(|through| {
            let mut purged = disk.clone();
            purged.purge(through);
            purged
        });
        let mut states = Vec::new();
        for mut disk in [Some(disk.clone()), purged].into_iter().flatten() {
            states.push(disk.clone());
            for job in &self.jobs {
                disk.write(job);
                states.push(disk.clone());
                if let Some(install) = job.install {
                    disk.install(install);
                    states.push(disk.clone());
                }
            }
        }
        states
    }
}

#[derive(Clone, Debug, Default)]
struct Watermarks {
    commit: LogIndex,
    applied: LogIndex,
    was_leader_in: Option<Term>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Print {
    digest: u64,
    term_before: u64,
}

/// The monitors of one run.
#[derive(Debug, Default)]
pub(crate) struct Monitors {
    leaders: BTreeMap<Term, u64>,
    votes: BTreeMap<(u64, Term), NodeId>,
    prints: BTreeMap<(u64, u64), Print>,
    /// The term of every committed entry, from index 1.
    committed: Vec<u64>,
    /// The term of the leader that committed it.
    committed_in: Vec<Term>,
    disks: BTreeMap<u64, Disk>,
    begun: BTreeMap<u64, Begun>,
    watermarks: BTreeMap<u64, Watermarks>,
    pub(crate) snapshots: SnapshotMonitors,
    pub(crate) traffic: Traffic,
    pub(crate) bounds: Bounds,
    pub(crate) bound_directories: BoundDirectories,
    pub(crate) programs: ProgramMonitor,
}

pub(crate) fn broken<T>(rule: &str, what: std::fmt::Arguments<'_>) -> Result<T, Broken> {
    Err(format!("{rule}: {what}"))
}

impl Monitors {
    /// How many entries are committed.
    #[must_use]
    pub(crate) fn committed_len(&self) -> u64 {
        self.committed.len() as u64
    }

    /// The node that leads `term`, if one was seen to.
    #[must_use]
    pub(crate) fn leader_of(&self, term: Term) -> Option<u64> {
        self.leaders.get(&term).copied()
    }

    /// A node has handled an event.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn after_step(&mut self, node: u64, core: &RaftCore) -> Result<(), Broken> {
        let term = core.term();
        if core.role() == RoleKind::Leader {
            let leader = *self.leaders.entry(term).or_insert(node);
            if leader != node {
                return broken("election safety", format_args!("{leader} and {node} both lead term {term}"));
            }
            let marks = self.watermarks.entry(node).or_default();
            if marks.was_leader_in != Some(term) {
                marks.was_leader_in = Some(term);
                self.check_completeness(node, core)?;
            }
        }
        let follows = core.leader().map(NodeId::get);
        if follows.is_some() && follows != self.leader_of(term) {
            return broken(
                "whom one follows",
                format_args!(
                    "node {node} takes {follows:?} for the leader of term {term}, which is {:?}",
                    self.leader_of(term)
                ),
            );
        }
        self.check_commit(node, core)
    }

    fn check_completeness(&self, node: u64, core: &RaftCore) -> Result<(), Broken> {
        for (position, (committed, by)) in self.committed.iter().zip(&self.committed_in).enumerate() {
            // A leader whose last vote was long on its way may begin its term after a later one: it owes
            // nothing to what was committed there, and will commit nothing itself.
            if *by >= core.term() {
                break;
            }
            let index = LogIndex::new(position as u64 + 1);
            if index < core.log().base.index {
                continue;
            }
            let held = core.term_at(index).map(Term::get);
            if held != Some(*committed) {
                return broken(
                    "leader completeness",
                    format_args!(
                        "node {node} leads term {} with {held:?} at committed index {index} of term {committed}",
                        core.term()
                    ),
                );
            }
        }
        Ok(())
    }

    fn check_commit(&mut self, node: u64, core: &RaftCore) -> Result<(), Broken> {
        let log = core.log();
        let marks = self.watermarks.entry(node).or_default();
        if log.committed < marks.commit || log.applied < marks.applied {
            return broken(
                "monotonic",
                format_args!("watermarks of node {node} fell to {log:?} from {marks:?}"),
            );
        }
        if log.base.index > log.committed || log.applied > log.committed || log.committed > log.last.index {
            return broken("order of watermarks", format_args!("node {node} stands at {log:?}"));
        }
        let (mut index, before) = (marks.commit, marks.commit);
        marks.commit = log.committed;
        marks.applied = log.applied;
        // What a snapshot holds was committed by somebody before it was taken.
        index = index.max(log.base.index.previous());
        if index.get() > self.committed.len() as u64 {
            return broken(
                "snapshots are committed",
                format_args!("node {node} begins behind {:?}", log.base),
            );
        }
        while index < log.committed {
            index = index.next();
            let term = core.term_at(index).map_or(0, Term::get);
            let position = usize::try_from(index.get() - 1).unwrap_or(usize::MAX);
            match self.committed.get(position) {
                Some(committed) if *committed == term => {}
                Some(committed) => {
                    return broken(
                        "committed is immutable",
                        format_args!(
                            "node {node} commits term {term} at {index}, where term {committed} was committed"
                        ),
                    );
                }
                None => self.first_commit(node, core, index, term)?,
            }
        }
        let rises = before < log.committed && core.role() == RoleKind::Leader;
        if rises && core.term_at(log.committed) != Some(core.term()) {
            return broken(
                "commit-term rule",
                format_args!(
                    "leader {node} of term {} commits up to {} by counting",
                    core.term(),
                    log.committed
                ),
            );
        }
        Ok(())
    }

    fn first_commit(&mut self, node: u64, core: &RaftCore, index: LogIndex, term: u64) -> Result<(), Broken> {
        let holds = |voter: NodeId| self.disks.get(&voter.get()).is_some_and(|disk| disk.holds(index, term));
        if !core.configuration().has_quorum(holds) {
            let on: Vec<u64> = self
                .disks
                .iter()
                .filter(|(_, disk)| disk.holds(index, term))
                .map(|(node, _)| *node)
                .collect();
            return broken(
                "committed on a durable quorum",
                format_args!(
                    "node {node} commits {index} of term {term}, which only the disks of {on:?} hold"
                ),
            );
        }
        self.committed.push(term);
        self.committed_in.push(core.term());
        Ok(())
    }

    /// A node hands out a log write.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_write(&mut self, node: u64, core: &RaftCore, job: &PersistJob) -> Result<(), Broken> {
        let mut before = job.entries.first().and_then(|first| core.term_at(first.id.index.previous()));
        for entry in &job.entries {
            let print = Print { digest: digest(entry), term_before: before.map_or(0, Term::get) };
            let key = (entry.id.index.get(), entry.id.term.get());
            let known = *self.prints.entry(key).or_insert(print);
            if known != print {
                return broken(
                    "log matching",
                    format_args!("node {node} appends another entry at {:?} than was seen before", entry.id),
                );
            }
            before = Some(entry.id.term);
        }
        let committed = &self.committed;
        self.programs.on_write(node, core, &job.entries, |id| is_committed(committed, id))
    }

    /// A write has begun: until it is known to be stored, any number of its steps may survive a crash.
    pub(crate) fn on_write_begun(&mut self, node: u64, jobs: &[PersistJob]) {
        self.begun.entry(node).or_default().jobs.extend_from_slice(jobs);
    }

    /// The log is about to be purged.
    pub(crate) fn on_purge_begun(&mut self, node: u64, through: LogId) {
        self.begun.entry(node).or_default().purge = Some(through);
    }

    /// The log has said that everything up to this write is stored.
    pub(crate) fn on_stored(&mut self, node: u64, through: PersistId) {
        let begun = self.begun.entry(node).or_default();
        let disk = self.disks.entry(node).or_default();
        while let Some(job) = begun.jobs.first().filter(|job| job.id <= through) {
            disk.write(job);
            job.install.into_iter().for_each(|install| disk.install(install));
            begun.jobs.remove(0);
        }
    }

    /// The log has said that the newest term and vote up to this write are stored, before entries that wait for room.
    pub(crate) fn on_hard_state_stored(&mut self, node: u64, through: PersistId) {
        let begun = self.begun.entry(node).or_default();
        let disk = self.disks.entry(node).or_default();
        for job in begun.jobs.iter_mut().filter(|job| job.id <= through) {
            disk.hard_state = job.hard_state.take().unwrap_or(disk.hard_state);
        }
    }

    /// The log has said that the purge is stored.
    pub(crate) fn on_purged(&mut self, node: u64, through: LogId) {
        self.begun.entry(node).or_default().purge = None;
        self.disks.entry(node).or_default().purge(through);
    }

    pub(crate) fn disk(&mut self, node: u64) -> &Disk {
        self.disks.entry(node).or_default()
    }

    /// The latest place at which the node's log may begin.
    pub(crate) fn base_max(&mut self, node: u64) -> u64 {
        let disk = self.disk(node).clone();
        let maybe = self.begun.get(&node).map(|begun| begun.states(&disk)).unwrap_or_default();
        maybe.iter().chain([&disk]).map(|disk| disk.base.index.get()).max().unwrap_or(0)
    }

    /// Whether the entry at `index` is committed with this term.
    pub(crate) fn is_committed(&self, id: LogId) -> bool {
        is_committed(&self.committed, id)
    }

    /// A node has recovered its log. `snapshots` are those that a power cut leaves: an install that a crash has
    /// cut short may have been finished by an earlier start that was cut short itself. Returns whether a write
    /// that had begun is not there.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_recovered(
        &mut self,
        node: u64,
        recovered: &RecoveredLog,
        snapshots: &[LogId],
    ) -> Result<bool, Broken> {
        let found = Disk::of(recovered);
        let stored = self.disk(node).clone();
        let maybe = self.begun.remove(&node).map(|begun| begun.states(&stored)).unwrap_or_default();
        let may_be = |state: &Disk| found.same(state) || is_begun_anew(&found, state, snapshots);
        if !may_be(&stored) && !maybe.iter().any(may_be) {
            return broken(
                "recovery",
                format_args!(
                    "node {node} found {:?} and {} entries behind {:?}, but {:?} and {} entries behind {:?} were \
                     stored (and {} writes may be)",
                    found.hard_state,
                    found.terms.len(),
                    found.base,
                    stored.hard_state,
                    stored.terms.len(),
                    stored.base,
                    maybe.len(),
                ),
            );
        }
        let lost = maybe.last().is_some_and(|begun| !found.same(begun));
        self.disks.insert(node, found);
        self.watermarks.insert(node, Watermarks::default());
        Ok(lost)
    }

    /// A start has brought the log behind a snapshot whose install was cut short. Returns whether it has.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_restored(&mut self, node: u64, restored: &RecoveredLog) -> Result<bool, Broken> {
        let (found, before) = (Disk::of(restored), self.disk(node).clone());
        if found.same(&before) {
            return Ok(false);
        }
        if !self.is_committed(found.base) || !is_begun_anew(&found, &before, &[found.base]) {
            return broken("restore", format_args!("node {node} makes {found:?} of {before:?}"));
        }
        self.disks.insert(node, found);
        Ok(true)
    }

    /// A message leaves a node.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_send(
        &mut self,
        node: u64,
        core: &RaftCore,
        to: NodeId,
        message: &PeerMessage,
    ) -> Result<(), Broken> {
        let disk = self.disks.entry(node).or_default();
        let committed = &self.committed;
        // Whether an ack says more than the disk holds: the very entry that the log has there. An ack of an earlier
        // term than the node's was right when it was made.
        let is_early = |index: LogIndex, term: Term| {
            // What a snapshot covers is committed, and no longer in the log.
            let at = usize::try_from(index.get().saturating_sub(1)).unwrap_or(usize::MAX);
            let covered = committed.get(at).copied().filter(|_| index < core.log().base.index);
            let in_log = covered.or_else(|| core.term_at(index).map(Term::get));
            index > disk.base.index && term == core.term() && disk.term_at(index) != in_log
        };
        let stored = disk.hard_state;
        let early = |what: &str| {
            broken(
                "durable before sent",
                format_args!(
                    "node {node} sends {what} ({message:?}), its disk holds {stored:?} and entries {}..={}",
                    disk.base.index.next(),
                    disk.last()
                ),
            )
        };
        match message {
            PeerMessage::PreVote { .. } | PeerMessage::PreVoteReply { granted: true, .. } => {}
            PeerMessage::RequestVote { term, .. } => {
                let own = NodeId::new(node);
                if stored.term < *term || (stored.term == *term && stored.vote != own) {
                    return early("a request for votes before its own vote is stored");
                }
                return own.map_or(Ok(()), |own| self.note_vote(node, *term, own));
            }
            PeerMessage::VoteReply { term, granted: true, .. } => {
                if stored.term < *term || (stored.term == *term && stored.vote != Some(to)) {
                    return early("a vote that is not stored");
                }
                return self.note_vote(node, *term, to);
            }
            PeerMessage::AppendReply { term, outcome: AppendOutcome::Stored(index) } => {
                if is_early(*index, *term) {
                    return early("an ack for entries that are not stored");
                }
            }
            PeerMessage::HeartbeatReply { stored: index, term, report, .. } => {
                self.programs.on_announced(node, *term, report.command_version_max);
                if is_early(*index, *term) {
                    return early("an ack (in a heartbeat's answer) for entries that are not stored");
                }
            }
            PeerMessage::TimeoutNow { .. }
            | PeerMessage::ReadRequest { .. }
            | PeerMessage::ReadReply { .. }
            | PeerMessage::PreVoteReply { .. }
            | PeerMessage::VoteReply { .. }
            | PeerMessage::Append { .. }
            | PeerMessage::AppendReply { .. }
            | PeerMessage::Heartbeat { .. } => {}
        }
        let term = match message {
            PeerMessage::PreVoteReply { term, granted: false, wall_ms: 0 }
            | PeerMessage::VoteReply { term, .. }
            | PeerMessage::Append { term, .. }
            | PeerMessage::AppendReply { term, .. }
            | PeerMessage::Heartbeat { term, .. }
            | PeerMessage::HeartbeatReply { term, .. } => *term,
            _ => Term::ZERO,
        };
        if term > stored.term { early("a message of a term that is not stored") } else { Ok(()) }
    }

    fn note_vote(&mut self, node: u64, term: Term, candidate: NodeId) -> Result<(), Broken> {
        let before = *self.votes.entry((node, term)).or_insert(candidate);
        if before != candidate {
            return broken(
                "vote once",
                format_args!("node {node} voted for {before} and for {candidate} in term {term}"),
            );
        }
        Ok(())
    }

    /// A node is about to apply entries.
    ///
    /// # Errors
    /// The rule that is broken.
    pub(crate) fn on_apply(&mut self, node: u64, job: &ApplyJob) -> Result<(), Broken> {
        let (last, terms): (LogIndex, Vec<(LogIndex, u64)>) = match &job.source {
            ApplySource::Stored(_, last) => (*last, Vec::new()),
            ApplySource::Snapshot(label) => {
                let index = LogIndex::new(label.index);
                (index, vec![(index, label.term)])
            }
            ApplySource::Entries(entries) => (
                entries.last().map_or(LogIndex::ZERO, |entry| entry.id.index),
                entries.iter().map(|entry| (entry.id.index, entry.id.term.get())).collect(),
            ),
        };
        if last.get() > self.committed.len() as u64 {
            return broken("applied is committed", format_args!("node {node} applies up to {last}"));
        }
        for (index, term) in terms {
            let position = usize::try_from(index.get().saturating_sub(1)).unwrap_or(usize::MAX);
            if self.committed.get(position) != Some(&term) {
                return broken(
                    "applied is committed",
                    format_args!("node {node} applies term {term} at {index}"),
                );
            }
        }
        let on_disk = self.disk(node).last();
        if last.get() > on_disk {
            return broken(
                "applied is stored",
                format_args!("node {node} applies up to {last}, its disk ends at {on_disk}"),
            );
        }
        Ok(())
    }

    /// Whether an entry of an earlier term than its leader's lies on a majority, uncommitted: the
    /// situation of figure 8.
    #[must_use]
    pub(crate) fn old_term_on_majority(&self, core: &RaftCore) -> bool {
        let index = core.log().committed.next();
        let Some(term) = core.term_at(index) else { return false };
        core.role() == RoleKind::Leader
            && term < core.term()
            && core.configuration().has_quorum(|voter| {
                self.disks.get(&voter.get()).is_some_and(|disk| disk.term_at(index) == Some(term.get()))
            })
    }
}

/// Whether the entry is one of these, whose terms are told from index 1.
fn is_committed(committed: &[u64], id: LogId) -> bool {
    let position = id.index.get().checked_sub(1).and_then(|position| usize::try_from(position).ok());
    position.is_some_and(|position| committed.get(position) == Some(&id.term.get()))
}

/// Whether `found` is `before` after the log was begun anew behind one of `snapshots`, which it did not hold,
/// or after the first step of that: the term of the snapshot's last entry.
fn is_begun_anew(found: &Disk, before: &Disk, snapshots: &[LogId]) -> bool {
    let raised = |label: &LogId| before.hard_state.term < label.term;
    let has_state_for = |label: &LogId| match raised(label) {
        true => found.hard_state.term == label.term && found.hard_state.vote.is_none(),
        false => {
            (found.hard_state.term, found.hard_state.vote) == (before.hard_state.term, before.hard_state.vote)
        }
    };
    snapshots.iter().any(|label| {
        let is_log_before = (found.base, &found.terms) == (before.base, &before.terms) && raised(label);
        let is_log_after = found.base == *label
            && found.terms.is_empty()
            && label.index >= before.base.index
            && before.term_at(label.index) != Some(label.term.get());
        has_state_for(label) && (is_log_before || is_log_after)
    })
}

/// FNV-1a over everything that must be equal between replicas.
fn digest(entry: &LogEntry) -> u64 {
    let kind = [entry.kind.number()];
    let time = entry.time_ms.to_le_bytes();
    let is_command = [u8::from(entry.kind == EntryKind::Command)];
    let version = entry.version.to_le_bytes();
    let bytes = kind.iter().chain(&time).chain(&is_command).chain(&version).chain(entry.data.iter());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
