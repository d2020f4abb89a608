//! `d-engine recover --force-new-cluster`.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use d_engine_offline::recover::{
    Kept, LogId, Progress, RecoverError, RecoverRequest, Recovered, recover,
};
use d_engine_offline::restore::Admission;
use d_engine_offline::{Fs, RealFs};

use super::{followed, voters};
use crate::blocking::{Reading, Stop};
use crate::exit::{Exit, Failure, say};
use crate::restore::{CLOCK_ADVICE, CONFIG_ADVICE, is_held};

pub(super) fn run(
    data_dir: PathBuf,
    peer_addr: Option<String>,
    client_addr: Option<String>,
    stop: &Stop,
) -> Result<(), Failure> {
    let now = SystemTime::now();
    let at_ms = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
    let at_ms = u64::try_from(at_ms).unwrap_or_default();
    let request = RecoverRequest { data_dir: followed(data_dir), peer_addr, client_addr, at_ms };
    let fs: Arc<dyn Fs> = Arc::new(RealFs::new());
    let mut reading = Reading::begin("recovering");
    let mut refused = None;
    let recovered = recover(
        &fs,
        &request,
        &mut |holdings| match voters::check(holdings) {
            Ok(()) => ControlFlow::Continue(()),
            Err(failure) => {
                refused = Some(failure);
                ControlFlow::Break(())
            }
        },
        &mut |progress| {
            let (Progress::Read(bytes) | Progress::Written(bytes)) = progress;
            reading.add(bytes);
            stop.flow()
        },
    );
    reading.end();
    if let Some(refused) = refused {
        return Err(refused);
    }
    let recovered = recovered.map_err(failure)?;
    report(&request, &recovered, now);
    Ok(())
}

fn report(request: &RecoverRequest, recovered: &Recovered, now: SystemTime) {
    let node = recovered.node;
    match &recovered.kept {
        Some(kept) => {
            say(kept_text(kept));
            if let Some(promised) = kept.promised {
                say(lost_text(kept, promised));
            }
        }
        None => say("finished what an earlier run had built"),
    }
    say(format_args!(
        "cluster {} has ended; this is cluster {} with node {node} alone, in {}",
        recovered.from,
        recovered.cluster,
        request.data_dir.display()
    ));
    say(format_args!("the old directory is {} (retired)", recovered.old_dir.display()));
    if recovered.kept.is_some_and(|kept| kept.time_ms > 0 && is_held(kept.time_ms, now)) {
        say(CLOCK_ADVICE);
    }
    say(CONFIG_ADVICE);
    let invites = match recovered.membership.admission() {
        Admission::Open => "start it, then start the others",
        Admission::Invited => {
            "start it, invite the others with `d-engine member add`, and start them"
        }
    };
    let address = recovered.membership.members().first().map(|member| member.peer_addr.as_str());
    say(match address.filter(|address| !address.is_empty()) {
        Some(address) => format!("{invites} EMPTY with `join = [\"{address}\"]`"),
        None => format!("{invites} EMPTY with `join`, once its configuration has `peer_listen`"),
    });
}

fn kept_text(kept: &Kept) -> String {
    let (term, index) = (kept.last.term, kept.last.index);
    let kept_all = format!("kept: everything up to entry {index} of term {term}");
    match kept.not_known_committed {
        0 => format!("{kept_all}; all of it was known to be committed"),
        1 => format!(
            "{kept_all}; the last entry was not known to be committed, and counts as committed \
             from now on"
        ),
        count => format!(
            "{kept_all}; {count} of these entries were not known to be committed, and count as \
             committed from now on"
        ),
    }
}

fn lost_text(kept: &Kept, promised: LogId) -> String {
    let (first, last) = (kept.last.index.next(), promised.index);
    match first > last {
        true => format!(
            "lost: the log was repaired after damage, and had entries up to {last} of term {}",
            promised.term
        ),
        false => format!(
            "lost: entries {first} to {last}, which the log had before it was repaired after damage"
        ),
    }
}

fn failure(error: RecoverError) -> Failure {
    let exit = match &error {
        RecoverError::Inspect(error) => return crate::inspect::failure(error),
        RecoverError::Address(_)
        | RecoverError::Membership(_)
        | RecoverError::Occupied { .. }
        | RecoverError::SoleVoter { .. } => Exit::Refused,
        _ => Exit::Failed,
    };
    Failure::new(exit, error)
}
