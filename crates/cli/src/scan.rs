//! `d-engine scan`: prints records page by page.

use std::io::{ErrorKind, Write as _};

use bytes::Bytes;
use d_engine_client::{Page, Record, Scan};

use crate::args::ScanArgs;
use crate::exit::{Exit, Failure, note};
use crate::key_value::write_record;
use crate::output::Output;
use crate::signals::StopSignals;

/// Records requested per page.
const PAGE: u32 = 1_000;

pub(crate) async fn scan(args: ScanArgs) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    tokio::select! {
        result = print_pages(args) => result,
        signal = signals.next() => Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}"))),
    }
}

async fn print_pages(args: ScanArgs) -> Result<(), Failure> {
    let kv = args.cluster.kv()?;
    let mut scan = match (&args.prefix, &args.from, &args.to) {
        (Some(prefix), ..) => Scan::prefix(prefix.clone()),
        (None, None, None) => Scan::all(),
        (None, from, to) => {
            Scan::range(from.clone().unwrap_or_default(), to.clone().map(Bytes::from))
        }
    };
    scan.keys_only = args.keys_only;
    let mut left = args.limit.unwrap_or(u64::MAX);
    let mut torn = 0;
    let mut pages = true;
    while left > 0 && pages {
        scan.limit = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
        let page = kv.scan(scan.clone(), args.consistency).await?;
        if !print(&page, Output::of_flag(args.json))? {
            return Ok(());
        }
        torn += page.records.iter().filter(|record| !args.json && !fits_a_line(record)).count();
        left = left.saturating_sub(page.records.len() as u64);
        match page.next {
            Some(next) => scan.after = Some(next),
            None => pages = false,
        }
    }
    if torn > 0 {
        note(format_args!(
            "{torn} records have tabs or line breaks that a line cannot hold, and `import` would \
             not read them back; scan with --json and import with --format json"
        ));
    }
    Ok(())
}

/// Whether `import` can read the record back from its line.
fn fits_a_line(record: &Record) -> bool {
    let has_break = |bytes: &[u8]| bytes.contains(&b'\n');
    let value = record.value.as_deref().unwrap_or_default();
    !record.key.is_empty()
        && !record.key.contains(&b'\t')
        && !has_break(&record.key)
        && !has_break(value)
}

/// Prints the records; returns `false` once stdout is a closed pipe.
fn print(page: &Page, output: Output) -> Result<bool, Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = page.records.iter().try_for_each(|record| write_record(&mut out, record, output));
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        // `scan | head`: the reader has closed the pipe.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("the records cannot be written: {error}"))),
    }
}
