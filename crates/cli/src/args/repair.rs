//! `repair`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::duration;

const REPAIR_HELP: &str = "\
Examples:
    d-engine log dump --data-dir /var/lib/d-engine     # what is damaged
    d-engine repair --data-dir /var/lib/d-engine
    d-engine repair --data-dir /var/lib/d-engine --from db-2:7001
    d-engine serve --config node.toml

For one node of a cluster whose log is damaged in the middle, so that it does not start. The log \
is cut at the first damaged place, or begins after the newest intact snapshot if that has more; \
the node receives the rest from the leader. Until it has everything again that it may have \
acknowledged, it votes as if it had it, and does not lead. So nothing acknowledged is lost as \
long as other voters have it.

If the log begins after the end of every intact snapshot, the command asks for --from, and fetches \
a snapshot from that member: it takes a new one, which the command verifies and puts beside the \
damaged ones. A transfer that breaks is continued, also by the next run.

The mended directory is built in DIR.repairing. The damaged one is kept as DIR.before-repair-TIME; \
remove it once the node has caught up. If the command was cut off, the same command begins anew or \
finishes the work. DIR cannot be a mount point. Run the command as the user of the node.

The files that a state machine keeps in DIR stay in the old directory; its state is rebuilt from \
snapshot and log.

Exit 1: the log cannot be mended, because the node's last vote may be in the damaged part; the \
message names the command that replaces the node. Exit 2: there is nothing to mend, or DIR is no \
data directory. Nothing was changed.";

#[derive(Args, Debug)]
#[command(after_help = REPAIR_HELP)]
pub(crate) struct RepairArgs {
    /// The data directory of the node; the mended one takes its place.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
    /// The client address of another member, which sends a snapshot if one is missing.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) from: Option<String>,
    /// How long to wait until that member has taken the snapshot.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(crate) wait: Duration,
}
