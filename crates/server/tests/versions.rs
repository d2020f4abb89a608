//! A rolling upgrade: real nodes, whose programs decode commands of two versions. The second byte
//! of a command is its version.
#![allow(clippy::unwrap_used)]

mod alone;
#[path = "../../replica/tests/recording/machine.rs"]
mod recording;
mod support;

use std::sync::Arc;

use alone::until;
use d_engine_replica::ProposeError;
use d_engine_server::{Config, EmbeddedEngine, StartError};
use recording::{Manner, Recording};
use support::{TIMEOUT, cluster};

/// The command with this number is refused only by the old program.
const UNKNOWN_TO_THE_OLD: u8 = 99;

fn program(version: u32) -> Arc<Recording> {
    let refuses = (version < 2).then_some(UNKNOWN_TO_THE_OLD);
    Arc::new(Recording::with(Manner { decodes: version, refuses, ..Manner::default() }))
}

async fn start(config: &Config, version: u32) -> (Arc<Recording>, EmbeddedEngine) {
    let machine = program(version);
    let engine = EmbeddedEngine::start_custom(machine.clone(), config.clone()).await.unwrap();
    (machine, engine)
}

/// Returns what the leader replies to a command; retries while no node leads or the outcome is
/// unknown.
async fn propose(engines: &[EmbeddedEngine], command: [u8; 2]) -> Result<(), ProposeError> {
    let asked = async {
        loop {
            for engine in engines {
                match engine.propose(command.to_vec()).await {
                    Ok(_) => return Ok(()),
                    Err(
                        ProposeError::NotLeader { .. }
                        | ProposeError::OutcomeUnknown { .. }
                        | ProposeError::TransferInProgress { .. }
                        | ProposeError::Stopped { .. },
                    ) => tokio::task::yield_now().await,
                    Err(error) => return Err(error),
                }
            }
        }
    };
    tokio::time::timeout(TIMEOUT, asked).await.unwrap()
}

/// Waits until the leader refuses a command of version 2 because a node that runs the old program
/// has announced that.
async fn refused_because_of(engines: &[EmbeddedEngine], old: &[u64]) {
    until(async || match propose(engines, [UNKNOWN_TO_THE_OLD, 2]).await {
        Err(
            refused @ ProposeError::NewerCommand {
                version: 2,
                allowed: 1,
                held_by,
                announced: Some(1),
            },
        ) => {
            assert!(old.contains(&held_by.get()), "{refused}");
            assert!(
                refused.to_string().contains(&format!("program of node {held_by}")),
                "{refused}"
            );
            true
        }
        // A node that was just started has not acknowledged a heartbeat yet; an entry of version 1
        // may not be applied yet.
        Err(ProposeError::NewerCommand { version: 2, .. }) => false,
        other => panic!("{other:?}"),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_a_new_version_are_taken_when_the_last_node_is_upgraded_and_an_older_program_stops()
 {
    let dir = tempfile::tempdir().unwrap();
    let configs = cluster(dir.path(), 3);
    let mut engines = Vec::new();
    for config in &configs {
        engines.push(start(config, 1).await.1);
    }
    until(async || propose(&engines, [1, 1]).await.is_ok()).await;
    refused_because_of(&engines, &[1, 2, 3]).await;
    for place in 0..3 {
        engines[place].stop().await;
        engines[place] = start(&configs[place], 2).await.1;
        engines[place].wait_ready(TIMEOUT).await.unwrap();
        assert!(propose(&engines, [2, 1]).await.is_ok(), "the old version is taken all the time");
        let old: Vec<u64> = (place as u64 + 2..=3).collect();
        if !old.is_empty() {
            refused_because_of(&engines, &old).await;
        }
    }
    until(async || propose(&engines, [UNKNOWN_TO_THE_OLD, 2]).await.is_ok()).await;
    let leading = engines.iter().find(|engine| engine.is_leader()).unwrap();
    let status = leading.replica_status().await.unwrap();
    assert_eq!((status.command_version_max, status.command_version_allowed), (2, Some(2)));

    // The agreement is in the log: neither a voter that is down nor a new leader revokes it.
    let away = engines.iter().position(EmbeddedEngine::is_leader).unwrap();
    engines[away].stop().await;
    assert!(propose(&engines, [3, 2]).await.is_ok());

    // Started with the old program again, on a directory in which the new one has worked: the node
    // refuses to start, or stops, and names the reason.
    let machine = program(1);
    let told = match EmbeddedEngine::start_custom(machine.clone(), configs[away].clone()).await {
        Ok(engine) => engine.stopped().await.unwrap_err(),
        Err(refused) => refused,
    };
    assert!(matches!(&told, StartError::Stopped(reason) if reason.needs_newer_program()), "{told}");
    let text = told.to_string();
    assert!(
        text.contains("version 2") && text.contains("start a newer program on this node"),
        "{text}"
    );
    assert!(
        !machine.numbers().contains(&UNKNOWN_TO_THE_OLD),
        "its state machine has received the command"
    );

    let (machine, engine) = start(&configs[away], 2).await;
    engine.wait_ready(TIMEOUT).await.unwrap();
    until(async || machine.numbers().contains(&3)).await;
    engines[away] = engine;
    for engine in &engines {
        engine.stop().await;
    }
}
