//! `backup`, `backup verify`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{ClusterArgs, duration};

const BACKUP_HELP: &str = "\
Examples:
    d-engine backup /backup/db-20261128.dbak
    d-engine backup db.dbak --node 2 --wait 2h
    d-engine backup verify db.dbak
    d-engine restore db.dbak --data-dir /var/lib/d-engine --peer db-1.example:7101

Makes a node take a snapshot and copies it to FILE. Every write that was acknowledged to any \
client before the command began is in it. The cluster serves meanwhile; a follower is asked \
first, so that the leader is not slowed down. The node sends at most \
`snapshots.send_bytes_per_second`.

FILE appears when it is complete, verified and durable; until then it is FILE.*.partial. A \
connection that breaks is opened again, and the transfer continues. After Ctrl-C or a failure, \
--resume continues it, for at most ten minutes; writes since the first run may be missing then.

Without a majority of the voters, use --stale: the backup has what the node knows to be \
committed and has applied.

Exit 0: FILE is a complete backup. Exit 1: it is not there; the message says why. Exit 2: there \
is something at FILE, or its directory does not exist; nothing was changed.";

#[derive(Args, Debug)]
#[command(after_help = BACKUP_HELP, args_conflicts_with_subcommands = true)]
#[command(subcommand_negates_reqs = true)]
pub(crate) struct BackupArgs {
    #[command(subcommand)]
    pub(crate) verb: Option<BackupVerb>,
    /// The file to write; it must not exist.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) file: Option<PathBuf>,
    /// Only from the node with this id.
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) node: Option<u64>,
    /// Do not confirm what has been acknowledged, for a cluster without a majority.
    #[arg(long)]
    pub(crate) stale: bool,
    /// Continue the transfer that an earlier run for this FILE has begun.
    #[arg(long, conflicts_with = "stale")]
    pub(crate) resume: bool,
    /// How long to wait for the snapshot, before the transfer.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) wait: Duration,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

#[derive(Subcommand, Debug)]
pub(crate) enum BackupVerb {
    /// Read a backup and compare every checksum.
    Verify(BackupVerifyArgs),
}

const VERIFY_HELP: &str = "\
Reads the file and changes nothing. No node has to run. Exit 0: every checksum matches. Exit 1: \
it is damaged; `d-engine snapshot inspect FILE` names everything that is. Exit 2: there is no \
such file.";

#[derive(Args, Debug)]
#[command(after_help = VERIFY_HELP)]
pub(crate) struct BackupVerifyArgs {
    /// The file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub(crate) json: bool,
}
