//! `d-engine backup`: copies a snapshot with everything that was acknowledged out of the cluster,
//! and verifies such a copy.

mod file;
mod report;
mod source;
mod transfer;
mod verify;

use std::sync::Arc;

use d_engine_client::BackupOf;
use d_engine_offline::backup::BackupFile;
use d_engine_offline::{Fs, RealFs};

use self::report::Report;
use self::source::Sources;
pub(crate) use self::transfer::receive_from;
use self::transfer::{Unfinished, anew, failure};
use crate::args::{BackupArgs, BackupVerb};
use crate::blocking::Stop;
use crate::exit::{Exit, Failure};
use crate::signals::StopSignals;

pub(crate) async fn backup(mut args: BackupArgs) -> Result<(), Failure> {
    if let Some(BackupVerb::Verify(args)) = args.verb.take() {
        return verify::verify(args).await;
    }
    let mut signals = StopSignals::listen()?;
    let stop = Stop::default();
    let file = args.file.clone().unwrap_or_default();
    tokio::select! {
        result = make(args, &stop) => result,
        signal = signals.next() => {
            stop.set();
            let begun = BackupFile::unfinished(&RealFs::new(), &file);
            let kept = match begun {
                Ok(Some(_)) => {
                    "; what was received is kept beside the file: --resume continues, and a new \
                     run begins anew"
                }
                _ => "; nothing was received",
            };
            Err(Failure::new(Exit::Interrupted, format!("interrupted by {signal}{kept}")))
        }
    }
}

async fn make(args: BackupArgs, stop: &Stop) -> Result<(), Failure> {
    let file = args.file.clone().unwrap_or_default();
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    BackupFile::check_target(&*fs, &file).map_err(failure)?;
    let begun = match args.resume {
        true => Some(Unfinished::open(&fs, &file, stop).await?.ok_or_else(|| {
            let name = file.display();
            Failure::refused(format!("nothing was begun for {name}; run it without --resume"))
        })?),
        false => None,
    };
    let received = match begun {
        Some(begun) if begun.is_whole() => begun.finish().await,
        Some(begun) => begun.go_on(&Sources::find(&args).await?).await,
        None => {
            let what = if args.stale { BackupOf::Applied } else { BackupOf::Acknowledged };
            anew(&Sources::find(&args).await?, &fs, &file, (what, args.wait), stop).await
        }
    };
    Report::of(&received?).print(&file, &args)
}
