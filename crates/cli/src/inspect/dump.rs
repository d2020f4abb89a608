//! `d-engine log dump`.

use std::ops::ControlFlow;
use std::sync::Arc;

use d_engine_offline::RealFs;
use d_engine_offline::inspect::{
    Directory, Found, InspectError, LogIndex, Progress, Range, Snapshots,
};

use super::out::Out;
use super::report::{DamageLine, DamageReport, DirectoryLine, DirectoryReport, EntryReport};
use super::{failure, text};
use crate::args::DumpArgs;
use crate::blocking::{Reading, Stop};
use crate::exit::{Failure, note};

/// Prints the log of a directory.
pub(super) fn dump(args: &DumpArgs, stop: &Stop) -> Result<(), Failure> {
    if args.from > args.to {
        return Err(Failure::refused(format_args!(
            "--from {} is after --to {}; exchange them",
            args.from, args.to
        )));
    }
    let directory = read(args, stop)?;
    if let Some(holder) = directory.survey().holder() {
        note(format_args!(
            "{holder} has {} open; the end of its log may change while it is read",
            args.data_dir.display()
        ));
    }
    let mut out = Out::begin();
    let printed = print(args, &directory, &mut out, stop);
    out.finish()?;
    printed?;
    match directory.damaged() {
        0 => Ok(()),
        1 => Err(Failure::failed("one place is damaged; nothing was changed")),
        damaged => {
            Err(Failure::failed(format_args!("{damaged} places are damaged; nothing was changed")))
        }
    }
}

fn read(args: &DumpArgs, stop: &Stop) -> Result<Directory, Failure> {
    let snapshots = if args.headers_only { Snapshots::HeadersOnly } else { Snapshots::Verify };
    let mut reading = Reading::begin("reading");
    let fs = Arc::new(RealFs::new());
    let read = Directory::read(fs, &args.data_dir, snapshots, &mut |progress| {
        let (Progress::Log(bytes) | Progress::Snapshot(bytes)) = progress;
        reading.add(bytes);
        stop.flow()
    });
    reading.end();
    read.map_err(failure)
}

fn print(
    args: &DumpArgs,
    directory: &Directory,
    out: &mut Out,
    stop: &Stop,
) -> Result<(), Failure> {
    let first = DirectoryLine { directory: DirectoryReport::of(directory) };
    let begun = match args.json {
        true => out.json(&first),
        false => {
            let mut lines = text::header(&first.directory);
            lines.extend([String::new(), text::columns()]);
            lines.iter().try_for_each(|line| out.line(line))
        }
    };
    if begun.is_break() {
        return Ok(());
    }
    let range = Range { first: LogIndex::new(args.from), last: LogIndex::new(args.to) };
    let visited = directory.entries(range, &mut |found| {
        stop.flow()?;
        match found {
            Found::Entry(stored) => {
                let entry = EntryReport::of(&stored, args.bytes);
                if args.json { out.json(&entry) } else { out.line(entry) }
            }
            Found::Damage(damage) => {
                let damage = DamageReport::of(&damage);
                match args.json {
                    true => out.json(&DamageLine { damage }),
                    false => out.line(format_args!("DAMAGE  {damage}")),
                }
            }
        }
    });
    let visited = visited.map_err(|error: InspectError| failure(error))?;
    if let ControlFlow::Continue(()) = visited
        && !args.json
        && args.to == u64::MAX
        && let Some(torn) = text::torn(&first.directory)
    {
        // The reader may have closed the pipe; there is nothing left to do in either case.
        return match out.line(torn) {
            ControlFlow::Continue(()) | ControlFlow::Break(()) => Ok(()),
        };
    }
    Ok(())
}
