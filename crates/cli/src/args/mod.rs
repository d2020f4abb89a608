//! What can be typed, a file for each kind of verb.

mod bench;
mod cluster;
mod import;
mod key_value;
mod serve;
mod units;

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use d_engine_client::{Client, ClientError, ClientOptions, Consistency, KvClient};

pub(crate) use self::bench::{BenchArgs, Workload};
pub(crate) use self::cluster::{DemoArgs, DevArgs, SkipEntryArgs, SnapshotArgs, StatusArgs, TransferArgs};
pub(crate) use self::import::{ImportArgs, InputFormat};
pub(crate) use self::key_value::{CasArgs, DeleteArgs, GetArgs, PutArgs, ScanArgs};
pub(crate) use self::serve::{ServeArgs, StateMachineKind};
use self::units::duration;

const EXIT_CODES: &str = "\
Exit codes:
    0  done
    1  failed; the message says why and what to do
    2  the command line or the config file cannot be used; nothing was opened or sent
    3  get: a key has no value
    4  put, delete, cas, transfer-leader: the outcome is unknown (the connection or the leadership was
       lost on the way)
    5  cas: another value was there; nothing was changed
  130  bench, demo, import, scan, snapshot: interrupted by Ctrl-C or SIGTERM";

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
    /// Run a whole cluster on this machine, to work against.
    Dev(DevArgs),
    /// Run one node with the key-value state machine.
    Serve(ServeArgs),
    /// Give a key a value.
    Put(PutArgs),
    /// Print the value of a key, or of several as of one moment.
    Get(GetArgs),
    /// Take the value of a key away.
    Delete(DeleteArgs),
    /// Give a key a value only if it has the expected one.
    Cas(CasArgs),
    /// Print the records of a range of keys, in order.
    Scan(ScanArgs),
    /// Put every record of a file.
    Import(ImportArgs),
    /// Show every node of the cluster.
    Status(StatusArgs),
    /// Make nodes take a snapshot of their state now, so that their logs get shorter.
    Snapshot(SnapshotArgs),
    /// Hand leadership over to another node.
    TransferLeader(TransferArgs),
    /// Leave out an entry that stops the state machine of every node.
    SkipEntry(SkipEntryArgs),
    /// Measure operations per second, their latency, and what each costs.
    Bench(Box<BenchArgs>),
    /// Three processes, a real import, the leader killed in the middle, and a check of every record.
    Demo(DemoArgs),
}

/// Which cluster.
#[derive(Args, Debug)]
pub(crate) struct EndpointArgs {
    /// Client addresses of some nodes; the leader is found from there.
    #[arg(
        long,
        value_name = "HOST:PORT,...",
        env = "D_ENGINE_ENDPOINTS",
        value_delimiter = ',',
        default_value = "127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003"
    )]
    endpoints: Vec<String>,
}

impl EndpointArgs {
    /// The addresses, as they were meant.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect()
    }

    pub(crate) fn client(&self, timeout: Duration) -> Result<Client, ClientError> {
        Client::new(self.addresses(), ClientOptions::default().timeout(timeout))
    }
}

/// Which cluster, and how patient.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    pub(crate) endpoints: EndpointArgs,
    /// How long to try, for example 500ms or 5s.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    timeout: Duration,
}

impl ClusterArgs {
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        self.endpoints.client(self.timeout)
    }

    pub(crate) fn kv(&self) -> Result<KvClient, ClientError> {
        self.client().map(KvClient::new)
    }
}

/// `--consistency`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Freshness {
    /// Sees every write acknowledged before; costs a round of heartbeats
    Linearizable,
    /// The same while clocks drift less than configured; a leader with a lease answers at once
    Lease,
    /// What the first node that answers has applied; may be old
    Eventual,
}

impl From<Freshness> for Consistency {
    fn from(freshness: Freshness) -> Self {
        match freshness {
            Freshness::Linearizable => Self::Linearizable,
            Freshness::Lease => Self::Lease,
            Freshness::Eventual => Self::Eventual,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
