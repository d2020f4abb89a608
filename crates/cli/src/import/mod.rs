//! `d-engine import`: puts every record of a file, many concurrently.
//!
//! `input.rs` reads the file, `callers.rs` sends the puts.

mod callers;
mod input;

use std::sync::Arc;
use std::time::{Duration, Instant};

use d_engine_client::KvClient;
use serde::Serialize;

pub(crate) use self::callers::{Import, Manner, Refused};
pub(crate) use self::input::{Input, Record};
use crate::args::ImportArgs;
use crate::exit::{Exit, Failure, say};
use crate::output::Output;
use crate::progress::progress;
use crate::signals::StopSignals;

/// How long to wait for the puts in flight after Ctrl-C.
const LAST_PUTS: Duration = Duration::from_secs(5);
/// How many refused records are named on stderr; the JSON summary has all of them.
const REFUSED_SHOWN: usize = 5;

/// The result of an import.
#[derive(Serialize, Debug)]
struct Summary {
    source: String,
    /// Distinct keys in the file.
    records: usize,
    /// Records left out at the beginning, by `--skip`.
    skipped: usize,
    acknowledged: usize,
    /// Puts repeated because their outcome was unknown.
    repeated: usize,
    refused: Vec<Refused>,
    seconds: f64,
    records_per_second: f64,
    callers: usize,
    interrupted: bool,
    /// The value of `--skip` that continues the import; `null` if nothing is left.
    go_on_with_skip: Option<usize>,
}

pub(crate) async fn import(args: ImportArgs) -> Result<(), Failure> {
    let mut signals = StopSignals::listen()?;
    let input = Input::read(Some(&args.file), args.format)?;
    let kv = KvClient::new(args.endpoints.client(args.timeout)?);
    let left = input.records.get(args.skip..).unwrap_or_default();
    let records = Arc::new(left.to_vec());
    let bar = progress("import", records.len());
    let callers = usize::from(args.callers);
    let manner = Manner { callers, timeout: args.timeout, on_acknowledged: Box::new(|_| ()) };
    let began = Instant::now();
    let mut import = Import::start(kv, records.clone(), manner, bar.clone());
    let (result, interrupted) = tokio::select! {
        result = import.finish() => (result, None),
        signal = signals.next() => (Ok(()), Some(signal)),
    };
    if interrupted.is_some() {
        import.stop();
        // A put that does not finish in time has an unknown outcome; a continued import repeats it.
        tokio::select! {
            _ = tokio::time::timeout(LAST_PUTS, import.finish()) => {}
            _ = signals.next() => {}
        }
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let settled = import.settled();
    let summary = Summary {
        source: input.source.clone(),
        records: input.records.len(),
        skipped: input.records.len() - records.len(),
        acknowledged: import.acknowledged(),
        repeated: import.repeated(),
        refused: import.refused(),
        seconds,
        records_per_second: import.acknowledged() as f64 / seconds.max(1e-6),
        callers,
        interrupted: interrupted.is_some(),
        go_on_with_skip: (settled < records.len()).then_some(args.skip + settled),
    };
    tell(&summary, Output::of_flag(args.json))?;
    let go_on = summary
        .go_on_with_skip
        .map(|skip| format!("; continue with --skip {skip}"))
        .unwrap_or_default();
    match (interrupted, result) {
        (Some(signal), _) => {
            Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}{go_on}")))
        }
        (None, Err(failure)) => Err(Failure::failed(format!("{failure}{go_on}"))),
        (None, Ok(())) => refused(&summary.refused),
    }
}

fn tell(summary: &Summary, output: Output) -> Result<(), Failure> {
    if output == Output::Json {
        let json = serde_json::to_string(summary);
        say(json.map_err(|error| Failure::failed(format!("the JSON cannot be written: {error}")))?);
        return Ok(());
    }
    let skipped = match summary.skipped {
        0 => String::new(),
        skipped => format!(" ({skipped} skipped)"),
    };
    say(format_args!(
        "{} of {} records acknowledged{skipped} in {:.2} s: {:.0}/s with {} callers",
        summary.acknowledged,
        summary.records,
        summary.seconds,
        summary.records_per_second,
        summary.callers
    ));
    if summary.repeated > 0 {
        say(format_args!(
            "{} puts of unknown outcome were repeated (safe: the value is the same)",
            summary.repeated
        ));
    }
    Ok(())
}

fn refused(refused: &[Refused]) -> Result<(), Failure> {
    let shown: Vec<String> = refused
        .iter()
        .take(REFUSED_SHOWN)
        .map(|one| format!("\n    {:?}: {}", one.key, one.reason))
        .collect();
    match refused.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} records were refused:{}", shown.concat()))),
    }
}
