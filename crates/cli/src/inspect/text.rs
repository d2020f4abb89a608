//! The same for people.

use std::fmt::{self, Display, Formatter};

use indicatif::DecimalBytes;

use super::report::{
    DamageReport, DirectoryReport, EntryReport, IdReport, MemberReport, MembersReport,
    SegmentReport, SnapshotReport, StartReport,
};

/// The first lines: what the directory is.
pub(super) fn header(report: &DirectoryReport) -> Vec<String> {
    let mut lines = vec![format!("data directory {}", report.path)];
    let mut row = |name: &str, text: String| lines.push(format!("  {name:<13}{text}"));
    row("identity", identity(report));
    if let Some(holder) = &report.in_use_by {
        row("in use", format!("by {holder}; the end of the log may change while it is read"));
    }
    row("hard state", hard_state(report));
    row("log", log(report));
    for (at, line) in report.members.iter().flat_map(MembersReport::lines).enumerate() {
        row(if at == 0 { "members" } else { "" }, line);
    }
    for (at, segment) in report.segments.iter().enumerate() {
        row(if at == 0 { "segments" } else { "" }, segment.to_string());
    }
    if !report.unused_segments.is_empty() {
        let names = report.unused_segments.join(", ");
        row("", format!("not part of the log: {names}"));
    }
    if report.snapshots.is_empty() {
        row("snapshots", "none".to_owned());
    }
    for (at, snapshot) in report.snapshots.iter().enumerate() {
        row(if at == 0 { "snapshots" } else { "" }, snapshot.to_string());
        for damage in &snapshot.damage {
            row("", format!("  DAMAGE {}: {}", place(damage.chunk, damage.offset), damage.what));
        }
    }
    if !report.unfinished_snapshots.is_empty() {
        row("", format!("unfinished: {}", report.unfinished_snapshots.join(", ")));
    }
    for damage in &report.damage {
        row("DAMAGE", damage.to_string());
    }
    for (at, line) in start(&report.start).into_iter().enumerate() {
        row(if at == 0 { "a start" } else { "" }, line);
    }
    lines
}

/// The chunk, or which part of an archive is damaged.
pub(super) fn place(chunk: Option<u64>, offset: u64) -> String {
    match chunk {
        Some(chunk) => format!("chunk {chunk} at offset {offset}"),
        None => format!("at offset {offset}"),
    }
}

fn identity(report: &DirectoryReport) -> String {
    let (Some(cluster), Some(node), Some(incarnation)) =
        (&report.cluster_id, report.node, &report.incarnation)
    else {
        return "none".to_owned();
    };
    let whose = format!("cluster {cluster}, node {node}, incarnation {incarnation}");
    match &report.born {
        Some(born) => format!("{whose}, a member since configuration {born}"),
        None => format!("lost; the segments say {whose}"),
    }
}

fn hard_state(report: &DirectoryReport) -> String {
    let Some(term) = report.term else { return "none".to_owned() };
    let vote =
        report.vote.map_or_else(|| "no vote".to_owned(), |node| format!("vote for node {node}"));
    let commit = report.commit_hint.unwrap_or_default();
    let doubt = match report.term_and_vote_may_be_older {
        true => "; damage follows it: a later term or vote may be lost",
        false => "",
    };
    format!("term {term}, {vote}, entries up to {commit} known to be committed{doubt}")
}

fn log(report: &DirectoryReport) -> String {
    let entries = match (&report.first, &report.last) {
        (Some(first), Some(last)) => format!("from {first} to {last}"),
        _ => "no entries".to_owned(),
    };
    let base = match &report.base {
        Some(base) if base.index > 0 => format!("; purged up to {base}"),
        Some(_) => String::new(),
        None => "; where it begins is lost".to_owned(),
    };
    let durable = report.durable_to.as_ref().map_or_else(String::new, |place| {
        format!("; known to be durable up to offset {} of {}", place.offset, place.file)
    });
    format!("{entries}{base}{durable}")
}

fn start(report: &StartReport) -> Vec<String> {
    let reason = report.reason.as_deref().unwrap_or_default();
    let first = match report.outcome {
        "in use" => "not now: a process has the directory open".to_owned(),
        "starts" => "reads the whole log".to_owned(),
        "starts after a snapshot" => format!("skips the damage, which {reason} contains"),
        "joins" => "asks the cluster that it was about to join".to_owned(),
        outcome => format!("{outcome}: {reason}"),
    };
    let next = report.next.iter().enumerate();
    let next = next.map(|(at, step)| match at {
        0 => format!("next: {step}"),
        _ => format!("or:   {step}"),
    });
    std::iter::once(first).chain(next).collect()
}

/// The last line, if a crash left something half-written.
pub(super) fn torn(report: &DirectoryReport) -> Option<String> {
    let place = report.torn_tail.as_ref()?;
    Some(format!(
        "{} bytes at offset {} of {} are half-written, by a crash; they were never acknowledged, \
         and a start cuts them off",
        place.bytes.unwrap_or_default(),
        place.offset,
        place.file
    ))
}

/// The head of the table of entries.
pub(super) fn columns() -> String {
    format!(
        "{:>12}  {:>8}  {:<10}  {:<24}  {:>9}  CONTENT",
        "INDEX", "TERM", "KIND", "LOG TIME", "BYTES"
    )
}

impl Display for IdReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "entry {} of term {}", self.index, self.term)
    }
}

impl Display for SegmentReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        match self.epoch {
            Some(epoch) => write!(f, "  epoch {epoch}")?,
            None => write!(f, "  epoch lost")?,
        }
        match (self.first_index, self.last_index) {
            (Some(first), Some(last)) => write!(f, ", entries {first} to {last}")?,
            _ => write!(f, ", no entries")?,
        }
        write!(f, ", {} groups, {} bytes of {}", self.groups, self.used_bytes, self.file_bytes)?;
        match self.damaged {
            0 => Ok(()),
            1 => write!(f, ", DAMAGED in one place"),
            damaged => write!(f, ", DAMAGED in {damaged} places"),
        }
    }
}

impl Display for SnapshotReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some(id) = &self.last_included {
            write!(f, "  up to {id}")?;
        }
        if let Some(time) = &self.time {
            write!(f, ", {time}")?;
        }
        write!(f, ", {}", DecimalBytes(self.bytes))?;
        match &self.reason {
            Some(reason) => write!(f, ", {}: {reason}", self.state),
            None => write!(f, ", {}", self.state),
        }
    }
}

impl MembersReport {
    /// The name of the list, then a line for each member.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut name = match &self.error {
            Some(error) => format!("unreadable: {error}"),
            None => format!("configuration {}", self.configuration.as_deref().unwrap_or("?")),
        };
        if let Some(from) = &self.from {
            name = format!("{name}, in {from}");
        }
        std::iter::once(name).chain(self.members.iter().map(ToString::to_string)).collect()
    }
}

impl Display for MembersReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut lines = self.lines().into_iter();
        f.write_str(&lines.next().unwrap_or_default())?;
        let members: Vec<String> = lines.collect();
        if members.is_empty() { Ok(()) } else { write!(f, ": {}", members.join("; ")) }
    }
}

impl Display for MemberReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.node, self.role, self.peer_addr)?;
        if let Some(client) = &self.client_addr {
            write!(f, " (clients {client})")?;
        }
        match self.replaces {
            Some(replaces) => write!(f, " in place of {replaces}"),
            None => Ok(()),
        }
    }
}

impl Display for DamageReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.file, self.offset)?;
        if let Some(to) = self.to.filter(|to| *to > self.offset) {
            write!(f, " to {to}")?;
        }
        write!(f, ": {}; {}", self.what, self.lost)
    }
}

impl Display for EntryReport {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let time = self.time.as_deref().unwrap_or("-");
        let Self { index, term, kind, bytes, .. } = self;
        write!(f, "{index:>12}  {term:>8}  {kind:<10}  {time:<24}  {bytes:>9}")?;
        let mut separator = "  ";
        let mut part = |f: &mut Formatter<'_>, text: &dyn Display| {
            let written = write!(f, "{separator}{text}");
            separator = ", ";
            written
        };
        if let (Some(session), Some(serial)) = (self.session, self.serial) {
            part(f, &format_args!("session {session}:{serial}"))?;
        }
        if let Some(version) = self.version {
            part(f, &format_args!("version {version}"))?;
        }
        if let Some(preview) = &self.preview {
            part(f, &format_args!("\"{preview}\""))?;
        }
        if let Some(members) = &self.members {
            part(f, members)?;
        }
        if let Some(skips) = &self.skips {
            part(f, &format_args!("skips {skips}"))?;
        }
        Ok(())
    }
}
