//! `d-engine recover`: after the majority is lost for good, the log of one node continues as a new
//! cluster.

mod force;
mod survivors;
mod voters;

use std::path::PathBuf;

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

/// The directory to which a symbolic link leads: it is the one to rename, and the new one is to be
/// on the same disk. After a run that was cut off, the link may lead nowhere.
pub(crate) fn followed(dir: PathBuf) -> PathBuf {
    // With a slash at the end, it would be the directory behind the link that is read.
    let dir: PathBuf = dir.components().collect();
    match std::fs::read_link(&dir) {
        Ok(target) => dir.parent().map_or(target.clone(), |parent| parent.join(target)),
        Err(_) => dir,
    }
}
