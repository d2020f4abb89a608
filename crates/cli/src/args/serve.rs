//! `serve`.

use std::path::PathBuf;

use clap::Args;

const SERVE_HELP: &str = "\
A config for node 1 of three; the configs of the others differ in node_id and data_dir:

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

When the node knows a leader and has caught up with it, one line is printed on stdout. Ctrl-C and \
SIGTERM stop the node cleanly (exit 0). Exit 2: the config is invalid; nothing was opened. Exit \
1: the node could not start, or stopped; the message says why.";

#[derive(Args, Debug)]
#[command(after_help = SERVE_HELP)]
pub(crate) struct ServeArgs {
    /// The node's configuration file, in TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Where the records are kept. `memory` rebuilds them at every start from the newest snapshot
    /// and the log; `disk` keeps them in `kv-disk` inside the data directory, for more records than
    /// fit into memory. Both serve clients alike and accept each other's snapshots, so the nodes of
    /// a cluster may differ. A node can change from `memory` to `disk` at a restart. To change
    /// back, remove `kv-disk` first: `memory` refuses a data directory that contains it.
    #[arg(long, value_enum, value_name = "KIND", default_value = "memory")]
    pub(crate) state_machine: StateMachineKind,
    /// Vote and campaign although the cluster was continued as another one by `recover`: only if
    /// that was a mistake, and after the new cluster was stopped for good.
    #[arg(long)]
    pub(crate) ignore_superseded: bool,
    /// Stop when stdin is closed, so that a parent process that ends leaves no orphan.
    #[arg(long, hide = true)]
    pub(crate) stop_on_stdin_close: bool,
}

/// Where the records are kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum StateMachineKind {
    /// In memory, rebuilt at every start
    Memory,
    /// In files on disk
    Disk,
}
