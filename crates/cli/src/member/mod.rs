//! `d-engine member`: shows the members of a cluster (`list.rs`) and changes them (`change.rs`).

mod change;
mod list;

use crate::args::{MemberArgs, MemberTask};
use crate::exit::Failure;

pub(crate) async fn member(args: MemberArgs) -> Result<(), Failure> {
    match args.verb.task() {
        MemberTask::List(args) => list::list(&args).await,
        MemberTask::ShowAdmission(args) => change::show_admission(&args).await,
        MemberTask::Change(change, args) => change::change(change, &args).await,
    }
}
