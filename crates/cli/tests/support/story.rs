//! A page of the documentation, run as it is written.
//!
//! A block marked `toml` begins with the name of its file. In a block marked `text`, a line that
//! begins with `$ ` is typed, and the lines up to the next one are what it prints. `d-engine serve`
//! runs on until the test ends. Each address stands for a free one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::shown::{is_as_said, typed};
use crate::support::{Process, d_engine, free_address, serve};

/// The page, its files, and the nodes that run.
pub(crate) struct Story {
    pub(crate) dir: tempfile::TempDir,
    /// The free address for each one of the page.
    addresses: BTreeMap<String, String>,
    pub(crate) nodes: BTreeMap<String, Process>,
}

impl Story {
    /// Writes the files of a page and types its commands; `least` is how many it has.
    pub(crate) fn of(page: &str, least: usize) -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let page = fs::read_to_string(root.join(page)).unwrap();
        let mut story = Self {
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
        assert!(commands >= least, "only {commands} commands were found");
        story
    }

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
        if !command.starts_with("d-engine ") {
            let ended = std::process::Command::new("sh")
                .args(["-c", &command])
                .current_dir(self.dir.path())
                .status()
                .unwrap();
            assert_eq!(ended.code(), Some(exit), "$ {command}");
            return;
        }
        let endpoints = self.here("127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003");
        let words = command.split_whitespace().skip(1).take_while(|word| *word != "#");
        let mut typed = d_engine();
        typed.args(words).env("D_ENGINE_ENDPOINTS", endpoints).current_dir(self.dir.path());
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
