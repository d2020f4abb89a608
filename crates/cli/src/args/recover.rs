//! `recover`.

use std::path::PathBuf;

use clap::Args;

const RECOVER_HELP: &str = "\
Examples:
    d-engine recover --inspect /mnt/a /mnt/b
    d-engine recover --force-new-cluster --data-dir /mnt/b
    d-engine serve --config node.toml

For a cluster that has lost the majority of its voters for good. As long as a majority can be \
started again, start it: nothing has to be recovered.

--inspect reads the data directories of all survivors, changes nothing, says which one has the \
most, and whether an acknowledged write may be lost. Exit 1: none of them can be taken.

--force-new-cluster makes a new cluster, with an id of its own, of the node in DIR alone. It keeps \
everything in the snapshot and the log, also the entries that were not known to be committed. It \
asks the other voters at their addresses first: if nodes answer that are a majority, with this one \
or without it, nothing is done. The new directory is built in DIR.recovering. The old one is \
retired, so that no node starts in it again, and kept as DIR.before-recover-TIME. If the command \
was cut off, the same command begins anew or finishes the work. DIR cannot be a mount point. Run \
the command as the user of the node.

Empty the directories of all other old nodes before they are started again, and start them with \
`join`. A majority of the old cluster that comes back as it was is a cluster, and answers.

The files that a state machine keeps in DIR stay in the old directory; its state is rebuilt from \
snapshot and log. Files elsewhere are taken over.

Exit 1: a majority answers, a node runs in DIR, or something in it is damaged. Exit 2: an address \
cannot be one, DIR is no data directory, or there is nothing to recover. Nothing was changed, \
unless the message tells to run the command again.";

#[derive(Args, Debug)]
#[command(after_help = RECOVER_HELP)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct RecoverArgs {
    /// Compare the data directories of the survivors; changes nothing.
    #[arg(long, value_name = "DIR", num_args = 1.., group = "what")]
    pub(crate) inspect: Vec<PathBuf>,
    /// Make a new cluster of the node in --data-dir alone.
    #[arg(long, group = "what", requires = "data_dir")]
    pub(crate) force_new_cluster: bool,
    /// The data directory of the node; the new directory takes its place.
    #[arg(long, value_name = "DIR", conflicts_with = "inspect")]
    pub(crate) data_dir: Option<PathBuf>,
    /// The address at which other nodes will reach the node. Left out: the one that the old cluster
    /// knew.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "inspect")]
    pub(crate) peer: Option<String>,
    /// The address at which clients will reach the node. Left out: as above.
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "inspect")]
    pub(crate) client: Option<String>,
}
