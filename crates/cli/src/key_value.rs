//! `d-engine put`, `get`, `delete` and `cas`.

use std::io::{IsTerminal as _, Write};

use bytes::Bytes;
use d_engine_client::{PutOptions, Record, SwapOutcome};

use crate::args::{CasArgs, DeleteArgs, GetArgs, PutArgs};
use crate::exit::{Exit, Failure, note};
use crate::json;
use crate::output::Output;

pub(crate) async fn put(args: PutArgs) -> Result<(), Failure> {
    let mut options = PutOptions::default();
    if let Some(ttl) = args.ttl {
        options = options.ttl(ttl);
    }
    if args.previous {
        options = options.previous();
    }
    let outcome = args.cluster.kv()?.put_with(args.key.clone(), args.value, options).await?;
    match outcome.previous {
        Some(previous) => write_value(&previous),
        None if args.previous => {
            note(format_args!("{:?} had no value before", args.key));
            Ok(())
        }
        None => Ok(()),
    }
}

pub(crate) async fn get(args: GetArgs) -> Result<(), Failure> {
    let kv = args.cluster.kv()?;
    let consistency = args.consistency;
    let values = match args.keys.as_slice() {
        [key] => vec![kv.get(key.clone(), consistency).await?],
        keys => kv.get_many(keys.iter().cloned(), consistency).await?,
    };
    let found: Vec<(&String, Option<Bytes>)> = args.keys.iter().zip(values).collect();
    let output = Output::of_flag(args.json);
    match found.as_slice() {
        [(_, Some(value))] if output == Output::Text => write_value(value)?,
        found => write_all(found, output)?,
    }
    let missing: Vec<String> = found
        .iter()
        .filter(|(_, value)| value.is_none())
        .map(|(key, _)| format!("{key:?}"))
        .collect();
    match missing.as_slice() {
        [] => Ok(()),
        [key] => Err(Failure::new(Exit::Absent, format!("{key} has no value"))),
        keys => Err(Failure::new(Exit::Absent, format!("{} have no value", keys.join(", ")))),
    }
}

pub(crate) async fn delete(args: DeleteArgs) -> Result<(), Failure> {
    if !args.cluster.kv()?.delete(args.key.clone()).await? {
        note(format_args!("{:?} had no value", args.key));
    }
    Ok(())
}

pub(crate) async fn cas(args: CasArgs) -> Result<(), Failure> {
    let (expected, value) = (args.expect.map(Bytes::from), args.value.map(Bytes::from));
    match args.cluster.kv()?.compare_and_swap(args.key.clone(), expected, value).await? {
        SwapOutcome::Done => Ok(()),
        SwapOutcome::Failed { current: None } => {
            let message = format!("{:?} has no value; nothing was changed", args.key);
            Err(Failure::new(Exit::Mismatch, message))
        }
        SwapOutcome::Failed { current: Some(current) } => {
            write_value(&current)?;
            let message = format!("{:?} has another value; nothing was changed", args.key);
            Err(Failure::new(Exit::Mismatch, message))
        }
    }
}

/// Writes a value byte for byte, followed by a line break only on a terminal.
fn write_value(value: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let line_break: &[u8] = if out.is_terminal() { b"\n" } else { b"" };
    out.write_all(value)
        .and_then(|()| out.write_all(line_break))
        .and_then(|()| out.flush())
        .map_err(|error| Failure::failed(format!("the value cannot be written: {error}")))
}

fn write_all(found: &[(&String, Option<Bytes>)], output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let mut write = || {
        for (key, value) in found {
            match value {
                Some(value) => {
                    let record =
                        Record { key: Bytes::from((*key).clone()), value: Some(value.clone()) };
                    write_record(&mut out, &record, output)?;
                }
                None if output == Output::Json => {
                    writeln!(out, "{}", json::absent(key.as_bytes()))?
                }
                None => {}
            }
        }
        out.flush()
    };
    write().map_err(|error| Failure::failed(format!("the values cannot be written: {error}")))
}

/// Writes a record as one line.
pub(crate) fn write_record(
    out: &mut impl Write,
    record: &Record,
    output: Output,
) -> std::io::Result<()> {
    if output == Output::Json {
        return writeln!(out, "{}", json::record(record));
    }
    out.write_all(&record.key)?;
    if let Some(value) = &record.value {
        out.write_all(b"\t")?;
        out.write_all(value)?;
    }
    out.write_all(b"\n")
}
