//! `import`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{EndpointArgs, duration};

const IMPORT_HELP: &str = "\
Examples:
    d-engine import words.tsv
    d-engine import --callers 256 words.tsv
    d-engine import --skip 5000 words.tsv      # continue where an import ended
    d-engine import --json words.tsv > summary.json
    d-engine scan --json > all.jsonl && d-engine import --format json all.jsonl

A file has one record per line, `key<TAB>value`, taken byte for byte; if a key occurs twice, the \
last value counts. With --format json, a line is what `scan --json` prints, which can hold any \
record. Records are put in the order of their keys, many concurrently. A put of unknown outcome \
is repeated, which is safe because the value is the same. Ctrl-C lets the puts in flight finish \
and prints how to continue (exit 130); importing the whole file again is also safe.

Exit 0: every record is acknowledged. Exit 1: some records were refused, or the cluster did not \
answer within --timeout; the summary shows how many records are acknowledged.";

#[derive(Args, Debug)]
#[command(after_help = IMPORT_HELP)]
pub(crate) struct ImportArgs {
    /// The file to import.
    pub(crate) file: PathBuf,
    /// Format of a line: `tsv` is `key<TAB>value`, `json` is what `scan --json` prints.
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "tsv")]
    pub(crate) format: InputFormat,
    /// Leave out this many records at the beginning, in the order of their keys.
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    pub(crate) skip: usize,
    /// Concurrent puts.
    #[arg(long, value_name = "COUNT", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) callers: u16,
    /// Print the summary as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) endpoints: EndpointArgs,
    /// How long to retry one record, for example while a new leader is elected.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

/// Format of a line of the input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum InputFormat {
    /// `key<TAB>value`.
    Tsv,
    /// A line of `scan --json`.
    Json,
}
