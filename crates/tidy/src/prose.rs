//! The texts of a source file: its comments and its string literals, by line.

/// The kind of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A line comment or a doc comment.
    Comment,
    /// A string literal.
    Text,
}

/// A text of a source file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Words {
    /// The line on which it begins, from 1.
    pub line: usize,
    /// Comment or string literal.
    pub kind: Kind,
    /// The text, without its delimiters.
    pub text: String,
}

/// Returns the comments and string literals of a Rust file. Block comments do not occur in this
/// project.
#[must_use]
pub fn prose(source: &str) -> Vec<Words> {
    let mut found = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(next) = rest.chars().next() {
        let at = line;
        let (kind, text, length) = if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            let text = rest.get(..end).unwrap_or("").trim_start_matches(['/', '!']).trim();
            (Some(Kind::Comment), text, end)
        } else if let Some((open, close)) = raw_string(rest) {
            let body = rest.get(open..).unwrap_or("");
            let end = body.find(&close).unwrap_or(body.len());
            (Some(Kind::Text), body.get(..end).unwrap_or(""), open + end + close.len())
        } else if next == '"' {
            let body = rest.get(1..).unwrap_or("");
            let end = end_of_string(body);
            (Some(Kind::Text), body.get(..end).unwrap_or(""), end + 2)
        } else {
            (None, "", character(rest))
        };
        if let Some(kind) = kind {
            found.push(Words { line: at, kind, text: text.to_owned() });
        }
        let length = length.min(rest.len());
        let (taken, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        line += taken.matches('\n').count();
        rest = after;
    }
    found
}

/// Returns the lengths of what opens a raw string and of what closes it.
fn raw_string(rest: &str) -> Option<(usize, String)> {
    let marks = rest.strip_prefix('r').or_else(|| rest.strip_prefix("br"))?;
    let hashes = marks.len() - marks.trim_start_matches('#').len();
    if !marks.get(hashes..)?.starts_with('"') {
        return None;
    }
    let open = rest.len() - marks.len() + hashes + 1;
    Some((open, format!("\"{}", "#".repeat(hashes))))
}

fn end_of_string(body: &str) -> usize {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at,
            _ => {}
        }
    }
    body.len()
}

/// Returns the length of one character of code, of a whole character literal, which may hold a
/// quote, or of a name, so that the `r` at its end does not look like a raw string.
fn character(rest: &str) -> usize {
    for literal in ["'\"'", "'\\\"'", "'\\''", "b'\"'"] {
        if rest.starts_with(literal) {
            return literal.len();
        }
    }
    let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    name.max(rest.chars().next().map_or(1, char::len_utf8))
}

#[cfg(test)]
mod tests {
    use super::{Kind, prose};

    #[test]
    fn comments_and_strings_are_found_and_code_is_not() {
        let source = "/// A doc.\nlet r = \"one \\\" two\"; // why\nlet x = r#\"raw \"quoted\"\"#;\nfor_x('\"', \"s\");\n";
        let found: Vec<_> =
            prose(source).into_iter().map(|words| (words.line, words.kind, words.text)).collect();
        let expected = [
            (1, Kind::Comment, "A doc."),
            (2, Kind::Text, "one \\\" two"),
            (2, Kind::Comment, "why"),
            (3, Kind::Text, "raw \"quoted\""),
            (4, Kind::Text, "s"),
        ];
        let expected: Vec<_> =
            expected.into_iter().map(|(line, kind, text)| (line, kind, text.to_owned())).collect();
        assert_eq!(found, expected);
    }
}
