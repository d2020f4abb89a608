//! The words of the project: plain technical English, one term for each thing (`docs/glossary.md`).
//! What stands here was once in the text and has a better word.

use std::path::PathBuf;

use d_engine_tidy::prose::{Kind, prose};
use d_engine_tidy::{files, read};

/// Words and phrases that are not used in comments, messages and documents, and what to write.
const BANNED: &[(&str, &str)] = &[
    ("loyal", "vote stickiness"),
    ("loyalty", "vote stickiness"),
    ("forswear", "revoke"),
    ("patience", "timeout or deadline"),
    ("brake", "throttle"),
    ("whoever", "the subject's name, for example \"the caller\""),
    ("that which", "what, or the subject's name"),
    ("the own", "its own"),
    ("bearable", "the bound"),
    ("would-be", "the term of the role"),
    ("is told", "receives, or the message's name"),
    ("are told", "receive, or the message's name"),
    ("was told", "received, or the message's name"),
    ("is said", "is reported or logged"),
    ("is looked at", "is checked"),
    ("are looked at", "are checked"),
    ("want of room", "no free space"),
    ("make room", "free space"),
    ("making room", "freeing space"),
    ("handed in", "enqueued"),
    ("hands over leadership", "transfers leadership"),
    ("carries out", "executes"),
    ("carried out", "executed"),
    ("passed over", "skipped"),
    ("stands at", "is halted at"),
];

/// Files whose text is given by others, or that name the words as such.
const EXEMPT: &[&str] = &["crates/tidy/tests/words.rs", "CHANGELOG.md"];

fn documents() -> Vec<PathBuf> {
    let mut documents = files("docs", ".md");
    documents.extend(files("crates", ".proto"));
    let top = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"];
    documents.extend(top.map(PathBuf::from));
    documents
}

fn sources() -> Vec<PathBuf> {
    ["crates", "examples"].iter().flat_map(|folder| files(folder, ".rs")).collect()
}

/// Whether `text`, in small letters, has `phrase` as whole words.
fn has(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(at, _)| {
        let is_edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        is_edge(text.get(..at).and_then(|before| before.chars().next_back()))
            && is_edge(text.get(at + phrase.len()..).and_then(|after| after.chars().next()))
    })
}

#[test]
fn the_text_uses_the_terms_of_the_field() {
    let mut found = Vec::new();
    let mut check = |path: &PathBuf, line: usize, text: &str| {
        let text = text.to_lowercase();
        for (banned, instead) in BANNED {
            if has(&text, banned) {
                found.push(format!("{}:{line}: {banned:?}; write: {instead}", path.display()));
            }
        }
    };
    for path in documents() {
        if !EXEMPT.iter().any(|exempt| path.ends_with(exempt)) {
            read(&path).lines().enumerate().for_each(|(at, line)| check(&path, at + 1, line));
        }
    }
    for path in sources() {
        if !EXEMPT.iter().any(|exempt| path.ends_with(exempt)) {
            prose(&read(&path)).iter().for_each(|words| check(&path, words.line, &words.text));
        }
    }
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

#[test]
fn comments_and_documents_are_a_hundred_columns_wide() {
    const COLUMNS: usize = 100;
    let mut found = Vec::new();
    for path in sources() {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for words in prose(&text).iter().filter(|words| words.kind == Kind::Comment) {
            let line = lines.get(words.line - 1).unwrap_or(&"");
            // A table of rustdoc cannot be wrapped.
            let is_exempt = line.contains("://") || words.text.starts_with('|');
            if line.chars().count() > COLUMNS && !is_exempt && line.trim_start().starts_with("//") {
                found.push(format!("{}:{}", path.display(), words.line));
            }
        }
    }
    for path in documents() {
        let mut is_output = false;
        for (at, line) in read(&path).lines().enumerate() {
            is_output ^= line.trim_start().starts_with("```");
            let is_exempt = is_output || line.starts_with('|') || line.contains("://");
            if line.chars().count() > COLUMNS && !is_exempt {
                found.push(format!("{}:{}", path.display(), at + 1));
            }
        }
    }
    assert!(
        found.is_empty(),
        "{} lines are wider than {COLUMNS} columns:\n{}",
        found.len(),
        found.join("\n")
    );
}
