//! Plants known bugs one at a time in a copy of the sources, and checks that the project's own
//! tests and monitors find them: `cargo run --release -p d-engine-sim --bin mutants -- --help`.
//!
//! A bug is a patch in `crates/sim/mutants/`. The lines before its diff say what finds it
//! (`d_engine_tidy::planted`). The copy is `target/mutants/tree`, and all builds share the
//! directory `target/mutants/build`: only what depends on a patched file is compiled again. The
//! sources themselves are never changed, even if this program is interrupted; the next run restores
//! the copy.

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use clap::Parser;
use d_engine_tidy::planted::{self, Check, PlantedBug};

/// The package and the program that run seeds.
const SIMULATOR: &str = "d-engine-sim";

/// The simulator's first seeds, one of which must find a bug that is found by seeds.
const SEEDS: &str = "2000";

/// Plants known bugs one at a time in a copy of the sources, and checks that the tests find them.
///
/// Each bug is a patch in crates/sim/mutants; docs/testing.md, "Planted bugs", says how to add one.
/// The copy and its builds are in target/mutants. Uncommitted changes are part of the copy, and the
/// sources themselves are never changed.
///
/// Exit code 0: all were found; 1: at least one was not found; 2: at least one could not be
/// checked, because its patch does not apply or does not compile, or wrong arguments.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// The bugs to plant; all of them if none is named.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Print the planted bugs and what finds each, and do nothing else.
    #[arg(long)]
    list: bool,
    /// Check only that each patch applies and that what its check needs compiles.
    #[arg(long, conflicts_with = "list")]
    build_only: bool,
    /// Write the named patches anew, for the sources as they are now. Works as long as the changed
    /// lines and one line beside them are still there.
    #[arg(long, requires = "names", conflicts_with_all = ["list", "build_only"])]
    renew: bool,
}

/// What is done with each bug.
#[derive(Clone, Copy)]
enum Task {
    Compile,
    Find,
}

/// What became of a bug.
enum Outcome {
    Compiles,
    Found(String),
    NotFound,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match work(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn work(arguments: &Arguments) -> Result<ExitCode, String> {
    let root = d_engine_tidy::root();
    let bugs = chosen(planted::all(&root)?, &arguments.names)?;
    if arguments.list {
        for bug in bugs {
            println!("{:<32}  {}\n{:34}found by: {}", bug.name, bug.bug, "", bug.found_by);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let copy = Copy::open(root)?;
    if arguments.renew {
        let errors: Vec<String> = bugs.iter().filter_map(|bug| copy.renew(bug).err()).collect();
        return if errors.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(errors.join("\n")) };
    }
    let task = if arguments.build_only { Task::Compile } else { Task::Find };
    check_all(&copy, in_build_order(bugs), task)
}

/// The bugs with these names; all of them if there are no names.
fn chosen(all: Vec<PlantedBug>, names: &[String]) -> Result<Vec<PlantedBug>, String> {
    let known: Vec<&str> = all.iter().map(|bug| bug.name.as_str()).collect();
    if let Some(unknown) = names.iter().find(|name| !known.contains(&name.as_str())) {
        return Err(format!(
            "unknown planted bug {unknown:?}; expected one of: {}",
            known.join(", ")
        ));
    }
    Ok(all.into_iter().filter(|bug| names.is_empty() || names.contains(&bug.name)).collect())
}

/// Bugs in the same crate one after the other: then the crates below it are compiled once.
fn in_build_order(mut bugs: Vec<PlantedBug>) -> Vec<PlantedBug> {
    bugs.sort_by_key(|bug| {
        let crate_of = |file: &Path| file.iter().nth(1).map(ToOwned::to_owned);
        bug.files().first().and_then(|file| crate_of(file))
    });
    bugs
}

fn check_all(copy: &Copy, bugs: Vec<PlantedBug>, task: Task) -> Result<ExitCode, String> {
    let (start, count) = (Instant::now(), bugs.len());
    let (mut missed, mut unchecked) = (Vec::new(), Vec::new());
    println!("{:<16}  {:<32}  {:<72}  found by", "number, time", "planted bug", "description");
    for (number, bug) in (1..).zip(bugs) {
        let progress = format!("{number}/{count}, {} s", start.elapsed().as_secs());
        print!("{progress:<16}  {:<32}  {:<72}  ", bug.name, bug.bug);
        // The outcome follows on the same line, perhaps minutes later.
        std::io::stdout().flush().map_err(|error| format!("standard output: {error}"))?;
        let begun = Instant::now();
        let outcome = copy.with_bug(&bug, || match task {
            Task::Compile => compile(copy, &bug),
            Task::Find => find(copy, &bug),
        });
        let seconds = begun.elapsed().as_secs();
        match outcome {
            Ok(Outcome::Compiles) => println!("compiles ({seconds} s)"),
            Ok(Outcome::Found(by)) => println!("{by} ({seconds} s)"),
            Ok(Outcome::NotFound) => {
                println!("NOTHING ({seconds} s)");
                missed.push(bug.name);
            }
            Err(error) => {
                println!("COULD NOT BE CHECKED ({seconds} s)\n{error}");
                unchecked.push(bug.name);
            }
        }
    }
    let fine = count - missed.len() - unchecked.len();
    let done = match task {
        Task::Compile => "compile",
        Task::Find => "were found",
    };
    println!("{fine} of {count} planted bugs {done}, in {} s", start.elapsed().as_secs());
    for (what, names) in [("not found", &missed), ("could not be checked", &unchecked)] {
        if !names.is_empty() {
            println!("{what}: {}", names.join(", "));
        }
    }
    Ok(match (missed.is_empty(), unchecked.is_empty()) {
        (_, false) => ExitCode::from(2),
        (false, true) => ExitCode::FAILURE,
        (true, true) => ExitCode::SUCCESS,
    })
}

/// Compiles what the check of the bug needs, without generating code.
fn compile(copy: &Copy, bug: &PlantedBug) -> Result<Outcome, String> {
    let of_the_check = match &bug.found_by {
        Check::Seeds | Check::Members => ["check", "-p", SIMULATOR, "--bins"],
        Check::Tests { package, .. } => ["check", "-p", package, "--tests"],
    };
    copy.cargo(&of_the_check)?.or_error("does not compile")?;
    Ok(Outcome::Compiles)
}

/// Builds the copy and runs the check that must find the bug.
fn find(copy: &Copy, bug: &PlantedBug) -> Result<Outcome, String> {
    let found = match &bug.found_by {
        Check::Seeds | Check::Members => {
            let arguments = ["--release", "-p", SIMULATOR, "--bin", SIMULATOR];
            let seeds = ["--", "--count", SEEDS, "--fail-fast", "--shrink-seconds", "0"];
            copy.cargo(&[&["build"], &arguments[..]].concat())?.or_error("does not compile")?;
            let members: &[&str] =
                if bug.found_by == Check::Members { &["--members"] } else { &[] };
            let run = copy.cargo(&[&["run"], &arguments[..], &seeds[..], members].concat())?;
            let found = finding(&run.output).filter(|_| !run.has_succeeded);
            if found.is_none() {
                run.or_error("the simulator failed without a finding")?;
            }
            found
        }
        Check::Tests { package, name } => {
            let run = copy.cargo(&["test", "-p", package, "--no-fail-fast", "--", name])?;
            let failed: Vec<&str> =
                run.output.lines().filter_map(|line| line.strip_suffix(" ... FAILED")).collect();
            let found = failed.first().map(|test| {
                let test = test.trim_start_matches("test ");
                format!("{} tests failed, the first: {test}", failed.len())
            });
            if found.is_none() {
                run.or_error("does not compile")?;
            }
            found
        }
    };
    Ok(found.map_or(Outcome::NotFound, Outcome::Found))
}

/// Returns the seed and the rule of the first finding in the simulator's summary.
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

/// What a run of cargo printed.
struct Run {
    has_succeeded: bool,
    output: String,
    errors: String,
}

impl Run {
    fn or_error(&self, what: &str) -> Result<(), String> {
        if self.has_succeeded {
            return Ok(());
        }
        Err(format!("{what}:\n{}", self.errors))
    }
}

/// The copy of the sources that the bugs are planted in.
struct Copy {
    root: PathBuf,
    tree: PathBuf,
    build: PathBuf,
    /// The files of the sources, relative to their root.
    files: BTreeSet<PathBuf>,
    /// Held as long as this program runs: two at once would plant two bugs in one copy.
    _lock: File,
}

impl Copy {
    /// Makes the copy equal to the sources.
    fn open(root: PathBuf) -> Result<Self, String> {
        let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        let folder = root.join(target.unwrap_or_else(|| "target".into())).join("mutants");
        let tree = folder.join("tree");
        fs::create_dir_all(&tree).map_err(|error| failed(&tree, &error))?;
        let lock = folder.join("lock");
        let lock = File::create(&lock).map_err(|error| failed(&lock, &error))?;
        lock.try_lock().map_err(|error| {
            format!("{}: {error}; does this program already run?", folder.display())
        })?;
        let files = sources(&root)?;
        let copy = Self { root, tree, build: folder.join("build"), files, _lock: lock };
        copy.refresh()?;
        Ok(copy)
    }

    /// Writes what is different, and removes what is not in the sources. A file that is the same
    /// keeps its time, so that cargo does not compile it again.
    fn refresh(&self) -> Result<(), String> {
        for file in &self.files {
            let (from, to) = (self.root.join(file), self.tree.join(file));
            let content = fs::read(&from).map_err(|error| failed(&from, &error))?;
            if fs::read(&to).is_ok_and(|existing| existing == content) {
                continue;
            }
            let folder = to.parent().unwrap_or(&self.tree);
            fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
            fs::write(&to, content).map_err(|error| failed(&to, &error))?;
        }
        self.remove_surplus()
    }

    /// Removes files that are not in the sources, and empty folders: cargo takes a folder in
    /// `crates/` for a package.
    fn remove_surplus(&self) -> Result<(), String> {
        for file in files_below(&self.tree)?.difference(&self.files) {
            let file = self.tree.join(file);
            fs::remove_file(&file).map_err(|error| failed(&file, &error))?;
        }
        remove_empty_folders(&self.tree)
    }

    /// Plants the bug, calls `check`, and restores the files.
    fn with_bug<T>(
        &self,
        bug: &PlantedBug,
        check: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        bug.check(&self.tree)?;
        let intact = self.contents(bug)?;
        bug.plant(&self.tree)?;
        let result = check();
        for (path, content) in intact {
            // Also renews the file's time, so that cargo notices.
            fs::write(&path, content).map_err(|error| failed(&path, &error))?;
        }
        // A test may have kept what it failed with, for its next run.
        self.remove_surplus()?;
        result
    }

    /// The files that the bug changes.
    fn contents(&self, bug: &PlantedBug) -> Result<Vec<(PathBuf, Vec<u8>)>, String> {
        let paths = bug.files().into_iter().map(|file| self.tree.join(file));
        let read = |path: PathBuf| match fs::read(&path) {
            Ok(content) => Ok((path, content)),
            Err(error) => Err(failed(&path, &error)),
        };
        paths.map(read).collect()
    }

    /// Writes the patch anew: its header, and the changes as they are against the present sources.
    fn renew(&self, bug: &PlantedBug) -> Result<(), String> {
        let intact = self.contents(bug)?;
        bug.plant_loosely(&self.tree).map_err(|error| {
            format!(
                "{} has to be renewed by hand, as in docs/testing.md, \"Planted bugs\":\n{error}",
                bug.patch().display()
            )
        })?;
        let path = self.root.join(bug.patch());
        let patch = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        let mut renewed = planted::split(&patch).0.to_owned();
        for (file, (planted, content)) in bug.files().into_iter().zip(intact) {
            let file = file.display();
            renewed.push_str(&format!("--- a/{file}\n+++ b/{file}\n"));
            renewed.push_str(&changes(&planted, &content)?);
        }
        fs::write(&path, renewed).map_err(|error| failed(&path, &error))?;
        println!("renewed {}; read the difference before you commit it", path.display());
        Ok(())
    }

    fn cargo(&self, arguments: &[&str]) -> Result<Run, String> {
        let output = Command::new("cargo")
            .args(arguments)
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.build)
            // Line tables take time to write, and no one reads the backtraces.
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
            .output()
            .map_err(|error| format!("cargo could not be started: {error}"))?;
        Ok(Run {
            has_succeeded: output.status.success(),
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The changes from `intact` to the content of the file `planted`, as hunks. Restores the file.
fn changes(planted: &Path, intact: &[u8]) -> Result<String, String> {
    let before = planted.with_extension("intact");
    fs::write(&before, intact).map_err(|error| failed(&before, &error))?;
    let output = Command::new("git")
        .args(["diff", "--no-index", "--no-color", "--no-ext-diff", "--unified=3"])
        .args([&before, planted])
        .output()
        .map_err(|error| format!("git could not be started: {error}"))?;
    fs::rename(&before, planted).map_err(|error| failed(planted, &error))?;
    let diff = String::from_utf8_lossy(&output.stdout).into_owned();
    let hunks = diff.find("\n@@ ").and_then(|at| diff.get(at + 1..));
    hunks.map(str::to_owned).ok_or_else(|| {
        let error = String::from_utf8_lossy(&output.stderr);
        format!("the patch changes nothing in {}\n{error}", planted.display())
    })
}

/// The files of the workspace, relative to `root`: what git knows and what it does not ignore, or,
/// without a repository, everything but builds.
fn sources(root: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let listed = Command::new("git")
        .current_dir(root)
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .output();
    if let Ok(listed) = listed {
        let names = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names = names.split_terminator('\0').map(PathBuf::from);
        // A removed file is listed until the removal is committed; a folder is a repository inside.
        let names: BTreeSet<PathBuf> = names.filter(|name| root.join(name).is_file()).collect();
        // Empty if the workspace is in a folder that a repository around it ignores.
        if names.contains(Path::new("Cargo.toml")) {
            return Ok(names);
        }
    }
    files_below(root)
}

/// All files below `folder`, relative to it, without git's own and without builds.
fn files_below(folder: &Path) -> Result<BTreeSet<PathBuf>, String> {
    let (mut found, mut open) = (BTreeSet::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).map_err(|error| failed(&next, &error))? {
            let entry = entry.map_err(|error| failed(&next, &error))?;
            let path = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && !path.ends_with("target") && !path.ends_with(".git") {
                open.push(path);
            } else if !is_folder && let Ok(name) = path.strip_prefix(folder) {
                found.insert(name.to_owned());
            }
        }
    }
    Ok(found)
}

fn remove_empty_folders(folder: &Path) -> Result<(), String> {
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let path = entry.map_err(|error| failed(folder, &error))?.path();
        if path.is_dir() && !path.is_symlink() {
            remove_empty_folders(&path)?;
            match fs::remove_dir(&path) {
                Err(error) if error.kind() != ErrorKind::DirectoryNotEmpty => {
                    return Err(failed(&path, &error));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{}: {error}", path.display())
}
