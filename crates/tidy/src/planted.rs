//! The planted bugs: known bugs that the tests must find. Each is a patch in `crates/sim/mutants/`,
//! with a header in front of the diff that says what it breaks and what finds it.
//! `docs/testing.md` says how to add and how to renew one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where the patches are, relative to the root of the workspace.
pub const FOLDER: &str = "crates/sim/mutants";

/// The command that runs the planted bugs.
pub const PROGRAM: &str = "cargo run --release -p d-engine-sim --bin mutants --";

/// A known bug, read from its patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PlantedBug {
    /// The name of the patch without `.patch`.
    pub name: String,
    /// What it breaks, in one sentence.
    pub bug: String,
    /// The check that must fail.
    pub found_by: Check,
    /// The row of `docs/durability.md` whose promise it breaks: the text of its first column.
    pub row: String,
    /// The changes, in the order of the patch.
    pub hunks: Vec<Hunk>,
}

/// What finds a planted bug.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// One of the simulator's first seeds.
    Seeds,
    /// One of the simulator's first seeds, with members that change in every run.
    Members,
    /// The tests of a package whose names contain a text; all of its tests if the text is empty.
    Tests {
        /// The name of the package.
        package: String,
        /// The text.
        name: String,
    },
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Seeds => f.write_str("seeds"),
            Self::Members => f.write_str("members"),
            Self::Tests { package, name } => f.write_str(format!("{package} {name}").trim_end()),
        }
    }
}

/// One change of a patch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hunk {
    /// The file that it changes, relative to the root of the workspace.
    pub file: PathBuf,
    /// The lines that it expects there, context included.
    pub before: String,
}

/// Reads the planted bugs of the workspace at `tree`, sorted by name.
///
/// # Errors
/// A patch that cannot be read, or whose header is not complete.
pub fn all(tree: &Path) -> Result<Vec<PlantedBug>, String> {
    let folder = tree.join(FOLDER);
    let failed =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut bugs = Vec::new();
    for entry in fs::read_dir(&folder).map_err(|error| failed(&folder, &error))? {
        let path = entry.map_err(|error| failed(&folder, &error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(name) = name.as_deref().and_then(|name| name.strip_suffix(".patch")) else {
            return Err(failed(&path, &"only files named NAME.patch belong here"));
        };
        let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
        bugs.push(PlantedBug::parse(name, &text)?);
    }
    bugs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bugs)
}

impl PlantedBug {
    /// Reads a patch.
    ///
    /// # Errors
    /// What is missing in its header or in its diff.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let (header, diff) = split(text);
        let field = |label: &str| {
            let value = header.lines().find_map(|line| line.strip_prefix(label)).map(str::trim);
            value.filter(|value| !value.is_empty()).ok_or_else(|| {
                format!("{FOLDER}/{name}.patch has no line `{label} ...` before its diff")
            })
        };
        let found_by = field("Found by:")?;
        let (package, test) = found_by.split_once(' ').unwrap_or((found_by, ""));
        let found_by = match found_by {
            "seeds" => Check::Seeds,
            "members" => Check::Members,
            _ => Check::Tests { package: package.to_owned(), name: test.to_owned() },
        };
        let hunks = hunks(diff);
        if hunks.is_empty() {
            return Err(format!("{FOLDER}/{name}.patch changes nothing"));
        }
        Ok(Self {
            name: name.to_owned(),
            bug: field("Bug:")?.to_owned(),
            found_by,
            row: field("Row:")?.to_owned(),
            hunks,
        })
    }

    /// The patch, relative to the root of the workspace.
    #[must_use]
    pub fn patch(&self) -> PathBuf {
        Path::new(FOLDER).join(format!("{}.patch", self.name))
    }

    /// The files that the patch changes, each once.
    #[must_use]
    pub fn files(&self) -> Vec<&Path> {
        let mut files: Vec<&Path> = self.hunks.iter().map(|hunk| hunk.file.as_path()).collect();
        files.dedup();
        files
    }

    /// Checks that the patch applies to the workspace at `tree` without fuzz, and that each of its
    /// changes has one possible place: git moves a change to wherever its context is.
    ///
    /// # Errors
    /// What does not apply, and how to renew the patch.
    pub fn check(&self, tree: &Path) -> Result<(), String> {
        for Hunk { file, before } in &self.hunks {
            let path = tree.join(file);
            let text =
                fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
            let places = text.map(|text| text.matches(before.as_str()).count());
            let what = match places {
                Ok(1) => continue,
                Ok(0) => format!("these lines are not in the file any more:\n{before}"),
                Ok(places) => format!("these lines are in the file {places} times:\n{before}"),
                Err(error) => error,
            };
            return Err(self.outdated(file, &what));
        }
        let file = self.files().first().copied().unwrap_or(Path::new(""));
        self.git_apply(tree, &["--check"]).map_err(|error| self.outdated(file, &error))
    }

    fn outdated(&self, file: &Path, what: &str) -> String {
        format!(
            "{} does not apply to {}: {what}\n  Renew it: `{PROGRAM} --renew {}`, or by hand as in \
             docs/testing.md, \"Planted bugs\".",
            self.patch().display(),
            file.display(),
            self.name
        )
    }

    /// Plants the bug in the workspace at `tree`.
    ///
    /// # Errors
    /// The patch does not apply; nothing is changed.
    pub fn plant(&self, tree: &Path) -> Result<(), String> {
        self.git_apply(tree, &[]).map_err(|error| format!("{}: {error}", self.patch().display()))
    }

    /// Plants the bug even if all but one line of context around each change is different.
    ///
    /// # Errors
    /// The patch does not apply; nothing is changed.
    pub fn plant_loosely(&self, tree: &Path) -> Result<(), String> {
        self.git_apply(tree, &["-C1"])
    }

    fn git_apply(&self, tree: &Path, options: &[&str]) -> Result<(), String> {
        let output = Command::new("git")
            .current_dir(tree)
            // Without a repository. In a folder of one, for example below `target/`, git would take
            // the paths from the repository's root, and pass over a patch without an error.
            .env("GIT_DIR", tree.join("no-repository"))
            .env_remove("GIT_WORK_TREE")
            .env_remove("GIT_INDEX_FILE")
            .args(["-c", "apply.ignoreWhitespace=no", "-c", "apply.whitespace=nowarn"])
            .arg("apply")
            .args(options)
            .arg(self.patch())
            .output()
            .map_err(|error| format!("git could not be started: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Divides a patch into its header and its diff.
#[must_use]
pub fn split(patch: &str) -> (&str, &str) {
    let mut at = 0;
    for line in patch.split_inclusive('\n') {
        if line.starts_with("diff --git ") || line.starts_with("--- a/") {
            break;
        }
        at += line.len();
    }
    patch.split_at_checked(at).unwrap_or((patch, ""))
}

fn hunks(diff: &str) -> Vec<Hunk> {
    let mut hunks: Vec<Hunk> = Vec::new();
    let mut file = PathBuf::new();
    let mut is_inside = false;
    for line in diff.lines() {
        if let Some(path) = line.strip_prefix("--- a/") {
            (file, is_inside) = (path.trim_end().into(), false);
        } else if line.starts_with("diff --git ") {
            is_inside = false;
        } else if line.starts_with("@@ ") {
            is_inside = true;
            hunks.push(Hunk { file: file.clone(), before: String::new() });
        } else if let Some(hunk) = hunks.last_mut().filter(|_| is_inside) {
            // An editor may have removed the space of an empty line of context.
            let before = line.strip_prefix([' ', '-']).or_else(|| line.is_empty().then_some(""));
            hunk.before.extend(before.into_iter().flat_map(|line| [line, "\n"]));
        }
    }
    hunks
}
