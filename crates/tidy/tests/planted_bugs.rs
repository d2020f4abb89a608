//! The planted bugs (`crates/sim/mutants/`) fit the sources and the documents. That the tests find
//! them is shown by `d-engine-sim`'s program `mutants`, which takes long.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use d_engine_tidy::planted::{self, Check, PlantedBug, split};
use d_engine_tidy::{files, read, root};

const PROMISES: &str = "docs/durability.md";
const DOCUMENTS: &[&str] = &[PROMISES, "docs/testing.md"];

fn bugs() -> Vec<PlantedBug> {
    planted::all(&root()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn every_patch_applies_to_the_sources_without_fuzz_and_in_one_place_only() {
    let bugs = bugs();
    let outdated: Vec<String> = bugs.iter().filter_map(|bug| bug.check(&root()).err()).collect();
    assert!(
        outdated.is_empty(),
        "{} of {} planted bugs do not apply any more:\n\n{}\n",
        outdated.len(),
        bugs.len(),
        outdated.join("\n\n")
    );
}

#[test]
fn every_bug_is_planted_in_the_sources_of_a_crate_and_not_in_its_tests() {
    for bug in bugs() {
        for file in bug.files() {
            let parts: Vec<_> = file.iter().map(|part| part.to_string_lossy()).collect();
            let is_source = parts.first().is_some_and(|part| part == "crates")
                && parts.get(2).is_some_and(|part| part == "src")
                && !parts.iter().any(|part| part.contains("tests"));
            assert!(is_source, "{} changes {}", bug.patch().display(), file.display());
        }
    }
}

#[test]
fn the_sources_show_no_trace_of_a_planted_bug() {
    for path in files("crates", ".rs") {
        // This file has to name what it forbids.
        if !path.ends_with("tests/planted_bugs.rs") {
            let text = read(&path);
            assert!(!text.contains("mutant ="), "{}: make it a patch", path.display());
        }
    }
}

/// The rows of the promises: the text of the first column, and the whole row.
fn promises() -> BTreeMap<String, String> {
    let text = read(PROMISES);
    let rows = text.lines().filter(|row| row.starts_with("| "));
    rows.filter_map(|row| Some((row.split('|').nth(1)?.trim().to_owned(), row.to_owned())))
        .collect()
}

#[test]
fn every_bug_names_the_promise_that_it_breaks_and_the_promise_names_the_bug() {
    let promises = promises();
    let mut wrong = Vec::new();
    for bug in bugs() {
        let of_the_row = promises.get(&bug.row).map(|row| mentions(row));
        let is_mentioned = of_the_row.as_ref().is_some_and(|names| names.contains(&bug.name));
        if !is_mentioned {
            let what = of_the_row.map_or("is not in", |_| "does not mention the planted bug in");
            let begins = promises.iter().filter(|(_, row)| mentions(row).contains(&bug.name));
            let begins: Vec<&String> = begins.map(|(first, _)| first).collect();
            let patch = bug.patch();
            wrong.push(format!(
                "{}: the row {:?} {what} {PROMISES}; rows that mention it: {begins:?}",
                patch.display(),
                bug.row
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_planted_bug_that_a_document_mentions_exists() {
    let known: BTreeSet<String> = bugs().into_iter().map(|bug| bug.name).collect();
    for document in DOCUMENTS {
        let mentioned = mentions(&read(document));
        assert!(mentioned.len() > 20, "{document} mentions only {mentioned:?}");
        let unknown: Vec<&String> = mentioned.difference(&known).collect();
        assert!(
            unknown.is_empty(),
            "{document} mentions planted bugs without a patch: {unknown:?}"
        );
    }
}

/// The names in `planted bug `one``, `planted bugs `one`, `two`` and `planted `one``, and after the
/// command that plants them.
fn mentions(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for after in text.split("planted ").skip(1) {
        let after = after.strip_prefix("bugs ").or(after.strip_prefix("bug ")).unwrap_or(after);
        let mut rest = after;
        while let Some((name, after)) = rest.strip_prefix('`').and_then(|r| r.split_once('`')) {
            found.insert(name.to_owned());
            rest = after.strip_prefix(", ").unwrap_or("");
        }
    }
    for command in text.split(planted::PROGRAM).skip(1) {
        let words = command.lines().next().unwrap_or("").split('`').next().unwrap_or("");
        let words = words.split('#').next().unwrap_or("").split_whitespace();
        // Neither an option nor a placeholder.
        let names = words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase()));
        found.extend(names.map(str::to_owned));
    }
    found
}

#[test]
fn every_test_that_must_find_a_bug_exists() {
    for bug in bugs() {
        let Check::Tests { package, name } = &bug.found_by else { continue };
        let folder = format!("crates/{}", package.trim_start_matches("d-engine-"));
        let sources = files(&folder, ".rs");
        assert!(!sources.is_empty(), "{}: no package {package}", bug.patch().display());
        let is_there = sources.iter().any(|path| read(path).contains(&format!("fn {name}")));
        assert!(is_there, "{}: {package} has no test {name}", bug.patch().display());
    }
}

const SOURCE: &str = "fn one() {}\nfn two() {}\nfn three() {\n    rule();\n}\n\nfn four() {}\n";
const PATCH: &str = "Bug: no rule\nFound by: d-engine-core a_rule\nRow: a rule\n\nA note.\n\n\
                     --- a/src/lib.rs\n+++ b/src/lib.rs\n@@ -2,5 +2,4 @@ fn one() {}\n \
                     fn two() {}\n fn three() {\n-    rule();\n }\n\n fn four() {}\n";

/// A folder with `SOURCE` changed by `change`, and with `PATCH`.
fn tree(name: &str, change: impl Fn(&str) -> String) -> std::path::PathBuf {
    let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    for (path, text) in
        [("src/lib.rs", change(SOURCE)), ("crates/sim/mutants/no-rule.patch", PATCH.to_owned())]
    {
        let path = tree.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    tree
}

#[test]
fn a_patch_is_read_and_planted_where_its_context_has_moved_to() {
    let tree = tree("moved", |source| format!("// A line.\n{source}"));
    let bugs = planted::all(&tree).unwrap();
    let bug = &bugs[0];
    assert_eq!(
        (bug.name.as_str(), bug.bug.as_str(), bug.row.as_str()),
        ("no-rule", "no rule", "a rule")
    );
    assert_eq!(bug.found_by.to_string(), "d-engine-core a_rule");
    assert_eq!(bug.files(), [Path::new("src/lib.rs")]);
    assert!(split(PATCH).0.ends_with("A note.\n\n"));
    bug.check(&tree).unwrap();
    bug.plant(&tree).unwrap();
    let planted = fs::read_to_string(tree.join("src/lib.rs")).unwrap();
    assert_eq!(planted, format!("// A line.\n{SOURCE}").replace("    rule();\n", ""));
}

#[test]
fn a_patch_whose_context_has_changed_is_reported_with_the_file_and_the_way_to_renew_it() {
    let tree = tree("changed", |source| source.replace("two", "zwei"));
    let bug = planted::all(&tree).unwrap().remove(0);
    let error = bug.check(&tree).unwrap_err();
    for part in ["crates/sim/mutants/no-rule.patch", "src/lib.rs", "--renew no-rule", "fn two()"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(bug.plant(&tree).is_err());
    bug.plant_loosely(&tree).unwrap();
    assert!(!fs::read_to_string(tree.join("src/lib.rs")).unwrap().contains("rule()"));
}

#[test]
fn a_patch_that_fits_two_places_is_refused() {
    let tree = tree("twice", |source| format!("{source}{source}"));
    let error = planted::all(&tree).unwrap()[0].check(&tree).unwrap_err();
    assert!(error.contains("2 times"), "{error}");
}

#[test]
fn a_patch_without_a_complete_header_is_refused() {
    for label in ["Bug:", "Found by:", "Row:"] {
        let error = PlantedBug::parse("no-rule", &PATCH.replace(label, "Note:")).unwrap_err();
        assert!(error.contains("no-rule.patch") && error.contains(label), "{error}");
    }
    let error = PlantedBug::parse("no-rule", split(PATCH).0).unwrap_err();
    assert!(error.contains("changes nothing"), "{error}");
}
