//! Documents that stay true: what they point at exists.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use d_engine_tidy::{files, read, root};

fn documents() -> Vec<std::path::PathBuf> {
    let mut documents = files("docs", ".md");
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        documents.push(name.into());
    }
    documents
}

/// The text between backticks, code blocks left out.
fn quoted(text: &str) -> Vec<String> {
    let mut in_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_file_that_a_document_names_exists() {
    for document in documents() {
        for name in quoted(&read(&document)) {
            let is_path = ["crates/", "docs/", "examples/", "d-engine/", "benches/", ".ci/", "scripts/"]
                .iter()
                .any(|folder| name.starts_with(folder));
            let path = name.split([':', ' ', '#']).next().unwrap_or("");
            let is_pattern = path.contains(['*', '<', '{']);
            if is_path && !is_pattern {
                assert!(
                    root().join(path).exists(),
                    "{} names {path}, which is not there",
                    document.display()
                );
            }
        }
    }
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let mut functions = BTreeSet::new();
    for folder in ["crates", "d-engine", "examples"] {
        for path in files(folder, ".rs") {
            let text = read(&path);
            for (at, _) in text.match_indices("fn ") {
                let rest = text.get(at + 3..).unwrap_or("");
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                functions.insert(name);
            }
            // Settings have such names too.
            for line in text.lines().filter_map(|line| line.trim_start().strip_prefix("pub ")) {
                functions.extend(line.split_once(':').map(|(name, _)| name.to_owned()));
            }
        }
    }
    for document in ["docs/durability.md", "docs/testing.md"] {
        for name in quoted(&read(document)) {
            // A test is quoted by its bare name: words joined by underscores, four or more.
            let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && name.matches('_').count() >= 3 {
                assert!(functions.contains(&name), "{document} names the test {name}, which is not there");
            }
        }
    }
}

#[test]
fn every_verb_of_the_command_line_that_a_document_uses_exists() {
    let verbs: String = files("crates/cli/src", ".rs").iter().map(read).collect();
    for document in documents() {
        let text = read(&document);
        for line in text.lines().filter(|line| line.trim_start().starts_with("cargo run --release -- ")) {
            let verb = line.trim_start().trim_start_matches("cargo run --release -- ");
            let verb = verb.split_whitespace().next().unwrap_or("");
            let variant: String =
                verb.chars().take(1).flat_map(char::to_uppercase).chain(verb.chars().skip(1)).collect();
            assert!(verbs.contains(&variant), "{} uses `d-engine {verb}`", document.display());
        }
    }
}

#[test]
fn the_readme_gives_the_test_command_that_ci_runs() {
    let command = "cargo test --workspace";
    assert!(read("README.md").contains(command));
    assert!(read(".ci/run").lines().any(|line| line.trim() == command), ".ci/run does not run {command}");
}
