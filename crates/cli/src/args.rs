//! What can be typed.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use d_engine_client::{Client, ClientError, ClientOptions, Consistency};

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the message says why and what to do
    2  the command line or the config file cannot be used; nothing was opened
    3  get: the key has no value
    4  put: the outcome is unknown (the connection or the leadership was lost on the way)
  130  demo: interrupted by Ctrl-C or SIGTERM";

/// A replicated, durable state machine: run a node, talk to a cluster, or watch one survive.
#[derive(Parser, Debug)]
#[command(name = "d-engine", version, after_help = EXIT_CODES)]
#[command(propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Run one node with the key-value state machine.
    Serve(ServeArgs),
    /// Give a key a value.
    Put(PutArgs),
    /// Print the value of a key.
    Get(GetArgs),
    /// Show every node of the cluster.
    Status(StatusArgs),
    /// Three processes, a real import, the leader killed in the middle, and a check of every record.
    Demo(DemoArgs),
}

const SERVE_HELP: &str = "\
A config for node 1 of three; the others differ in node_id and data_dir:

    node_id = 1
    cluster_id = \"9f2b6c0e4d1a48f7b3e5a6d7c8091a2b\"    # the same on every node
    data_dir = \"node-1\"                               # relative to this file

    [[members]]
    id = 1
    peer_addr = \"127.0.0.1:7101\"
    client_addr = \"127.0.0.1:7001\"
    # ... and [[members]] for 2 and 3, the same list on every node

Examples:
    d-engine serve --config node-1.toml
    RUST_LOG=debug d-engine serve --config node-1.toml 2> node-1.log

When the node knows a leader and has caught up with it, one line is printed on stdout. Ctrl-C and SIGTERM \
stop it in order (exit 0). Exit 2: the config is refused, before anything is opened. Exit 1: the node \
could not start, or stopped for a reason that is told.";

#[derive(Args, Debug)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArgs {
    /// The node's configuration, a TOML file.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Stop when stdin is closed: a parent that holds the other end cannot leave an orphan behind.
    #[arg(long, hide = true)]
    pub(crate) stop_on_stdin_close: bool,
}

/// Which cluster, and how patient.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    /// Client addresses of some nodes; the leader is found from there.
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        env = "D_ENGINE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"
    )]
    pub(crate) endpoints: Vec<String>,
    /// How long to try, for example 500ms or 5s.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

impl ClusterArgs {
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        let endpoints = self.endpoints.iter().map(|endpoint| endpoint.trim());
        Client::new(endpoints, ClientOptions::default().timeout(self.timeout))
    }
}

const PUT_HELP: &str = "\
Examples:
    d-engine put greeting hello
    d-engine put --endpoints 10.0.0.1:7001,10.0.0.2:7001 --timeout 2s greeting hello

Any node will do: a follower names the leader, and the put goes there. Exit 0 means: on stable storage \
at a majority, and applied. Exit 4 means: it may or may not have taken effect; look with `get`.";

#[derive(Args, Debug)]
#[command(after_help = PUT_HELP)]
pub(crate) struct PutArgs {
    /// The key.
    pub(crate) key: String,
    /// Its new value.
    pub(crate) value: String,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

const GET_HELP: &str = "\
Examples:
    d-engine get greeting
    d-engine get --consistency eventual --endpoints 127.0.0.1:7002 greeting

The value is written as it is, with a line break behind it only on a terminal. Exit 3: the key has none.";

#[derive(Args, Debug)]
#[command(after_help = GET_HELP)]
pub(crate) struct GetArgs {
    /// The key.
    pub(crate) key: String,
    /// How fresh the value must be.
    #[arg(long, value_enum, default_value_t = Freshness::Linearizable)]
    pub(crate) consistency: Freshness,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// `--consistency`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Freshness {
    /// Sees every write acknowledged before; the leader answers
    Linearizable,
    /// What the first node that answers has applied; may be old
    Eventual,
}

impl From<Freshness> for Consistency {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Linearizable => Self::Linearizable,
            Freshness::Eventual => Self::Eventual,
        }
    }
}

const STATUS_HELP: &str = "\
Examples:
    d-engine status
    d-engine status --endpoints 127.0.0.1:7001 --json

One endpoint is enough: the others are found from its list of members. Exit 0: a node leads, and a majority of \
the voters answers and follows it. Exit 1: otherwise.";

#[derive(Args, Debug)]
#[command(after_help = STATUS_HELP)]
pub(crate) struct StatusArgs {
    /// Print JSON for programs.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
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

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write for example 500ms or 5s");
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let duration = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return Err(wrong()),
    };
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        for wrong in ["", "5", "s", "-1s", "1.5s", "0s", "5 s", "5min", "99999999999999999999s"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
    }
}
