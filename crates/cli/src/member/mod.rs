//! `d-engine member`: shows the members of a cluster (`list.rs`) and changes them (`change.rs`).

mod change;
mod list;

use crate::args::MemberArgs;
use crate::exit::Failure;

pub(crate) async fn member(args: MemberArgs) -> Result<(), Failure> {
    match args.verb.change() {
        Ok((change, args)) => change::change(change, &args).await,
        Err(args) => list::list(&args).await,
    }
}
