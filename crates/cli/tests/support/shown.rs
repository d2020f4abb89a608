//! What a document shows: commands and what they print.

/// A command with what it prints and its exit code.
pub(crate) struct Typed<'a> {
    pub(crate) command: &'a str,
    pub(crate) printed: Vec<&'a str>,
    pub(crate) exit: i32,
}

pub(crate) fn typed(block: &str) -> Vec<Typed<'_>> {
    let mut all: Vec<Typed<'_>> = Vec::new();
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            let exit =
                command.rsplit_once("# exit ").map_or(0, |(_, exit)| exit.trim().parse().unwrap());
            all.push(Typed { command, printed: Vec::new(), exit });
        } else {
            all.last_mut().expect("a block begins with a command").printed.push(line);
        }
    }
    all
}

/// Returns whether a line is as the document shows it; `...` stands for anything.
pub(crate) fn is_as_said(said: &str, line: &str) -> bool {
    let mut parts = said.split("...");
    let Some(mut rest) = line.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut ends_open = false;
    for part in parts {
        ends_open = part.is_empty();
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.is_empty() || ends_open
}
