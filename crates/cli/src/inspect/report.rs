//! What is printed, as it is printed with `--json`.

use std::path::Path;

use d_engine_offline::inspect::{
    ChunkDamage, Damage, Directory, EntryKind, KnownMembers, LogEntry, Loss, Member, MemberRole,
    MembersFrom, Membership, SegmentSummary, SnapshotFile, SnapshotState, StoredEntry, TornTail,
    Verdict, decode_skip, rfc3339,
};
use serde::Serialize;

use crate::json::hex;

/// The first line.
#[derive(Serialize, Debug)]
pub(super) struct DirectoryLine {
    pub(super) directory: DirectoryReport,
}

/// The line of a damaged place.
#[derive(Serialize, Debug)]
pub(super) struct DamageLine {
    pub(super) damage: DamageReport,
}

/// The directory as a whole.
#[derive(Serialize, Debug)]
pub(super) struct DirectoryReport {
    pub(super) path: String,
    pub(super) in_use_by: Option<String>,
    pub(super) cluster_id: Option<String>,
    pub(super) node: Option<u64>,
    pub(super) incarnation: Option<String>,
    /// The configuration that added the node; null if the identity is lost.
    pub(super) born: Option<String>,
    pub(super) term: Option<u64>,
    pub(super) vote: Option<u64>,
    pub(super) commit_hint: Option<u64>,
    /// Whether damage follows the last term and vote that can be read.
    pub(super) term_and_vote_may_be_older: bool,
    /// Everything before this place is known to be durable.
    pub(super) durable_to: Option<PlaceReport>,
    /// The last purged entry; null if it is lost.
    pub(super) base: Option<IdReport>,
    pub(super) first: Option<IdReport>,
    pub(super) last: Option<IdReport>,
    pub(super) members: Option<MembersReport>,
    pub(super) segments: Vec<SegmentReport>,
    pub(super) unused_segments: Vec<String>,
    pub(super) snapshots: Vec<SnapshotReport>,
    pub(super) unfinished_snapshots: Vec<String>,
    /// Damage in files beside the log and the snapshots.
    pub(super) damage: Vec<DamageReport>,
    pub(super) torn_tail: Option<PlaceReport>,
    /// Damaged places in the log, the snapshots and the files beside them.
    pub(super) damaged: u64,
    pub(super) start: StartReport,
}

#[derive(Serialize, Debug)]
pub(super) struct IdReport {
    pub(super) term: u64,
    pub(super) index: u64,
}

#[derive(Serialize, Debug)]
pub(super) struct PlaceReport {
    pub(super) file: String,
    pub(super) offset: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
}

/// What a start of the node would do.
#[derive(Serialize, Debug)]
pub(super) struct StartReport {
    /// "in use", "starts", "starts after a snapshot", "joins" or "refuses".
    pub(super) outcome: &'static str,
    pub(super) reason: Option<String>,
    pub(super) next: Vec<String>,
}

#[derive(Serialize, Debug)]
pub(super) struct SegmentReport {
    pub(super) file: String,
    pub(super) epoch: Option<u64>,
    pub(super) first_index: Option<u64>,
    pub(super) last_index: Option<u64>,
    pub(super) groups: u64,
    /// Bytes up to the end of the last whole group.
    pub(super) used_bytes: u64,
    pub(super) file_bytes: u64,
    pub(super) damaged: u64,
}

#[derive(Serialize, Debug)]
pub(super) struct SnapshotReport {
    pub(super) file: String,
    pub(super) last_included: Option<IdReport>,
    pub(super) time: Option<String>,
    pub(super) bytes: u64,
    /// "intact", "content not read", "damaged" or "not usable".
    pub(super) state: &'static str,
    pub(super) reason: Option<String>,
    pub(super) damage: Vec<ChunkReport>,
}

/// A list of members.
#[derive(Serialize, Debug)]
pub(super) struct MembersReport {
    /// Where the list stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<String>,
    pub(super) configuration: Option<String>,
    pub(super) members: Vec<MemberReport>,
    /// Why the list cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

#[derive(Serialize, Debug)]
pub(super) struct MemberReport {
    pub(super) node: u64,
    pub(super) role: &'static str,
    pub(super) replaces: Option<u64>,
    pub(super) peer_addr: String,
    pub(super) client_addr: Option<String>,
}

/// A damaged place.
#[derive(Serialize, Debug)]
pub(super) struct DamageReport {
    pub(super) file: String,
    pub(super) offset: u64,
    pub(super) to: Option<u64>,
    pub(super) what: String,
    /// What is lost, in words.
    pub(super) lost: String,
    pub(super) first_lost: Option<u64>,
    pub(super) last_lost: Option<u64>,
}

/// A damaged place in a snapshot.
#[derive(Serialize, Debug)]
pub(super) struct ChunkReport {
    pub(super) chunk: Option<u64>,
    pub(super) offset: u64,
    pub(super) what: String,
}

/// An entry.
#[derive(Serialize, Debug)]
pub(super) struct EntryReport {
    pub(super) index: u64,
    pub(super) term: u64,
    pub(super) kind: &'static str,
    pub(super) time: Option<String>,
    pub(super) bytes: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) version: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) session: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) serial: Option<u64>,
    /// The beginning of a command, escaped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) preview: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) members: Option<MembersReport>,
    /// The entry that this one skips.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) skips: Option<IdReport>,
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl DirectoryReport {
    pub(super) fn of(directory: &Directory) -> Self {
        let (survey, log) = (directory.survey(), directory.log());
        let owner = survey.owner();
        let state = log.hard_state;
        let (segment, offset) = log.watermark;
        let durable = log.segments.iter().find(|it| it.number == segment);
        Self {
            path: survey.dir().display().to_string(),
            in_use_by: survey.holder().map(str::to_owned),
            cluster_id: owner.map(|it| it.cluster.to_string()),
            node: owner.map(|it| it.node.get()),
            incarnation: owner.map(|it| it.incarnation.to_string()),
            born: survey.identity().map(|it| it.born().to_string()),
            term: state.map(|it| it.term.get()),
            vote: state.and_then(|it| it.vote).map(|it| it.get()),
            commit_hint: state.map(|it| it.commit.get()),
            term_and_vote_may_be_older: log.hard_state_may_be_older,
            durable_to: durable.map(|it| PlaceReport { file: name(&it.path), offset, bytes: None }),
            base: log.base.map(IdReport::of),
            first: log.first.map(IdReport::of),
            last: log.last.map(IdReport::of),
            members: directory.members().map(MembersReport::known),
            segments: log.segments.iter().map(SegmentReport::of).collect(),
            unused_segments: survey.unused().to_vec(),
            snapshots: directory.snapshots().iter().map(SnapshotReport::of).collect(),
            unfinished_snapshots: directory.leftovers().to_vec(),
            damage: survey.damage().iter().map(DamageReport::of).collect(),
            torn_tail: log.torn.as_ref().map(PlaceReport::of),
            damaged: directory.damaged(),
            start: StartReport::of(directory.verdict()),
        }
    }
}

impl IdReport {
    pub(super) fn of(id: d_engine_offline::inspect::LogId) -> Self {
        Self { term: id.term.get(), index: id.index.get() }
    }
}

impl PlaceReport {
    fn of(torn: &TornTail) -> Self {
        Self { file: name(&torn.path), offset: torn.offset, bytes: Some(torn.bytes) }
    }
}

impl StartReport {
    fn of(verdict: Verdict) -> Self {
        let (outcome, reason, next) = match verdict {
            Verdict::InUse { holder } => ("in use", Some(holder), Vec::new()),
            Verdict::Starts => ("starts", None, Vec::new()),
            Verdict::StartsAfter { snapshot } => {
                let (term, index) = (snapshot.term, snapshot.index);
                let reason = format!("the snapshot up to entry {index} of term {term}");
                ("starts after a snapshot", Some(reason), Vec::new())
            }
            Verdict::Joins => ("joins", None, Vec::new()),
            Verdict::Refuses { reason, next } => ("refuses", Some(reason), next),
            other => ("unknown", Some(format!("{other:?}")), Vec::new()),
        };
        Self { outcome, reason, next }
    }
}

impl SegmentReport {
    fn of(segment: &SegmentSummary) -> Self {
        Self {
            file: name(&segment.path),
            epoch: segment.epoch,
            first_index: segment.first.map(|it| it.get()),
            last_index: segment.last.map(|it| it.get()),
            groups: segment.groups,
            used_bytes: segment.end,
            file_bytes: segment.len,
            damaged: segment.damaged,
        }
    }
}

impl SnapshotReport {
    fn of(file: &SnapshotFile) -> Self {
        let (state, reason, damage) = match &file.state {
            SnapshotState::Unchecked => ("content not read", None, &[][..]),
            SnapshotState::Whole => ("intact", None, &[][..]),
            SnapshotState::Damaged(damage) => ("damaged", None, &damage[..]),
            SnapshotState::Unusable(reason) => ("not usable", Some(reason.clone()), &[][..]),
        };
        Self {
            file: name(&file.path),
            last_included: file.id().map(IdReport::of),
            time: file.header.as_ref().and_then(|header| time(header.facts.time_ms)),
            bytes: file.len,
            state,
            reason,
            damage: damage.iter().map(ChunkReport::of).collect(),
        }
    }
}

impl MembersReport {
    fn known(known: &KnownMembers) -> Self {
        let from = match known.from {
            MembersFrom::Entry(index) => format!("entry {index}"),
            MembersFrom::LogBeginning => "the beginning of the log".to_owned(),
            MembersFrom::Snapshot(index) => format!("the snapshot up to entry {index}"),
            MembersFrom::Identity => "the identity".to_owned(),
        };
        let read = match &known.membership {
            Ok(membership) => Self::of(membership),
            Err(error) => Self::unreadable(error.to_string()),
        };
        Self { from: Some(from), ..read }
    }

    pub(super) fn of(membership: &Membership) -> Self {
        Self {
            from: None,
            configuration: Some(membership.id().to_string()),
            members: membership.members().iter().map(MemberReport::of).collect(),
            error: None,
        }
    }

    fn unreadable(error: String) -> Self {
        Self { from: None, configuration: None, members: Vec::new(), error: Some(error) }
    }
}

impl MemberReport {
    fn of(member: &Member) -> Self {
        let (role, replaces) = match member.role {
            MemberRole::Voter => ("voter", None),
            MemberRole::Learner => ("learner", None),
            MemberRole::Joining { replaces } => ("joining", replaces),
            MemberRole::Leaving => ("leaving", None),
            MemberRole::Demoting => ("demoting", None),
            MemberRole::Incoming { replaces } => ("incoming voter", replaces),
            MemberRole::Outgoing { .. } => ("outgoing voter", None),
            MemberRole::OutgoingToLearn => ("outgoing voter, then learner", None),
        };
        Self {
            node: member.node,
            role,
            replaces,
            peer_addr: member.peer_addr.clone(),
            client_addr: Some(member.client_addr.clone()).filter(|it| !it.is_empty()),
        }
    }
}

impl DamageReport {
    pub(super) fn of(damage: &Damage) -> Self {
        let (lost, first_lost, last_lost) = match damage.loss {
            Loss::Copy => ("nothing is lost; a start repairs it".to_owned(), None, None),
            Loss::Record => ("the record is lost".to_owned(), None, None),
            Loss::Entries { first, last } if first == last => {
                (format!("entry {first} is lost"), Some(first), Some(last))
            }
            Loss::Entries { first, last } => {
                (format!("entries {first} to {last} are lost"), Some(first), Some(last))
            }
            Loss::From(first) => {
                let lost = format!("entries from {first} on are lost, if there were any");
                (lost, Some(first), None)
            }
            Loss::NoIndex => {
                let lost = "no index is missing; lost are terms and votes, entries that later ones \
                            replace, or newer versions of the entries before";
                (lost.to_owned(), None, None)
            }
            Loss::Header => ("only the segment's header is lost".to_owned(), None, None),
            Loss::Unknown => ("what is lost is unknown".to_owned(), None, None),
        };
        Self {
            file: name(&damage.path),
            offset: damage.offset,
            to: damage.to,
            what: damage.what.clone(),
            lost,
            first_lost: first_lost.map(|it| it.get()),
            last_lost: last_lost.map(|it| it.get()),
        }
    }
}

impl ChunkReport {
    pub(super) fn of(damage: &ChunkDamage) -> Self {
        Self { chunk: damage.chunk, offset: damage.offset, what: damage.what.clone() }
    }
}

impl EntryReport {
    /// `preview` is how many bytes of a command are shown.
    pub(super) fn of(stored: &StoredEntry, preview: usize) -> Self {
        let LogEntry { id, kind, time_ms, session, version, data } = &stored.entry;
        let shown = data.get(..preview.min(data.len())).unwrap_or_default();
        let is_cut = shown.len() < data.len();
        let text = format!("{}{}", shown.escape_ascii(), if is_cut { "..." } else { "" });
        let has_text = !matches!(kind, EntryKind::Membership | EntryKind::Skip);
        let members = (*kind == EntryKind::Membership).then(|| match Membership::decode(data) {
            Ok(membership) => MembersReport::of(&membership),
            Err(error) => MembersReport::unreadable(error.to_string()),
        });
        let skips = decode_skip(data).filter(|_| *kind == EntryKind::Skip);
        Self {
            index: id.index.get(),
            term: id.term.get(),
            kind: kind_name(*kind),
            time: time(*time_ms),
            bytes: data.len(),
            version: Some(*version).filter(|version| *version > 0),
            session: session.map(|it| it.session),
            serial: session.map(|it| it.serial),
            preview: Some(text).filter(|_| has_text && !data.is_empty()),
            members,
            skips: skips.map(IdReport::of),
            segment: stored.segment,
            offset: stored.offset,
        }
    }
}

const fn kind_name(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::Noop => "no-op",
        EntryKind::Command => "command",
        EntryKind::Membership => "membership",
        EntryKind::Session => "session",
        EntryKind::Tick => "tick",
        EntryKind::Skip => "skip",
        _ => "unknown",
    }
}

/// The name of a file, without its directory.
pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

pub(super) fn time(unix_ms: u64) -> Option<String> {
    (unix_ms > 0).then(|| rfc3339(unix_ms))
}

pub(super) fn digits(bytes: &[u8]) -> String {
    hex(bytes)
}
