//! The command line, one file per group of verbs.

mod backup;
mod bench;
mod cluster;
mod consistency;
mod import;
mod inspect;
mod key_value;
mod member;
mod recover;
mod repair;
mod restore;
mod serve;
mod units;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use d_engine_client::{Client, ClientError, ClientOptions, KvClient};

pub(crate) use self::backup::{BackupArgs, BackupVerb, BackupVerifyArgs};
pub(crate) use self::bench::{BenchArgs, Workload};
pub(crate) use self::cluster::{
    DemoArgs, DevArgs, SkipEntryArgs, SnapshotArgs, StatusArgs, TransferArgs,
};
pub(crate) use self::import::{ImportArgs, InputFormat};
pub(crate) use self::inspect::{DumpArgs, LogArgs, LogVerb, SnapshotInspectArgs, SnapshotVerb};
pub(crate) use self::key_value::{CasArgs, DeleteArgs, GetArgs, PutArgs, ScanArgs};
pub(crate) use self::member::{ChangeArgs, MemberArgs, MemberListArgs, MemberTask};
pub(crate) use self::recover::RecoverArgs;
pub(crate) use self::repair::RepairArgs;
pub(crate) use self::restore::RestoreArgs;
pub(crate) use self::serve::{ServeArgs, StateMachineKind};
use self::units::duration;

const EXIT_CODES: &str = "\
Exit codes:
    0  success
    1  failure; the message says why and what to do
    2  the command line, the config, or a file or directory that it names cannot be used; nothing
       was changed
    3  get: a key has no value
    4  put, delete, cas, member, transfer-leader, skip-entry: the outcome is unknown, because the
       connection, the leadership or the time was lost after the request was sent
    5  cas: the key has another value or none; nothing was changed
    6  serve: the node was removed from its cluster; do not start it again on its directory
  130  backup, bench, demo, import, log, recover, repair, restore, scan, snapshot: interrupted by
       Ctrl-C or SIGTERM";

/// A replicated, durable state machine: run a node, send requests to a cluster, or watch a
/// failover.
#[derive(Parser, Debug)]
#[command(name = "d-engine", version, after_help = EXIT_CODES)]
#[command(propagate_version = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum Verb {
    /// Run a whole cluster on this machine, for development.
    Dev(DevArgs),
    /// Run one node with the key-value state machine.
    Serve(ServeArgs),
    /// Set the value of a key.
    Put(PutArgs),
    /// Print the value of a key, or the values of several keys from one state.
    Get(GetArgs),
    /// Delete a key.
    Delete(DeleteArgs),
    /// Set the value of a key only if it has the expected value.
    Cas(CasArgs),
    /// Print the records of a range of keys, in order.
    Scan(ScanArgs),
    /// Put every record of a file.
    Import(ImportArgs),
    /// Show the state of every node of the cluster.
    Status(StatusArgs),
    /// Show the members of the cluster, and change them.
    Member(MemberArgs),
    /// Make nodes take a snapshot now, so that they can purge their logs; or inspect a file of one.
    Snapshot(SnapshotArgs),
    /// Show what is in the log of a data directory, also of one that refuses to start.
    Log(LogArgs),
    /// Copy a snapshot with every acknowledged write out of the cluster; or verify such a copy.
    Backup(BackupArgs),
    /// Mend a log that is damaged in the middle, so that its node starts again.
    Repair(RepairArgs),
    /// When most nodes are lost for good: continue the log of one that is left as a new cluster.
    Recover(RecoverArgs),
    /// Make a new cluster of one node from a snapshot file.
    Restore(RestoreArgs),
    /// Transfer leadership to another node.
    TransferLeader(TransferArgs),
    /// Skip an entry that halts the state machine of every node.
    SkipEntry(SkipEntryArgs),
    /// Measure operations per second, their latency and their cost.
    Bench(Box<BenchArgs>),
    /// Import a file into three processes, kill the leader in the middle, and check every record.
    Demo(DemoArgs),
}

/// Selects a cluster.
#[derive(Args, Debug)]
pub(crate) struct EndpointArgs {
    /// Client addresses of one or more nodes; the client finds the leader from there.
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
    /// Returns the addresses without surrounding blanks.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect()
    }

    pub(crate) fn client(&self, timeout: Duration) -> Result<Client, ClientError> {
        Client::new(self.addresses(), ClientOptions::default().timeout(timeout))
    }
}

/// Selects a cluster and a timeout.
#[derive(Args, Debug)]
pub(crate) struct ClusterArgs {
    #[command(flatten)]
    pub(crate) endpoints: EndpointArgs,
    /// How long to try before the command fails, for example 500ms or 5s.
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
