//! Every command of the documents is run, and prints what they show.
//!
//! In a block marked `console`, a line that begins with `$ ` is typed at a shell, and the lines up
//! to the next one are what it prints; `...` stands for anything. A command exits with 0, or with N
//! if its comment is `# exit N`. The blocks of a document share one cluster: `d-engine dev` runs on
//! free ports here, and of `d-engine serve` only the config is checked.
#![allow(clippy::unwrap_used)]

#[path = "support/shown.rs"]
mod shown;
mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use shown::{is_as_said, typed};
use support::{Dev, Process};

struct Document {
    name: String,
    text: String,
}

impl Document {
    fn all() -> Vec<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let guides = fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path());
        let paths =
            guides.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
        let read = |path: std::path::PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            Self { name, text: fs::read_to_string(path).unwrap() }
        };
        paths.chain([root.join("README.md")]).map(read).collect()
    }

    /// Returns the blocks that are marked with this word.
    fn blocks(&self, mark: &str) -> Vec<&str> {
        let opening = format!("```{mark}\n");
        let behind = self.text.split(&opening).skip(1);
        behind.map(|rest| rest.split_once("```").unwrap_or((rest, "")).0).collect()
    }
}

/// Types a command at a shell that finds this `d-engine`.
fn at_a_shell(command: &str, dir: &Path, endpoints: &str) -> support::Finished {
    let binary = Path::new(env!("CARGO_BIN_EXE_d-engine"));
    let path = std::env::var("PATH").unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", command])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", binary.parent().unwrap().display()))
        .env("D_ENGINE_ENDPOINTS", endpoints)
        .stdin(Stdio::null());
    Process::start(&mut shell).finish()
}

#[test]
fn every_command_of_the_documents_answers_as_they_say() {
    let mut commands = 0;
    for document in Document::all() {
        let blocks = document.blocks("console");
        if blocks.is_empty() {
            continue;
        }
        let (dev, dir) = (Dev::start(), tempfile::tempdir().unwrap());
        for one in blocks.into_iter().flat_map(typed) {
            commands += 1;
            let at = format!("{}: $ {}", document.name, one.command);
            if one.command == "d-engine dev" {
                continue;
            }
            if let Some(config) = one.command.strip_prefix("d-engine serve --config ") {
                let config = dir.path().join(config);
                fs::write(&config, document.blocks("toml").last().unwrap()).unwrap();
                d_engine_server::Config::from_file(&config)
                    .unwrap_or_else(|error| panic!("{at}: {error}"));
                continue;
            }
            let ended = at_a_shell(one.command, dir.path(), &dev.endpoints);
            // At a terminal a value is followed by a line break.
            let break_between =
                if ended.out.is_empty() || ended.out.ends_with('\n') { "" } else { "\n" };
            let printed = format!("{}{break_between}{}", ended.out, ended.err);
            assert_eq!(ended.code, Some(one.exit), "{at}\n{printed}");
            let lines: Vec<&str> = printed.lines().collect();
            // A last line of dots alone stands for all further lines.
            let (printed_first, goes_on) = match one.printed.split_last() {
                Some((&"...", first)) => (first, true),
                _ => (one.printed.as_slice(), false),
            };
            let as_said = (lines.len() == printed_first.len()
                || goes_on && lines.len() > printed_first.len())
                && printed_first.iter().zip(&lines).all(|(said, line)| is_as_said(said, line));
            assert!(
                as_said,
                "{at}\nthe document shows\n{}\nbut the command prints\n{printed}",
                one.printed.join("\n")
            );
        }
    }
    assert!(commands >= 15, "only {commands} commands were found");
}

/// The commands that are typed before there is a `d-engine` are run by CI.
#[test]
fn every_cargo_command_of_the_readme_is_run_by_ci() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let ci = fs::read_to_string(root.join(".ci/run")).unwrap();
    for document in Document::all() {
        for line in document.blocks("sh").into_iter().flat_map(str::lines) {
            let is_run = ci.lines().any(|step| step.trim() == line.trim());
            assert!(
                is_run || line.starts_with("export PATH="),
                "{}: CI does not run `{line}`",
                document.name
            );
        }
    }
}

#[test]
fn what_is_said_is_compared_line_by_line() {
    assert!(
        is_as_said("a ... b", "a 12 b")
            && is_as_said("1 ...", "1 x y")
            && is_as_said("same", "same")
    );
    assert!(
        !is_as_said("a ... b", "a 12 c")
            && !is_as_said("same", "same too")
            && !is_as_said("...x", "y")
    );
}
