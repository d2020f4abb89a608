//! `log dump`, `snapshot inspect`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
pub(crate) struct LogArgs {
    #[command(subcommand)]
    pub(crate) verb: LogVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum LogVerb {
    /// Print the entries of the log in a data directory, and what is damaged in it.
    Dump(DumpArgs),
}

const DUMP_HELP: &str = "\
Examples:
    d-engine log dump --data-dir /var/lib/d-engine
    d-engine log dump --data-dir node-3 --from 40000 --to 40400 --bytes 200
    d-engine log dump --data-dir node-3 --json | jq 'select(.damage)'

Reads the directory and changes nothing: no file is created, repaired, truncated or locked. It is \
for a directory that a node refuses to start on, and may be used on its only copy. If a node runs \
on the directory, a warning says so; the end of its log may change meanwhile.

First comes what the directory is: whose, the last term and vote, the segments, the snapshots, \
the members, every damaged file, and what a start of the node would do. Then one line for each \
entry that is part of the log. Entries that later ones replaced are not shown. A damaged place \
stands between the entries before and after it, with the indexes that are lost. An entry before \
it is shown even if the lost part may have replaced it.

The log is read twice: once for what it says as a whole, once for its entries. The snapshots are \
read too, unless --headers-only is given. With --json each line is an object: first \
{\"directory\": ...}, then the entries, and {\"damage\": ...} for each damaged place.

Exit 0: nothing is damaged. What a crash left half-written at the end of the log is no damage: it \
was never acknowledged. Exit 1: something is damaged, wherever it is in the directory and \
whichever entries are shown; or a file cannot be read. Exit 2: there is no data directory.";

#[derive(Args, Debug)]
#[command(after_help = DUMP_HELP)]
pub(crate) struct DumpArgs {
    /// The `data_dir` of the node.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The first entry to show.
    #[arg(long, value_name = "INDEX", default_value_t = 0, hide_default_value = true)]
    pub(crate) from: u64,
    /// The last entry to show.
    #[arg(long, value_name = "INDEX", default_value_t = u64::MAX, hide_default_value = true)]
    pub(crate) to: u64,
    /// How many bytes of each command to show.
    #[arg(long, value_name = "COUNT", default_value_t = 32)]
    pub(crate) bytes: usize,
    /// Read only the headers of the snapshots, not their content.
    #[arg(long)]
    pub(crate) headers_only: bool,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum SnapshotVerb {
    /// Print what a snapshot file says of itself, and verify every chunk of it.
    Inspect(SnapshotInspectArgs),
}

const INSPECT_HELP: &str = "\
Examples:
    d-engine snapshot inspect /var/lib/d-engine/snapshots/snap-7-800.snap
    d-engine snapshot inspect snap-7-800.snap --json

Reads the file and changes nothing. No node has to run. Exit 0: every checksum matches. Exit 1: \
something is damaged; each damaged chunk is named with its offset. Exit 2: there is no such file.";

#[derive(Args, Debug)]
#[command(after_help = INSPECT_HELP)]
pub(crate) struct SnapshotInspectArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
