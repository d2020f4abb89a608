//! The pages of `docs/members.md`, run as they are written, and the exit code of a removed node.
//!
//! A block marked `toml` begins with the name of its file. In a block marked `text`, a line that
//! begins with `$ ` is typed, and the lines up to the next one are what it prints. `d-engine serve`
//! runs on until the test ends. Each address stands for a free one.
#![allow(clippy::unwrap_used)]

#[path = "support/shown.rs"]
mod shown;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use shown::{is_as_said, typed};
use support::{Process, d_engine, free_address, run, serve};

/// The page, its files, and the nodes that run.
struct Story {
    dir: tempfile::TempDir,
    /// The free address for each one of the page.
    addresses: BTreeMap<String, String>,
    nodes: BTreeMap<String, Process>,
}

impl Story {
    /// The text with free addresses.
    fn here(&mut self, text: &str) -> String {
        let mut parts = text.split("127.0.0.1:");
        let mut here = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (port, rest) = part.split_at(4);
            here.push_str(self.addresses.entry(port.to_owned()).or_insert_with(free_address));
            here.push_str(rest);
        }
        here
    }

    fn write(&mut self, block: &str) {
        let name = block.lines().next().unwrap().trim_start_matches("# ").to_owned();
        let text = self.here(block);
        fs::write(self.dir.path().join(name), text).unwrap();
    }

    /// Types a command of the page.
    fn run(&mut self, command: &str, printed: &[&str], exit: i32) {
        let printed: Vec<String> = printed.iter().map(|line| self.here(line)).collect();
        if let Some(config) = command.strip_prefix("d-engine serve --config ") {
            let mut node = serve(&self.dir.path().join(config));
            let mut lines = node.lines();
            for line in &printed {
                lines.wait_for(line);
            }
            self.nodes.insert(config.to_owned(), node);
            return;
        }
        if let Some(config) = command.strip_prefix("pkill -9 -f ") {
            self.nodes.remove(config).unwrap().kill();
            return;
        }
        let command = self.here(command);
        let endpoints = self.here("127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003");
        let words = command.split_whitespace().skip(1).take_while(|word| *word != "#");
        let mut typed = d_engine();
        typed.args(words).env("D_ENGINE_ENDPOINTS", endpoints);
        let ended = Process::start(&mut typed).finish();
        assert_eq!(ended.code, Some(exit), "$ {command}\n{}{}", ended.out, ended.err);
        let lines: Vec<&str> = ended.out.lines().collect();
        let mut both = printed.iter().zip(&lines);
        assert!(
            printed.len() == lines.len() && both.all(|(said, line)| is_as_said(said, line)),
            "$ {command}\nthe page shows\n{}\nbut the command prints\n{}{}",
            printed.join("\n"),
            ended.out,
            ended.err
        );
    }
}

#[test]
fn growing_replacing_and_moving_work_as_the_page_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let page = fs::read_to_string(root.join("docs/members.md")).unwrap();
    let mut story = Story {
        dir: tempfile::tempdir().unwrap(),
        addresses: BTreeMap::new(),
        nodes: BTreeMap::new(),
    };
    let mut commands = 0;
    for block in page.split("```").skip(1).step_by(2) {
        if let Some(file) = block.strip_prefix("toml\n") {
            story.write(file);
        } else if let Some(session) = block.strip_prefix("text\n") {
            for one in typed(session) {
                commands += 1;
                story.run(one.command, &one.printed, one.exit);
            }
        }
    }
    assert!(commands >= 10, "only {commands} commands were found");

    // Node 1 was replaced: its process ends by itself, and does not start again.
    let removed = story.nodes.remove("node-1.toml").unwrap();
    assert_eq!(removed.finish().code, Some(6));
    let again = run(&["serve", "--config", story.dir.path().join("node-1.toml").to_str().unwrap()]);
    assert_eq!(again.code, Some(6), "{}", again.err);
    assert!(again.err.contains("belonged to node 1"), "{}", again.err);
}
