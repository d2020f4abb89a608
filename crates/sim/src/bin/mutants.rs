//! Plants one known bug after the other, builds the project with it, and shows that the project's own
//! checks find it: `cargo run --release -p d-engine-sim --bin mutants [NAME ...]`.
//!
//! A bug is a line behind `cfg!(mutant = "name")`. Only the workspace's crates are compiled anew for
//! it: this program serves as cargo's compiler wrapper and adds the flag, told by the name under
//! which it is called.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

/// The prefix of the names under which this program is a compiler wrapper.
const WRAPPER: &str = "rustc-with-";

/// A known bug, and what must find it.
struct Mutant {
    name: &'static str,
    bug: &'static str,
    found_by: Check,
}

enum Check {
    /// A seed of the simulator, among the first ones.
    Seeds,
    /// A test: package and the beginning of its name.
    Test(&'static str, &'static str),
}

const MUTANTS: &[Mutant] = &[
    seeds("ack-before-sync", "a follower acknowledges entries before its sync"),
    seeds("vote-before-sync", "a vote leaves before it is stored"),
    seeds("vote-forgotten", "term and vote are never stored"),
    seeds("commit-old-term", "an entry of an earlier term is committed by counting (figure 8)"),
    seeds("leader-counts-unsynced", "a leader counts its own log before its sync"),
    seeds("truncate-on-any-append", "a delayed append removes what a later one has added"),
    seeds("no-log-check-in-vote", "a vote is given to a candidate with an older log"),
    Mutant {
        name: "commit-past-verified",
        bug: "a follower commits entries that were never matched",
        found_by: Check::Test("d-engine-core", "fig2_a_follower_commits"),
    },
    seeds("read-without-round", "a read is served without asking a quorum"),
    seeds("read-before-first-commit", "a read is served before the term's first commit"),
    seeds("lease-twice-as-long", "a lease outlasts the loyalty of those who gave it"),
    Mutant {
        name: "lease-over-transfer",
        bug: "a leader that told another to campaign keeps its lease",
        found_by: Check::Test("d-engine-core", "thesis_6_4_1_"),
    },
    seeds("any-read-reply", "a follower takes the answer to an earlier question for the one it waits for"),
    seeds("apply-before-persisted", "a node applies what its own disk does not hold"),
    Mutant {
        name: "recovery-no-cut",
        bug: "a torn tail is left where it is",
        found_by: Check::Test("d-engine-storage", ""),
    },
    Mutant {
        name: "stale-acks-over-re-election",
        bug: "an ack of an earlier term counts in a later one",
        found_by: Check::Test("d-engine-core", "row_42"),
    },
    Mutant {
        name: "stale-round-in-new-term",
        bug: "an answer to a heartbeat of an earlier term counts for a round of the present one",
        found_by: Check::Test("d-engine-core", "an_answer_to_a_heartbeat_of_an_earlier_term"),
    },
    Mutant {
        name: "watermark-ignored",
        bug: "damage before the durable watermark passes for a torn tail",
        found_by: Check::Test("d-engine-storage", ""),
    },
    seeds("skip-by-minority", "an entry is skipped although no quorum stands at it"),
    seeds("skip-forgotten-at-start", "a node that starts does not look which entries its log skips"),
    Mutant {
        name: "skip-unnoted",
        bug: "a machine that keeps its own state does not note which entry it has skipped",
        found_by: Check::Test("d-engine-replica", "a_durable_machine_remembers_what_it_has_skipped"),
    },
    Mutant {
        name: "snapshot-before-decision",
        bug: "a snapshot is taken between a skipped entry and the entry that says so",
        found_by: Check::Test("d-engine-replica", "no_snapshot_is_taken_between"),
    },
    seeds("snapshot-wrong-label", "a snapshot is labelled with the entry before the last one in it"),
    seeds("snapshot-no-dir-sync", "a snapshot's name is not synced"),
    seeds("snapshot-tmp-appended", "a snapshot is written behind what an earlier attempt has left"),
    Mutant {
        name: "snapshot-stale-tmp",
        bug: "a snapshot is written over what an earlier attempt has left",
        // The same label is the same state here: what is left is what would be written.
        found_by: Check::Test("d-engine-storage", "nothing_of_an_earlier_attempt_is_left_in_a_new_archive"),
    },
    seeds("snapshot-checksum-ignored", "the checksums of a snapshot are not compared"),
    seeds("metadata-before-file", "the state machine is told of a snapshot that is not written yet"),
    seeds("purge-before-flush", "the log is purged of what a durable machine has not stored"),
    seeds("purge-during-transfer", "the log is purged while a follower is being sent a snapshot"),
    seeds("success-before-apply", "a snapshot counts as sent before the follower has applied it"),
    seeds("install-keeps-conflicting-suffix", "what a snapshot drops from the log comes back"),
    seeds("deposed-sender-leads", "who takes a deposed leader's snapshot follows it"),
    seeds("hang-unnoticed", "a leader whose disk or machine hangs goes on leading"),
    seeds("bindings-purged", "a purge forgets which data directories are bound"),
    Mutant {
        name: "own-clock-believed",
        bug: "a leader's own wall clock makes log time, whatever the others' show",
        found_by: Check::Test("d-engine-sim", "a_leader_whose_wall_clock_is_wrong"),
    },
    seeds("version-unheard-voter-ignored", "a voter that has told nothing holds no newer command up"),
    seeds("committed-forgotten", "a follower with a new leader does not tell it what is committed"),
    Mutant {
        name: "held-snapshot-pruned",
        bug: "a received snapshot is pruned before it is installed",
        found_by: Check::Test("d-engine-storage", "pruning_leaves_what_is_held"),
    },
    Mutant {
        name: "chain-check-skipped",
        bug: "the chain of records is not verified",
        found_by: Check::Test("d-engine-storage", ""),
    },
];

const fn seeds(name: &'static str, bug: &'static str) -> Mutant {
    Mutant { name, bug, found_by: Check::Seeds }
}

fn main() -> ExitCode {
    let mut arguments = env::args_os();
    let called_as = arguments.next().map(PathBuf::from).unwrap_or_default();
    let name = called_as.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(mutant) = name.strip_prefix(WRAPPER) {
        return compile(mutant, arguments);
    }
    match table(&arguments.filter_map(|argument| argument.into_string().ok()).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the compiler with one more flag. Returns only if that fails.
fn compile(mutant: &str, mut arguments: env::ArgsOs) -> ExitCode {
    let Some(rustc) = arguments.next() else { return ExitCode::from(2) };
    let flag = format!("mutant=\"{mutant}\"");
    let error = Command::new(rustc).args(arguments).arg("--cfg").arg(flag).exec();
    eprintln!("error: the compiler could not be started: {error}");
    ExitCode::from(2)
}

fn table(names: &[String]) -> Result<bool, String> {
    if let Some(unknown) = names.iter().find(|name| !MUTANTS.iter().any(|mutant| mutant.name == **name)) {
        let known: Vec<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        return Err(format!("no planted bug is called {unknown:?}; there are: {}", known.join(", ")));
    }
    let is_chosen = |mutant: &&Mutant| names.is_empty() || names.iter().any(|name| name == mutant.name);
    let chosen: Vec<&Mutant> = MUTANTS.iter().filter(is_chosen).collect();
    let target = Path::new("target").join("mutants");
    // All of them now: this program's own file may be built anew while it runs.
    for mutant in &chosen {
        wrapper(mutant.name, &target)?;
    }
    let mut all_found = true;
    println!("{:<28}  {:<62}  found by", "planted bug", "what it does");
    for mutant in chosen {
        let started = Instant::now();
        let found = find(mutant, &target)?;
        all_found &= found.is_some();
        let by = found.unwrap_or_else(|| "NOTHING".to_owned());
        println!("{:<28}  {:<62}  {by} ({:.0} s)", mutant.name, mutant.bug, started.elapsed().as_secs_f64());
    }
    Ok(all_found)
}

/// What finds the bug, or `None`.
fn find(mutant: &Mutant, target: &Path) -> Result<Option<String>, String> {
    let target = target.canonicalize().map_err(|error| format!("{}: {error}", target.display()))?;
    let wrapper = target.join(format!("{WRAPPER}{}", mutant.name));
    let cargo = |arguments: &[&str]| {
        let output = Command::new("cargo")
            .args(arguments)
            .env("RUSTC_WORKSPACE_WRAPPER", &wrapper)
            .env("CARGO_TARGET_DIR", &target)
            .output()
            .map_err(|error| format!("cargo: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok::<_, String>((output.status.success(), text, String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    match mutant.found_by {
        Check::Seeds => {
            let (built, _, error) =
                cargo(&["build", "--release", "-p", "d-engine-sim", "--bin", "d-engine-sim"])?;
            if !built {
                return Err(format!("{} does not build:\n{error}", mutant.name));
            }
            let output = Command::new(target.join("release/d-engine-sim"))
                .args(["--count", "2000", "--fail-fast"])
                .output()
                .map_err(|error| format!("d-engine-sim: {error}"))?;
            Ok(finding(&String::from_utf8_lossy(&output.stdout)).filter(|_| !output.status.success()))
        }
        Check::Test(package, filter) => {
            let (passed, text, error) = cargo(&["test", "-p", package, "--no-fail-fast", "--", filter])?;
            let failed: Vec<&str> =
                text.lines().filter_map(|line| line.strip_suffix(" ... FAILED")).collect();
            if !passed && failed.is_empty() {
                return Err(format!("{} does not build:\n{error}", mutant.name));
            }
            Ok(failed.first().map(|test| {
                format!("{} tests, among them {}", failed.len(), test.trim_start_matches("test "))
            }))
        }
    }
}

/// The first finding in the simulator's summary: its seed and the rule.
fn finding(summary: &str) -> Option<String> {
    let mut seed = "";
    for line in summary.lines() {
        if let Some(rest) = line.strip_prefix("seed ") {
            seed = rest.split(':').next().unwrap_or("");
        }
        if let Some((_, what)) = line.split_once("FOUND at ") {
            let rule = what.split_once(": ").map_or(what, |(_, rule)| rule);
            return Some(format!("seed {seed}: {}", rule.split(':').next().unwrap_or(rule)));
        }
    }
    None
}

/// This program under the name that tells it which bug to plant.
fn wrapper(mutant: &str, target: &Path) -> Result<(), String> {
    let this = env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    fs::create_dir_all(target).map_err(|error| format!("{}: {error}", target.display()))?;
    let link = target.join(format!("{WRAPPER}{mutant}"));
    fs::copy(&this, &link).map_err(|error| format!("{}: {error}", link.display()))?;
    Ok(())
}
