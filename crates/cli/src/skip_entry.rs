//! `d-engine skip-entry`: leaves out an entry that no state machine can apply.

use std::collections::BTreeMap;

use d_engine_client::NodeStatus;

use crate::args::SkipEntryArgs;
use crate::exit::{Failure, say};
use crate::status::ask_everybody;

pub(crate) async fn skip_entry(args: SkipEntryArgs) -> Result<(), Failure> {
    let client = args.cluster.client()?;
    let (term, index) = args.entry;
    if !args.yes {
        let answers = ask_everybody(&client, args.cluster.endpoints.addresses()).await;
        let statuses: BTreeMap<u64, &NodeStatus> =
            answers.values().flatten().map(|status| (status.node, status)).collect();
        for status in statuses.into_values() {
            say(place(status));
        }
        for address in
            answers.iter().filter(|(_, answer)| answer.is_err()).map(|(address, _)| address)
        {
            say(format_args!(
                "{address} does not answer: that node may have applied the entry and acknowledged \
                 it"
            ));
        }
        return Err(Failure::refused(format_args!(
            "nothing was changed: skipping the entry at index {index} of term {term} loses its \
             effect on every node; to do that, add --yes"
        )));
    }
    let decided_at = client.skip_entry(term, index).await?;
    say(format_args!(
        "the entry at index {index} of term {term} is skipped on every node (decided by entry \
         {decided_at}); check with `d-engine status` whether a node must be restarted"
    ));
    Ok(())
}

/// Describes how far a node's state machine has applied.
fn place(status: &NodeStatus) -> String {
    let node = status.node;
    if let Some(reason) = &status.stopped {
        return format!("node {node} has stopped ({reason}): it may have applied the entry");
    }
    match (&status.apply_stopped, status.halted_at) {
        (Some(_), Some(entry)) => format!("node {node} has halted at {entry}"),
        (Some(reason), None) => format!("node {node} has halted: {reason}"),
        (None, _) => {
            format!("node {node} has applied everything up to index {}", status.applied_index)
        }
    }
}
