//! `dev`, `demo`, `status`, `snapshot`, `transfer-leader`, `skip-entry`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ClusterArgs, duration};

const DEV_HELP: &str = "\
Examples:
    d-engine dev                               # clients at 127.0.0.1:7001, 7002 and 7003
    d-engine dev --dir ./cluster               # keep the data, and go on with it next time
    d-engine dev --ephemeral --nodes 5         # beside another one

The nodes are processes of their own, with real files and sockets. Stop, kill or restart them by hand as you \
like: `dev` says when one ends and how to start it again, and restarts nothing by itself. With the default \
ports the other verbs find the cluster without --endpoints. Ctrl-C and SIGTERM stop every node in order (exit 0); \
when `dev` itself is killed the nodes stop too. Only a node that was started by hand is left to whoever did.";

#[derive(Args, Debug)]
#[command(after_help = DEV_HELP)]
pub(crate) struct DevArgs {
    /// How many nodes (default 3, or as many as --dir has).
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=9))]
    pub(crate) nodes: Option<u64>,
    /// Put data, configs and logs here and keep them; go on with what an earlier `dev` left there.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Take free ports in the place of 7001, 7002, ... for clients and 7101, 7102, ... between nodes.
    #[arg(long)]
    pub(crate) ephemeral: bool,
}

const STATUS_HELP: &str = "\
Examples:
    d-engine status
    d-engine status --endpoints 127.0.0.1:7001 --json

One endpoint is enough: the others are found from its list of members. Exit 0: a node leads, a majority of \
the voters answers and follows it, its state machine applies what is committed, no nodes contradict each other (different clusters, different members, two \
leaders of one term), and no node has proof that acknowledged entries are lost. Exit 1: otherwise.";

#[derive(Args, Debug)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct StatusArgs {
    /// Print JSON for programs.
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

Nodes take snapshots by themselves, as `snapshots` in their config says; this is for a moment of your choice, such as \
before an upgrade. Reads and writes go on meanwhile. Exit 0: every node that was asked for has a durable snapshot of all \
that it had applied. Exit 1: some node has none; the message says which and why, and nothing is lost. Ctrl-C ends the \
waiting; the node goes on.";

#[derive(Args, Debug)]
#[command(after_help = SNAPSHOT_HELP)]
pub(crate) struct SnapshotArgs {
    /// Only the node with this id.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// How long to wait for each node's snapshot.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const TRANSFER_HELP: &str = "\
Examples:
    d-engine transfer-leader                   # to the node that is furthest
    d-engine transfer-leader --to 2

Commands of others wait meanwhile, for much less than an election; none fails. Exit 0: the node that is \
printed leads. Exit 1: refused, because the node is silent for example, or it did not take over in time; the message says who leads. \
Exit 4: the outcome is unknown; look with `status`.";

#[derive(Args, Debug)]
#[command(after_help = TRANSFER_HELP)]
pub(crate) struct TransferArgs {
    /// The id of the node that shall lead.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to: Option<u64>,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const SKIP_HELP: &str = "\
Examples:
    d-engine skip-entry 3:131                  # who stands where; changes nothing
    d-engine skip-entry 3:131 --yes

A state machine that cannot apply an entry stands there: its node works on and answers no caller, and `status` tells the \
entry. If a program that can apply it exists, start that on every node instead. Otherwise this leaves the entry out on \
every node: the effect of its command is lost, and everything behind it is applied. It is refused unless a majority of the \
voters stands at exactly this entry and nobody who answers has applied it; one that does not answer may have, and told its \
caller so. Exit 0: it is skipped. Exit 1: refused; the message says \
why. Exit 2: without --yes. Exit 4: the outcome is unknown; ask again.";

#[derive(Args, Debug)]
#[command(after_help = SKIP_HELP)]
pub(crate) struct SkipEntryArgs {
    /// Term and index of the entry, as `status` tells them.
    #[arg(value_name = "TERM:INDEX", value_parser = entry)]
    pub(crate) entry: (u64, u64),
    /// Lose the effect of the entry's command.
    #[arg(long)]
    pub(crate) yes: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

fn entry(text: &str) -> Result<(u64, u64), String> {
    let numbers =
        text.split_once(':').and_then(|(term, index)| Some((term.parse().ok()?, index.parse().ok()?)));
    numbers.ok_or_else(|| format!("{text:?} is no entry; write TERM:INDEX, such as 3:131"))
}

const DEMO_HELP: &str = "\
What happens: nodes start as processes of their own on free loopback ports, with real files and sockets; \
a file is imported by 64 callers at once; at 40 % the leader is killed with SIGKILL; the import goes on \
through the new leader; the killed node is restarted and catches up; then each node is asked by itself for \
every acknowledged record. Exit 0 only if nothing is lost; otherwise the lost keys are printed, and data \
and logs are kept.

Examples:
    d-engine demo
    d-engine demo --dir /tmp/demo            # keep data, configs and logs
    d-engine demo --input words.tsv --nodes 5

An input file has one record in a line, `key<TAB>value`; of a key that is there twice the last value counts.";

#[derive(Args, Debug)]
#[command(after_help = DEMO_HELP)]
pub(crate) struct DemoArgs {
    /// Import this file in the place of the bundled one (8,192 Unicode characters and their names).
    #[arg(long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Put data, configs and logs here and keep them; must be empty or not exist yet.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(3..=9))]
    pub(crate) nodes: u64,
}
