//! `d-engine snapshot inspect`.

use std::ops::ControlFlow;

use d_engine_offline::RealFs;
use d_engine_offline::inspect::{
    Compression, InspectError, SnapshotContent, SnapshotError, SnapshotHeader, SnapshotSurvey,
};
use indicatif::DecimalBytes;
use serde::Serialize;

use super::out::Out;
use super::report::{ChunkReport, IdReport, MembersReport, digits, time};
use super::{failure, text};
use crate::args::SnapshotInspectArgs;
use crate::blocking::{Reading, Stop};
use crate::exit::{Exit, Failure};

/// A snapshot file.
#[derive(Serialize, Debug)]
struct Report {
    file: String,
    bytes: u64,
    /// Null if the header is damaged, like everything in it.
    header: Option<HeaderReport>,
    chunks: u64,
    whole_chunks: u64,
    damaged_chunks: u64,
    unread_chunks: u64,
    /// Of everything before the trailer; null if a chunk is damaged.
    sha256: Option<String>,
    /// As the trailer says; null if there is none.
    announced_sha256: Option<String>,
    damage: Vec<ChunkReport>,
}

#[derive(Serialize, Debug)]
struct HeaderReport {
    cluster_id: String,
    group: u64,
    last_included: IdReport,
    time: Option<String>,
    members: MembersReport,
    /// The name of the state machine; null if unknown.
    machine: Option<String>,
    machine_format: u32,
    command_version: u32,
    /// The checksum that the state machine has returned for its files.
    state_checksum: String,
    compression: &'static str,
    chunk_bytes: u32,
    content_bytes: u64,
    /// Bytes that the engine keeps beside the state machine: client sessions.
    engine_bytes: usize,
    files: Vec<FileReport>,
}

#[derive(Serialize, Debug)]
struct FileReport {
    name: String,
    bytes: u64,
}

/// Prints what is in a snapshot file.
pub(super) fn inspect(args: &SnapshotInspectArgs, stop: &Stop) -> Result<(), Failure> {
    let read = |error: SnapshotError| failure(InspectError::from(error));
    let survey = SnapshotSurvey::of(&RealFs::new(), &args.file).map_err(read)?;
    let mut reading = Reading::begin(&format!("of {}", DecimalBytes(survey.len())));
    let content = survey.read(&mut |bytes| {
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    let content = match content {
        Err(SnapshotError::Aborted) => return Err(Failure::new(Exit::Interrupted, "")),
        content => content.map_err(read)?,
    };
    let report = Report::of(args, &survey, &content);
    let mut out = Out::begin();
    let printed = match args.json {
        true => out.json(&report),
        false => report.lines().iter().try_for_each(|line| out.line(line)),
    };
    match printed {
        // The reader may have closed the pipe: the exit code says the same.
        ControlFlow::Continue(()) | ControlFlow::Break(()) => out.finish()?,
    }
    match survey.header() {
        Ok(_) if content.is_whole() => Ok(()),
        Err(error) if !matches!(error, SnapshotError::Damaged { .. }) => {
            Err(Failure::failed(error))
        }
        _ => Err(Failure::failed(format_args!(
            "{} is damaged; nothing was changed",
            args.file.display()
        ))),
    }
}

impl Report {
    fn of(args: &SnapshotInspectArgs, survey: &SnapshotSurvey, content: &SnapshotContent) -> Self {
        Self {
            file: args.file.display().to_string(),
            bytes: survey.len(),
            header: survey.header().ok().map(|header| HeaderReport::of(header)),
            chunks: survey.chunks(),
            whole_chunks: content.whole,
            damaged_chunks: content.damaged,
            unread_chunks: content.unread,
            sha256: content.sha256.map(|it| digits(&it)),
            announced_sha256: survey.announced_sha256().ok().map(|it| digits(&it)),
            damage: content.damage.iter().map(ChunkReport::of).collect(),
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("snapshot {}, {} bytes", self.file, self.bytes)];
        let mut row = |name: &str, text: String| lines.push(format!("  {name:<15}{text}"));
        match &self.header {
            Some(header) => header.rows(&mut row),
            None => row("header", "lost".to_owned()),
        }
        match (&self.sha256, &self.announced_sha256) {
            (Some(found), _) => row("SHA-256", found.clone()),
            (None, Some(announced)) => row("SHA-256", format!("{announced}, says the trailer")),
            (None, None) => row("SHA-256", "lost".to_owned()),
        }
        for damage in &self.damage {
            let place = text::place(damage.chunk, damage.offset);
            row("DAMAGE", format!("{place}: {}", damage.what));
        }
        let unread = match self.unread_chunks {
            0 => String::new(),
            unread => format!(", {unread} not read: where they begin is unknown"),
        };
        let (chunks, whole) = (self.chunks, self.whole_chunks);
        let is_intact = self.damage.is_empty() && self.header.is_some();
        row(
            if is_intact { "intact" } else { "DAMAGED" },
            format!("{whole} of {chunks} chunks verified{unread}"),
        );
        lines
    }
}

impl HeaderReport {
    fn of(header: &SnapshotHeader) -> Self {
        let facts = &header.facts;
        Self {
            cluster_id: header.cluster.to_string(),
            group: header.group.get(),
            last_included: IdReport::of(facts.last_included),
            time: time(facts.time_ms),
            members: MembersReport::of(&facts.membership),
            machine: Some(facts.machine.clone()).filter(|name| !name.is_empty()),
            machine_format: facts.user_format,
            command_version: facts.command_version,
            state_checksum: digits(&facts.checksum),
            compression: match header.compression {
                Compression::None => "none",
                Compression::Zstd => "zstd",
                _ => "unknown",
            },
            chunk_bytes: header.chunk_bytes,
            content_bytes: header.content_bytes(),
            engine_bytes: facts.envelope.len(),
            files: header
                .files
                .iter()
                .map(|file| FileReport { name: file.name.clone(), bytes: file.len })
                .collect(),
        }
    }

    fn rows(&self, row: &mut dyn FnMut(&str, String)) {
        row("cluster", format!("{}, Raft group {}", self.cluster_id, self.group));
        let time = self.time.as_deref().unwrap_or("unknown");
        row("last included", format!("{}, log time {time}", self.last_included));
        for (at, line) in self.members.lines().into_iter().enumerate() {
            row(if at == 0 { "members" } else { "" }, line);
        }
        let machine = self.machine.as_deref().unwrap_or("unknown");
        row(
            "machine",
            format!(
                "{machine}, data version {}; commands up to version {} took effect",
                self.machine_format, self.command_version
            ),
        );
        row(
            "content",
            format!(
                "{} bytes in {} file{}, in chunks of {} bytes, compression {}",
                self.content_bytes,
                self.files.len(),
                if self.files.len() == 1 { "" } else { "s" },
                self.chunk_bytes,
                self.compression
            ),
        );
        row("sessions", format!("{} bytes", self.engine_bytes));
        row("state checksum", self.state_checksum.clone());
        for file in &self.files {
            row("file", format!("{} ({} bytes)", file.name, file.bytes));
        }
    }
}
