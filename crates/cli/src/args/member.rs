//! `member`.

use std::time::Duration;

use clap::{Args, Subcommand};
use d_engine_client::{
    Admission, ChangeOptions, Client, ClientError, ConfigId, Invitation, MemberChange,
};

use super::{ClusterArgs, EndpointArgs, duration};

const MEMBER_HELP: &str = "\
Examples:
    d-engine member list
    d-engine member list --watch --json        # a line after every change
    d-engine member add --peer db-4.example:7101    # then start it with `join`
    d-engine member remove 2                   # also if node 2 leads
    d-engine member replace 1 --with 5         # waits until node 5 keeps up with the log
    d-engine member replace 1 --peer db-5.example:7101    # node 5 does not run yet
    d-engine member promote 4
    d-engine member demote 4
    d-engine member update-address 3 --client db-3b.example:7001

To add a node, start it with `join` in its configuration. A cluster whose nodes are not on \
loopback addresses admits only nodes whose address was announced with `add` or `replace --peer`; \
`admission` shows and changes that. A change names a goal: repeating it \
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
    /// Announce a node that is to join, by the address for other nodes that it advertises.
    Add {
        /// The node's address for other nodes.
        #[arg(long, value_name = "HOST:PORT")]
        peer: String,
        /// Withdraw the announcement: the node is not to join after all.
        #[arg(long)]
        withdraw: bool,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Show which nodes may join, or change it.
    Admission {
        /// `open`: every node that reaches a member; `invited`: announced nodes only.
        #[arg(value_name = "RULE")]
        rule: Option<Admission>,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Remove a node for ever. Its id is never used again.
    Remove {
        #[command(flatten)]
        node: NodeArg,
        #[command(flatten)]
        change: ChangeArgs,
    },
    /// Let a learner or joining node vote in place of a voter, in one step. With `--peer`: announce
    /// a node that is to join for that.
    Replace {
        /// Id of the voter that leaves.
        #[arg(value_name = "OLD", value_parser = clap::value_parser!(u64).range(1..))]
        old: u64,
        /// Id of the member that votes instead.
        #[arg(long = "with", value_name = "NEW", value_parser = clap::value_parser!(u64).range(1..))]
        #[arg(required_unless_present = "peer")]
        new: Option<u64>,
        /// The address for other nodes of a node that is to join and to vote instead.
        #[arg(long, value_name = "HOST:PORT", conflicts_with = "new")]
        peer: Option<String>,
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
    /// What the verb does.
    pub(crate) fn task(self) -> MemberTask {
        let (change, args) = match self {
            Self::List(list) => return MemberTask::List(list),
            Self::Admission { rule: None, change } => return MemberTask::ShowAdmission(change),
            Self::Admission { rule: Some(rule), change } => (MemberChange::Admit(rule), change),
            Self::Add { peer, withdraw: true, change } => (MemberChange::Withdraw(peer), change),
            Self::Add { peer, withdraw: false, change } => {
                let invited = Invitation { peer_addr: peer, replaces: None };
                (MemberChange::Invite(invited), change)
            }
            Self::Remove { node, change } => (MemberChange::Remove(node.node), change),
            Self::Promote { node, change } => (MemberChange::Promote(node.node), change),
            Self::Demote { node, change } => (MemberChange::Demote(node.node), change),
            Self::Replace { old, new: Some(new), change, .. } => {
                (MemberChange::Replace { old, new }, change)
            }
            Self::Replace { old, peer, change, .. } => {
                let peer_addr = peer.unwrap_or_default();
                let invited = Invitation { peer_addr, replaces: Some(old) };
                (MemberChange::Invite(invited), change)
            }
            Self::UpdateAddress { node, peer, client, change } => {
                let moved = MemberChange::UpdateAddress {
                    node: node.node,
                    peer_addr: peer,
                    client_addr: client,
                };
                (moved, change)
            }
        };
        MemberTask::Change(change, args)
    }
}

/// What a verb of `member` does.
pub(crate) enum MemberTask {
    List(MemberListArgs),
    ShowAdmission(ChangeArgs),
    Change(MemberChange, ChangeArgs),
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
