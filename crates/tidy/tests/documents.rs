//! Documents stay true: the files, tests and identifiers that they name exist.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use d_engine_tidy::{files, read, root};

fn documents() -> Vec<std::path::PathBuf> {
    let mut documents = files("docs", ".md");
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"] {
        documents.push(name.into());
    }
    documents
}

/// Returns the texts between backticks, without code blocks.
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
            let is_path = ["crates/", "docs/", "examples/", "benches/", ".ci/", "scripts/"]
                .iter()
                .any(|folder| name.starts_with(folder));
            let path = name.split([':', ' ', '#']).next().unwrap_or("");
            let is_pattern = path.contains(['*', '<', '{']);
            if is_path && !is_pattern {
                assert!(
                    root().join(path).exists(),
                    "{} names {path}, which does not exist",
                    document.display()
                );
            }
        }
    }
}

#[test]
fn every_test_that_the_promises_name_exists() {
    let mut functions = BTreeSet::new();
    for folder in ["crates", "examples"] {
        for path in files(folder, ".rs") {
            let text = read(&path);
            for (at, _) in text.match_indices("fn ") {
                let rest = text.get(at + 3..).unwrap_or("");
                let name: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
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
            // Tests are named without their path: words joined by underscores, four or more.
            let is_name =
                name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
            if is_name && name.matches('_').count() >= 3 {
                assert!(
                    functions.contains(&name),
                    "{document} names the test {name}, which does not exist"
                );
            }
        }
    }
}

/// The promise table names files and, in them, the functions, fields or constants that keep the
/// promise. An identifier that was moved or renamed is a dead reference.
#[test]
fn every_identifier_in_the_line_column_of_the_promises_is_in_the_file_named_before_it() {
    let document = "docs/durability.md";
    let (mut checked, mut dead) = (0, Vec::new());
    for row in read(document).lines().filter(|row| row.starts_with('|')) {
        let Some(column) = row.split('|').nth(2) else { continue };
        let mut text = String::new();
        for name in quoted(column) {
            if name.starts_with("crates/") {
                let path = root().join(&name);
                let paths =
                    if path.is_dir() { files(&name, ".rs") } else { vec![name.clone().into()] };
                text = paths.iter().map(read).collect();
            } else if !text.is_empty() {
                let last = name.rsplit([':', '.']).next().unwrap_or(&name);
                let is_identifier = last.chars().all(|c| c.is_alphanumeric() || c == '_');
                let is_there =
                    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == last);
                if is_identifier && !is_there {
                    dead.push(format!("`{name}` in {column}"));
                }
                checked += 1;
            }
        }
    }
    assert!(
        dead.is_empty(),
        "{document} names identifiers that the file before them does not contain:\n{}",
        dead.join("\n")
    );
    assert!(checked > 100, "only {checked} identifiers were found");
}

#[test]
fn every_verb_of_the_command_line_that_a_document_uses_exists() {
    let verbs: String = files("crates/cli/src", ".rs").iter().map(read).collect();
    for document in documents() {
        let text = read(&document);
        for line in
            text.lines().filter(|line| line.trim_start().starts_with("cargo run --release -- "))
        {
            let verb = line.trim_start().trim_start_matches("cargo run --release -- ");
            let verb = verb.split_whitespace().next().unwrap_or("");
            let variant: String = verb
                .chars()
                .take(1)
                .flat_map(char::to_uppercase)
                .chain(verb.chars().skip(1))
                .collect();
            assert!(verbs.contains(&variant), "{} uses `d-engine {verb}`", document.display());
        }
    }
}

#[test]
fn the_readme_gives_the_test_command_that_ci_runs() {
    let command = "cargo test --workspace";
    assert!(read("README.md").contains(command));
    assert!(
        read(".ci/run").lines().any(|line| line.trim() == command),
        ".ci/run does not run {command}"
    );
}

/// The README counts what other documents and folders hold.
#[test]
fn the_readmes_numbers_are_what_there_is_to_count() {
    let readme = read("README.md");
    let has_line = |row: &&str| {
        let columns: Vec<&str> = row.split('|').collect();
        row.starts_with('|') && columns.len() == 5 && columns[2].contains('`')
    };
    let promises = read("docs/durability.md").lines().filter(has_line).count();
    let is_foreign_bug = |row: &&str| {
        let number = row.strip_prefix("| ").and_then(|row| row.split_once(" | "));
        number.is_some_and(|(number, bug)| {
            number.parse::<u32>().is_ok() && bug.starts_with(|c: char| c.is_alphabetic())
        })
    };
    let foreign = read("docs/testing.md").lines().filter(is_foreign_bug).count();
    let planted = files("crates/sim/mutants", ".patch").len();
    for claim in [
        format!("{promises} rows in [docs/durability.md]"),
        format!("{planted} planted bugs"),
        format!("{foreign} bugs of other engines"),
    ] {
        assert!(readme.contains(&claim), "README.md does not say {claim:?}");
    }
}
