//! Which crate may import which. The rule is the table of crates in ARCHITECTURE.md; a new import
//! is a decision, made there first.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use d_engine_tidy::{files, read, root};
use toml::Table;

/// The crates in which an async runtime or gRPC may appear outside of dev-dependencies.
const MAY_HAVE_TOKIO: &[&str] = &[
    "d-engine-server",
    "d-engine-client",
    "d-engine-cli",
    "d-engine-conformance",
    "d-engine-campaign",
];

fn manifests() -> BTreeMap<String, Table> {
    let mut manifests = BTreeMap::new();
    for folder in ["crates", "examples"] {
        for path in files(folder, "Cargo.toml") {
            let manifest: Table = read(&path).parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            manifests.insert(name, manifest);
        }
    }
    manifests
}

fn dependencies(manifest: &Table) -> BTreeMap<String, toml::Value> {
    let table =
        manifest.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
    table.into_iter().collect()
}

/// Returns what each of our crates may import: the third column of the table of crates, by the
/// first. "the façade" stands for `d-engine`.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let mut allowed = BTreeMap::new();
    for row in read("ARCHITECTURE.md").lines().filter(|row| row.starts_with('|')) {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, folder, _, imports, _, _] = columns.as_slice() else { continue };
        let manifest = format!("{}/Cargo.toml", folder.trim_matches('`'));
        if !folder.starts_with('`') || !root().join(&manifest).exists() {
            continue;
        }
        let manifest: Table = read(&manifest).parse().unwrap();
        let name = manifest["package"]["name"].as_str().unwrap().to_owned();
        let imports = imports.split(", ").filter(|import| *import != "nothing");
        let imports = imports.map(|import| match import {
            "the façade" => "d-engine".to_owned(),
            _ => format!("d-engine-{import}"),
        });
        allowed.insert(name, imports.collect());
    }
    allowed
}

#[test]
fn every_crate_imports_only_what_the_map_allows() {
    let (manifests, allowed) = (manifests(), allowed());
    for (name, manifest) in &manifests {
        let Some(allowed) = allowed.get(name) else {
            panic!("{name} is not in the table of crates in ARCHITECTURE.md")
        };
        let ours =
            dependencies(manifest).into_keys().filter(|import| import.starts_with("d-engine"));
        for import in ours {
            assert!(
                allowed.contains(&import),
                "{name} imports {import}, which ARCHITECTURE.md does not allow"
            );
        }
    }
}

/// An arrow that no manifest has is out of date, and would let an import in unnoticed.
#[test]
fn the_map_allows_no_import_that_nobody_uses() {
    let (manifests, allowed) = (manifests(), allowed());
    for (name, manifest) in &manifests {
        let used = dependencies(manifest);
        for import in allowed.get(name).into_iter().flatten() {
            assert!(
                used.contains_key(import),
                "ARCHITECTURE.md allows {name} to import {import}, which it does not: remove it"
            );
        }
    }
}

#[test]
fn async_runtimes_stay_outside_the_pure_crates() {
    for (name, manifest) in manifests() {
        let is_pure = name.starts_with("d-engine") && !MAY_HAVE_TOKIO.contains(&name.as_str());
        for import in dependencies(&manifest).into_keys() {
            let is_async = import == "tokio" || import == "tonic" || import == "tonic-prost";
            // The generated stubs of the client service; they open no connection.
            let is_stub = name == "d-engine-api" && import != "tokio";
            assert!(!(is_pure && is_async) || is_stub, "{name} depends on {import}");
        }
    }
}

/// Everything that a crate of ours pulls in through crates of ours, itself included.
fn pulled_in_by(name: &str, manifests: &BTreeMap<String, Table>) -> BTreeSet<String> {
    let mut pulled_in = BTreeSet::from([name.to_owned()]);
    let mut left = vec![name.to_owned()];
    while let Some(name) = left.pop() {
        for import in manifests.get(&name).map(dependencies).unwrap_or_default().into_keys() {
            if pulled_in.insert(import.clone()) {
                left.push(import);
            }
        }
    }
    pulled_in
}

/// A network client, and any program that speaks the same messages, does not compile the engine.
#[test]
fn the_network_client_pulls_in_no_part_of_the_engine() {
    let manifests = manifests();
    for import in pulled_in_by("d-engine-client", &manifests) {
        let is_free_of_it =
            ["d-engine-client", "d-engine-api", "d-engine-kv-language", "d-engine-locks"];
        let is_ours = import.starts_with("d-engine");
        assert!(!is_ours || is_free_of_it.contains(&import.as_str()), "it pulls in {import}");
    }
}

/// Neither gRPC nor an async runtime: a run depends on nothing but its seed.
#[test]
fn the_simulator_pulls_in_no_client_service() {
    let pulled_in = pulled_in_by("d-engine-sim", &manifests());
    for import in ["d-engine-api", "d-engine-server", "tonic", "tokio"] {
        assert!(!pulled_in.contains(import), "it pulls in {import}");
    }
}

#[test]
fn the_core_needs_no_standard_library() {
    assert!(read("crates/core/src/lib.rs").contains("#![no_std]"));
    assert!(dependencies(&manifests()["d-engine-core"]).is_empty(), "the core has a dependency");
}

#[test]
fn nothing_can_be_published_under_a_name_that_is_taken() {
    for (name, manifest) in manifests() {
        let publish =
            manifest["package"].get("publish").map(ToString::to_string).unwrap_or_default();
        assert!(
            publish.contains("workspace = true") || publish == "false",
            "{name} could be published"
        );
    }
    assert!(read("Cargo.toml").contains("publish = false"));
}

/// `benches/compare` is a workspace of its own, so no build of ours notices that its lock file is
/// out of date: it is built with `--locked`.
#[test]
fn the_lock_file_of_the_comparison_knows_the_dependencies_of_what_it_measures() {
    let lock: Table = read("benches/compare/Cargo.lock").parse().unwrap();
    let locked = |name: &str| -> BTreeSet<String> {
        let packages = lock["package"].as_array().unwrap();
        let package = packages.iter().find(|one| one["name"].as_str() == Some(name)).unwrap();
        let names =
            package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        // With a version after the name if there are several.
        names.map(|one| one.as_str().unwrap().split(' ').next().unwrap().to_owned()).collect()
    };
    let manifests = manifests();
    for name in ["d-engine-core", "d-engine-fs", "d-engine-storage"] {
        let wanted: BTreeSet<String> = dependencies(&manifests[name]).into_keys().collect();
        let advice = "run `cargo update --workspace` in benches/compare";
        assert_eq!(locked(name), wanted, "{name}: {advice}");
    }
}
