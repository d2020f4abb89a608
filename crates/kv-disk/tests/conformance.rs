//! The machine on disk keeps the contract of a state machine, on a disk that loses what was not
//! synced too.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use d_engine_kv_disk::{DiskKvStateMachine, KvCommand, KvQuery, PutOptions, Scan};
use d_engine_state_machine::StateMachine;

d_engine_conformance::state_machine_suite!(
    d_engine_conformance::StateMachineCase::new(|dir| DiskKvStateMachine::new(dir))
        .notices_flipped_bits()
        .on_fs(|fs, dir| DiskKvStateMachine::with_fs(fs, dir))
        .commands(|n| match n % 6 {
            // Expires five commands later, by log time.
            3 => KvCommand::put_with(
                format!("k{}", n % 7),
                n.to_string(),
                PutOptions::default().ttl(Duration::from_secs(5))
            ),
            _ => KvCommand::put(format!("k{}", n % 7), n.to_string()),
        }
        .encode())
        .expiring(
            KvCommand::put_with("held", "x", PutOptions::default().ttl(Duration::from_secs(20)))
                .encode(),
            20_000
        )
        .questions(|n| match n % 2 {
            0 => KvQuery::Scan(Scan::all().limit(n as u32)).encode(),
            _ => KvQuery::GetMany { keys: vec![format!("k{}", n % 7).into(), "held".into()] }
                .encode(),
        })
        .contents(|machine| machine.query(&KvQuery::Scan(Scan::all()).encode()).unwrap())
);
