//! `d-engine transfer-leader`: moves the leadership to another node.

use crate::args::TransferArgs;
use crate::exit::{Failure, say};
use crate::status::{ask_everybody, leader_with_quorum};

pub(crate) async fn transfer_leader(args: TransferArgs) -> Result<(), Failure> {
    let client = args.cluster.client()?;
    // No transfer is needed if the target leads already.
    let before =
        leader_with_quorum(&ask_everybody(&client, args.cluster.endpoints.addresses()).await);
    if let Some(leader) = before
        && args.to == Some(leader)
    {
        say(format_args!("node {leader} leads already"));
        return Ok(());
    }
    let leader = client.transfer_leadership(args.to).await?;
    match before {
        Some(before) => say(format_args!("node {leader} leads (it was node {before})")),
        None => say(format_args!("node {leader} leads")),
    }
    Ok(())
}
