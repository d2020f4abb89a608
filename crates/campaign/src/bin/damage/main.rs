//! `d-engine-damage`: three nodes of the real binary under load; again and again one of them is
//! killed, its files are damaged at random, and it is started. If it refuses, the tool that its
//! message names is run: `repair`, or a new node that replaces it. Then every node must have every
//! acknowledged write. Run it with `scripts/damage`.
//!
//! `files.rs` damages, `cluster.rs` starts nodes and follows their messages, and `load.rs` writes
//! and compares.

mod cluster;
mod files;
mod load;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use d_engine_sim::Prng;
use tokio::time::sleep;

use crate::cluster::{Cluster, End};
use crate::load::Load;

/// The result of a step; the error is a sentence for a reader.
type Outcome<T> = Result<T, String>;

/// Damages files of nodes; start it with `scripts/damage`.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// How many times a node is damaged.
    #[arg(long, default_value_t = 500)]
    cases: u64,
    /// The seed of the damage.
    #[arg(long)]
    seed: u64,
    /// The release binary of d-engine.
    #[arg(long)]
    binary: PathBuf,
    /// An empty directory.
    #[arg(long)]
    dir: PathBuf,
    /// Plant a fault that must be found: nodes are put back to an earlier copy of their files.
    #[arg(long)]
    plant_rollback: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = tokio::select! {
        ended = run(&arguments) => ended,
        _ = tokio::signal::ctrl_c() => Err("interrupted".to_owned()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(found) => {
            println!("damage: FOUND: {found}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: &Arguments) -> Outcome<()> {
    let mut cluster = Cluster::start(&arguments.binary, &arguments.dir).await?;
    let load = Arc::new(Load::start(&cluster.addresses())?);
    let mut random = Prng::stream(arguments.seed, "damage");
    let mut ends: BTreeMap<End, u64> = BTreeMap::new();
    let (began, mut longest) = (Instant::now(), Duration::ZERO);
    for case in 1..=arguments.cases {
        let since = Instant::now();
        let node = random.below(3) as usize;
        let (end, what) = damage(arguments, &mut cluster, node, &mut random)
            .await
            .map_err(|error| format!("case {case}, seed {}: {error}", arguments.seed))?;
        load.pause().await;
        let compared = compare(&cluster, &load).await;
        compared.map_err(|error| format!("case {case} ({what}; {end:?}): {error}"))?;
        load.go_on(&cluster.addresses())?;
        *ends.entry(end).or_default() += 1;
        longest = longest.max(since.elapsed());
        if case % 20 == 0 || case == arguments.cases {
            println!(
                "damage: {case} cases in {} s, the longest {} ms, {} writes acknowledged: {}",
                began.elapsed().as_secs(),
                longest.as_millis(),
                load.acknowledged(),
                ends.iter().map(|(end, n)| format!("{n} {end:?}")).collect::<Vec<_>>().join(", ")
            );
        }
    }
    Ok(())
}

/// One case: the node ends, its files are damaged, and it comes back in some way.
async fn damage(
    arguments: &Arguments,
    cluster: &mut Cluster,
    node: usize,
    random: &mut Prng,
) -> Outcome<(End, String)> {
    if arguments.plant_rollback {
        roll_back(cluster, &arguments.dir.join("earlier")).await?;
    }
    cluster.end(node, random.below(3) == 0).await?;
    sleep(Duration::from_millis(random.below(400))).await;
    let what = files::damage(&cluster.data(node), random)?;
    let end = cluster.bring_back(node).await.map_err(|error| format!("{what}: {error}"))?;
    Ok((end, what))
}

/// Puts all nodes back to what they had half a second ago.
async fn roll_back(cluster: &mut Cluster, copies: &std::path::Path) -> Outcome<()> {
    for turn in 0..2 {
        for node in 0..3 {
            cluster.end(node, true).await?;
            let (data, copy) = (cluster.data(node), copies.join(node.to_string()));
            match turn {
                0 => files::copy_tree(&data, &copy)?,
                _ => files::copy_tree(&copy, &data)?,
            }
        }
        for node in 0..3 {
            cluster.bring_back_unasked(node)?;
        }
        sleep(Duration::from_secs(2)).await;
    }
    Ok(())
}

/// Every node applies everything, and has every acknowledged write.
async fn compare(cluster: &Cluster, load: &Load) -> Outcome<()> {
    cluster.wait_until_level().await?;
    for address in cluster.addresses() {
        load.compare(&address).await.map_err(|error| format!("the node at {address}: {error}"))?;
    }
    Ok(())
}
