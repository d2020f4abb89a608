//! `dev`, `demo`, `status`, `snapshot`, `transfer-leader`, `skip-entry`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ClusterArgs, SnapshotVerb, duration};

const DEV_HELP: &str = "\
Examples:
    d-engine dev                               # clients at 127.0.0.1:7001, 7002 and 7003
    d-engine dev --dir ./cluster               # keep the data and continue with it next time
    d-engine dev --ephemeral --nodes 5         # a second cluster beside the first

The nodes run as processes with real files and sockets. You may stop, kill or restart them by \
hand: `dev` prints when one ends and the command that starts it again, and restarts nothing \
itself. On the default ports the other verbs find the cluster without --endpoints. Ctrl-C and \
SIGTERM stop every node cleanly (exit 0). If `dev` itself is killed, the nodes stop too; only \
nodes that were started by hand keep running.";

#[derive(Args, Debug)]
#[command(after_help = DEV_HELP)]
pub(crate) struct DevArgs {
    /// Number of nodes (default 3, or as many as --dir has).
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: Option<u64>,
    /// Keep data, configs and logs in this directory, and continue with what an earlier `dev` left
    /// there.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Use free ports instead of 7001, 7002, ... for clients and 7101, 7102, ... between nodes.
    #[arg(long)]
    pub(crate) ephemeral: bool,
}

const STATUS_HELP: &str = "\
Examples:
    d-engine status
    d-engine status --endpoints 127.0.0.1:7001 --json

One endpoint is enough: the other nodes are found from its list of members. Exit 0: a node leads, \
a majority of the voters answers and follows it, the leader's state machine has not halted, no \
nodes contradict each other (different clusters, different members, two leaders of one term), and \
no node has proof that acknowledged entries are lost. Exit 1: otherwise.";

#[derive(Args, Debug)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct StatusArgs {
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const SNAPSHOT_HELP: &str = "\
Examples:
    d-engine snapshot                          # every node, one after the other
    d-engine snapshot --node 2
    d-engine snapshot --json --wait 2h
    d-engine snapshot inspect snap-7-800.snap  # a file, without a node

Nodes take snapshots automatically, as configured in `[snapshots]`. This command takes one at a \
moment of your choice, for example before an upgrade. Reads and writes continue meanwhile. Exit \
0: every selected node has a durable snapshot of everything it had applied. Exit 1: some node has \
none; the message says which and why, and nothing is lost. Ctrl-C stops waiting; the node \
continues its snapshot.";

#[derive(Args, Debug)]
#[command(after_help = SNAPSHOT_HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<SnapshotVerb>,
    /// Only the node with this id.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// How long to wait for each node's snapshot.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const TRANSFER_HELP: &str = "\
Examples:
    d-engine transfer-leader                   # to the most up-to-date node
    d-engine transfer-leader --to 2

Commands of other clients wait during the transfer, much shorter than during an election, and \
none fails. Exit 0: the printed node leads. Exit 1: the transfer was refused, for example because \
the target is silent, or the target did not take over in time; the message names the leader. Exit \
4: the outcome is unknown; check with `d-engine status`.";

#[derive(Args, Debug)]
#[command(after_help = TRANSFER_HELP)]
pub(crate) struct TransferArgs {
    /// Id of the node that is to lead.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to: Option<u64>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const SKIP_HELP: &str = "\
Examples:
    d-engine skip-entry 3:131                  # show where each node is halted; changes nothing
    d-engine skip-entry 3:131 --yes

A state machine that cannot apply an entry halts there: its node continues to persist and vote \
but refuses its clients, and `status` shows the entry. If a program exists that can apply the \
entry, start that on every node instead. Otherwise this command makes every node skip the entry: \
the effect of its command is lost, and the entries after it are applied. The request is refused \
unless a majority of the voters is halted at exactly this entry and no node that answers has \
applied it. A node that does not answer may have applied it and acknowledged it to its client. \
Exit 0: the entry is skipped. Exit 1: refused; the message says why. Exit 2: --yes is missing. \
Exit 4: the outcome is unknown; repeat the request.";

#[derive(Args, Debug)]
#[command(after_help = SKIP_HELP)]
pub(crate) struct SkipEntryArgs {
    /// Term and index of the entry, as `status` shows them.
    #[arg(value_name = "TERM:INDEX", value_parser = entry)]
    pub(crate) entry: (u64, u64),
    /// Skip the entry and lose the effect of its command.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

fn entry(text: &str) -> Result<(u64, u64), String> {
    let numbers = text
        .split_once(':')
        .and_then(|(term, index)| Some((term.parse().ok()?, index.parse().ok()?)));
    numbers.ok_or_else(|| format!("{text:?} is not an entry; write TERM:INDEX, for example 3:131"))
}

const DEMO_HELP: &str = "\
What happens: nodes start as processes on free loopback ports, with real files and sockets; 64 \
concurrent callers import a file; at 40 % the leader is killed with SIGKILL; the import continues \
through the new leader; the killed node is restarted and catches up; then every acknowledged \
record is read from each node separately. Exit 0 only if nothing is lost; otherwise the lost keys \
are printed, and data and logs are kept.

Examples:
    d-engine demo
    d-engine demo --dir /tmp/demo            # keep data, configs and logs
    d-engine demo --input words.tsv --nodes 5

An input file has one record per line, `key<TAB>value`; if a key occurs twice, the last value \
counts.";

#[derive(Args, Debug)]
#[command(after_help = DEMO_HELP)]
pub(crate) struct DemoArgs {
    /// Import this file instead of the bundled one (8,192 Unicode characters and their names).
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Keep data, configs and logs in this directory, which must be empty or not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Number of nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    pub(crate) nodes: u64,
}
