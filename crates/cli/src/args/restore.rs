//! `restore`.

use std::path::PathBuf;

use clap::Args;
use d_engine_offline::restore::NodeId;

const RESTORE_HELP: &str = "\
Examples:
    d-engine restore backup.snap --data-dir /var/lib/d-engine \\
        --peer db-1.example:7101 --client db-1.example:7001
    d-engine serve --config node1.toml

Makes a new cluster, with an id of its own, of one node. FILE is a snapshot: a copy of one of the \
files snap-TERM-INDEX.snap in the `snapshots` directory of a node's data directory, whichever is \
newest. Writes that were acknowledged after it was taken are not in it. All of FILE is verified, \
and nothing is put at the target before everything is complete and durable.

Further nodes are not restored: start them empty with `join`. Nodes and clients of the old cluster \
do not take the new one for theirs. The term rises by at least 1,000,000, so that no term and index \
that a client has seen comes again. If the snapshot is more than an hour old, start the node the \
first time with `accept_clock = true`.

An empty directory at DIR is replaced; it cannot be a mount point. Run the command as the user of \
the node. It works in DIR.restoring until the end.

A state machine that keeps files of its own outside the data directory must be empty.

Exit 2: the target is not empty, an address cannot be one, or there is no such file; nothing was \
changed.";

#[derive(Args, Debug)]
#[command(after_help = RESTORE_HELP)]
pub(crate) struct RestoreArgs {
    /// The snapshot file.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The data directory to make; it must not exist or must be empty.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The address at which other nodes will reach the node. Left out: the node stays alone until
    /// its configuration has one.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: Option<String>,
    /// The address at which clients will reach the node.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) client: Option<String>,
    /// The id of the node in the new cluster.
    #[arg(long, value_name = "ID", default_value = "1", value_parser = node_id)]
    pub(crate) node_id: NodeId,
}

fn node_id(text: &str) -> Result<NodeId, String> {
    let id = text.parse().ok().and_then(NodeId::new);
    id.ok_or_else(|| "a node id is a number from 1 up".to_owned())
}
