//! `member`.

use std::time::Duration;

use clap::{Args, Subcommand};
use d_engine_client::{ChangeOptions, Client, ClientError, ConfigId, MemberChange};

use super::{ClusterArgs, EndpointArgs, duration};

const MEMBER_HELP: &str = "\
Examples:
    d-engine member list
    d-engine member list --watch --json        # one line for every change
    d-engine member remove 2                   # also if node 2 leads
    d-engine member replace 1 --with 5         # waits until node 5 keeps up with the log
    d-engine member promote 4
    d-engine member demote 4
    d-engine member update-address 3 --client db-3b.example:7001

To add a node, start it with `join` in its configuration. A change names a goal: repeating it \
changes nothing. It goes on if the command ends before. Exit 0: the goal is reached. Exit 1: \
refused, and the message says what to do first; `list`: no node leads. Exit 4: the change may be \
in progress; repeat the command to wait for it.";

#[derive(Args, Debug)]
#[command(after_help = MEMBER_HELP)]
pub(crate) struct MemberArgs {
    #[command(subcommand)]
    pub(crate) verb: MemberVerb,
}

#[derive(Subcommand, Debug)]
pub(crate) enum MemberVerb {
    /// Show the members, and how many of them may fail.
    List(MemberListArgs),
    /// Remove a node for ever. Its id is never used again.
    Remove {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a learner or joining node vote in place of a voter, in one step.
    Replace {
        /// Id of the voter that leaves.
        #[arg(value_name = "OLD", value_parser = clap::value_parser!(u64).range(1..))]
        old: u64,
        /// Id of the member that votes instead.
        #[arg(long = "with", value_name = "NEW", value_parser = clap::value_parser!(u64).range(1..))]
        new: u64,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a learner vote once it keeps up with the log.
    Promote {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Make a voter a learner.
    Demote {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Tell the cluster that a node has moved.
    UpdateAddress {
        #[command(flatten)]
        node: NodeArg,
        /// The node's new address for other nodes.
        #[arg(long, value_name = "HOST:PORT", required_unless_present = "client")]
        peer: Option<String>,
        /// The node's new address for clients; empty if it serves none.
        #[arg(long, value_name = "HOST:PORT")]
        client: Option<String>,
        #[command(flatten)]
        change: ChangeArgs,
    },
}

impl MemberVerb {
    /// The change that the verb makes, and how; `None` for `list`.
    pub(crate) fn change(self) -> Result<(MemberChange, ChangeArgs), MemberListArgs> {
        Ok(match self {
            Self::List(list) => return Err(list),
            Self::Remove { node, change } => (MemberChange::Remove(node.node), change),
            Self::Promote { node, change } => (MemberChange::Promote(node.node), change),
            Self::Demote { node, change } => (MemberChange::Demote(node.node), change),
            Self::Replace { old, new, change } => (MemberChange::Replace { old, new }, change),
            Self::UpdateAddress { node, peer, client, change } => {
                let moved = MemberChange::UpdateAddress {
                    node: node.node,
                    peer_addr: peer,
                    client_addr: client,
                };
                (moved, change)
            }
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct NodeArg {
    /// Id of the node.
    #[arg(value_name = "NODE", value_parser = clap::value_parser!(u64).range(1..))]
    node: u64,
}

#[derive(Args, Debug)]
pub(crate) struct MemberListArgs {
    /// Print the members again after every change, until Ctrl-C.
    #[arg(long)]
    pub(crate) watch: bool,
    /// Print JSON, one object per line.
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) cluster: ClusterArgs,
}

/// How a change is made.
#[derive(Args, Debug)]
pub(crate) struct ChangeArgs {
    /// Refuse the change unless this configuration is in force, for example 3.8; `list` shows it.
    #[arg(long, value_name = "T.V")]
    expected: Option<ConfigId>,
    /// Make the change even if too few voters may answer afterwards.
    #[arg(long)]
    accept_risk: bool,
    #[command(flatten)]
    endpoints: EndpointArgs,
    /// How long to wait for the goal.
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = duration)]
    timeout: Duration,
}

impl ChangeArgs {
    pub(crate) fn client(&self) -> Result<Client, ClientError> {
        self.endpoints.client(self.timeout)
    }

    pub(crate) fn options(&self) -> ChangeOptions {
        let options = ChangeOptions::default().accept_risk(self.accept_risk);
        self.expected.map_or(options, |config| options.expected(config))
    }
}
