//! `d-engine scan`.

use std::io::{ErrorKind, Write as _};

use bytes::Bytes;
use d_engine_client::{Page, Scan};

use crate::args::ScanArgs;
use crate::exit::{Exit, Failure};
use crate::key_value::write_record;
use crate::signals::StopSignals;

/// Records in a page that is asked for.
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
        (None, from, to) => Scan::range(from.clone().unwrap_or_default(), to.clone().map(Bytes::from)),
    };
    scan.keys_only = args.keys_only;
    let mut left = args.limit.unwrap_or(u64::MAX);
    while left > 0 {
        scan.limit = u32::try_from(left).unwrap_or(PAGE).min(PAGE);
        let page = kv.scan(scan.clone(), args.consistency.into()).await?;
        if !print(&page, args.json)? {
            return Ok(());
        }
        left = left.saturating_sub(page.records.len() as u64);
        match page.next {
            Some(next) => scan.after = Some(next),
            None => return Ok(()),
        }
    }
    Ok(())
}

/// Prints the records; whether anybody still reads.
fn print(page: &Page, json: bool) -> Result<bool, Failure> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let written = page.records.iter().try_for_each(|record| write_record(&mut out, record, json));
    match written.and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        // `scan | head`: whoever reads has enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("the records cannot be written: {error}"))),
    }
}
