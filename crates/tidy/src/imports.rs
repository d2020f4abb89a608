//! Which module imports which, from the text of the sources: `use` items and paths that begin with
//! `crate` or `super`. A re-exported name counts as an import of the module that defines it.

use std::collections::{BTreeMap, BTreeSet};

use crate::{files, read};

/// A module: its path within its crate.
pub type Module = Vec<String>;

/// The modules of a crate and what they import from each other, without test modules.
#[derive(Debug, Default)]
pub struct Imports {
    texts: BTreeMap<Module, String>,
    /// What a module re-exports, or defines under `pub`: from the name to the path that it stands
    /// for.
    exports: BTreeMap<Module, BTreeMap<String, Module>>,
    edges: BTreeMap<Module, BTreeSet<Module>>,
}

impl Imports {
    /// Reads the sources below `folder`, for example `crates/core/src`.
    #[must_use]
    pub fn of(folder: &str) -> Self {
        let mut imports = Self::default();
        for path in files(folder, ".rs") {
            let inside = path.strip_prefix(folder).unwrap_or(&path).with_extension("");
            let mut module: Module =
                inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.iter().any(|part| part.contains("tests") || part == "bin") {
                continue;
            }
            if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
                module.pop();
            }
            imports.texts.insert(module, code(&read(&path)));
        }
        for (module, text) in &imports.texts {
            let mut exported = BTreeMap::new();
            for (path, name, is_public) in uses(text) {
                if is_public {
                    exported.insert(name, absolute(module, &path, &imports.texts));
                }
            }
            imports.exports.insert(module.clone(), exported);
        }
        let modules: Vec<Module> = imports.texts.keys().cloned().collect();
        for module in modules {
            let edges = imports.imported_by(&module);
            imports.edges.insert(module, edges);
        }
        imports
    }

    fn imported_by(&self, module: &Module) -> BTreeSet<Module> {
        let text = self.texts.get(module).map_or("", String::as_str);
        let named = uses(text).into_iter().filter(|(_, _, is_public)| !is_public);
        let mut paths: Vec<Module> = named.map(|(path, _, _)| path).collect();
        paths.extend(inline_paths(text));
        let owners = paths.iter().map(|path| self.owner(absolute(module, path, &self.texts), 0));
        owners.flatten().filter(|owner| owner != module).collect()
    }

    /// Returns the module that defines what `path` names; re-exports are followed.
    fn owner(&self, path: Module, depth: usize) -> Option<Module> {
        let mut owner = path.clone();
        while !self.texts.contains_key(&owner) {
            owner.pop()?;
        }
        let name = path.get(owner.len());
        let exported =
            name.and_then(|name| self.exports.get(&owner).and_then(|names| names.get(name)));
        match exported {
            Some(behind) if depth < 8 && *behind != path => {
                let mut behind = behind.clone();
                behind.extend(path.iter().skip(owner.len() + 1).cloned());
                self.owner(behind, depth + 1)
            }
            // An import of a module that only gathers others does not count.
            _ if path.is_empty() => None,
            _ => Some(owner),
        }
    }

    /// Returns the groups of modules that import each other in a circle.
    #[must_use]
    pub fn circles(&self) -> Vec<Vec<String>> {
        let reach: BTreeMap<&Module, BTreeSet<&Module>> =
            self.edges.keys().map(|module| (module, self.reachable(module))).collect();
        let mut circles: Vec<Vec<String>> = Vec::new();
        let mut seen = BTreeSet::new();
        for (module, reached) in &reach {
            if !reached.contains(module) || !seen.insert(*module) {
                continue;
            }
            let members: Vec<&&Module> = reached
                .iter()
                .filter(|other| reach.get(*other).is_some_and(|back| back.contains(module)))
                .collect();
            seen.extend(members.iter().map(|member| **member));
            circles.push(members.iter().map(|member| member.join("::")).collect());
        }
        circles
    }

    fn reachable<'a>(&'a self, from: &Module) -> BTreeSet<&'a Module> {
        let mut found = BTreeSet::new();
        let mut open: Vec<&Module> = self.edges.get(from).into_iter().flatten().collect();
        while let Some(module) = open.pop() {
            if found.insert(module) {
                open.extend(self.edges.get(module).into_iter().flatten());
            }
        }
        found
    }
}

/// Returns the text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let lines: Vec<&str> = lines.take_while(|line| !line.starts_with("#[cfg(test)]")).collect();
    lines.join("\n")
}

/// Returns every name that a `use` item imports: its path, the name, and whether it is re-exported.
fn uses(text: &str) -> Vec<(Module, String, bool)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find("use ") {
        let (before, item) = rest.split_at(at);
        let line = before.rsplit('\n').next().unwrap_or("").trim();
        rest = item.get(4..).unwrap_or("");
        if !line.is_empty() && !line.starts_with("pub") {
            continue;
        }
        let Some((tree, after)) = rest.split_once(';') else { break };
        expand(&[], tree, line.starts_with("pub"), &mut found);
        rest = after;
    }
    found
}

fn expand(before: &[String], tree: &str, is_public: bool, found: &mut Vec<(Module, String, bool)>) {
    let tree = tree.trim();
    let Some((head, inner)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut whole = before.to_vec();
        whole.extend(path.split("::").map(|part| part.trim().to_owned()));
        whole.retain(|part| !part.is_empty());
        let name = Some(alias.trim().to_owned()).filter(|alias| !alias.is_empty());
        let name = name.or_else(|| whole.last().cloned()).unwrap_or_default();
        found.push((whole, name, is_public));
        return;
    };
    let mut whole = before.to_vec();
    whole.extend(head.split("::").map(|part| part.trim().to_owned()));
    whole.retain(|part| !part.is_empty());
    let inner = inner.rsplit_once('}').map_or(inner, |(inner, _)| inner);
    let mut depth = 0;
    let parts = inner.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    for part in parts.filter(|part| !part.trim().is_empty()) {
        expand(&whole, part, is_public, found);
    }
}

/// Returns the paths in the code that begin with `crate::` or `super::`.
fn inline_paths(text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        for (at, _) in text.match_indices(start) {
            let is_inside = text.get(..at).is_some_and(|before| {
                before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
            });
            let rest = text.get(at..).unwrap_or("");
            let end =
                rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != ':').unwrap_or(0);
            let path = rest.get(..end).unwrap_or("").trim_end_matches(':');
            if !is_inside && !rest.get(end..).unwrap_or("").starts_with('{') {
                found.push(path.split("::").map(str::to_owned).collect());
            }
        }
    }
    found
}

/// Returns a path from the root of the crate; empty if it leads out of the crate.
fn absolute(module: &Module, path: &[String], modules: &BTreeMap<Module, String>) -> Module {
    let (first, rest) = path.split_first().map_or(("", path), |(first, rest)| (&**first, rest));
    match first {
        "crate" => rest.to_vec(),
        "self" => module.iter().chain(rest).cloned().collect(),
        "super" => {
            let parent = module.get(..module.len().saturating_sub(1)).unwrap_or(&[]).to_vec();
            match rest.first().map(String::as_str) {
                Some("super") => absolute(&parent, rest, modules),
                _ => parent.iter().chain(rest).cloned().collect(),
            }
        }
        _ => {
            let child: Module = module.iter().chain(path.iter().take(1)).cloned().collect();
            let is_child = modules.contains_key(&child);
            if is_child { module.iter().chain(path).cloned().collect() } else { Vec::new() }
        }
    }
}
