//! `d-engine recover`: after the majority is lost for good, the log of one node continues as a new
//! cluster.

mod force;
mod survivors;
mod voters;

use crate::args::RecoverArgs;
use crate::blocking::interruptible;
use crate::exit::Failure;

pub(crate) async fn recover(args: RecoverArgs) -> Result<(), Failure> {
    let RecoverArgs { inspect, data_dir, peer, client, force_new_cluster: _ } = args;
    match data_dir {
        Some(dir) => interruptible(move |stop| force::run(dir, peer, client, stop)).await,
        None => interruptible(move |stop| survivors::run(&inspect, stop)).await,
    }
}
