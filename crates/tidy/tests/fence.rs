//! Who may import whom. The map is in ARCHITECTURE.md; a new arrow is a decision, made here first.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};

use d_engine_tidy::{files, read};
use toml::Table;

/// Our crates that each of our crates may depend on.
const ALLOWED: &[(&str, &[&str])] = &[
    ("d-engine-core", &[]),
    ("d-engine-storage", &["core"]),
    ("d-engine-replica", &["core", "storage"]),
    ("d-engine-proto", &["core", "storage", "replica"]),
    ("d-engine-testing", &["core", "storage", "replica"]),
    ("d-engine-kv", &["proto", "replica", "storage", "core"]),
    ("d-engine-kv-disk", &["proto", "replica", "storage", "core"]),
    ("d-engine-sim", &["core", "storage", "replica", "kv", "kv-disk", "proto"]),
    ("d-engine-server", &["core", "storage", "replica", "kv", "proto"]),
    ("d-engine-client", &["proto"]),
    ("d-engine-cli", &["server", "client", "kv", "kv-disk"]),
    ("d-engine-campaign", &["client", "sim"]),
    ("d-engine-tidy", &[]),
    ("d-engine", &["core", "storage", "replica", "kv", "kv-disk", "proto", "server", "client", "testing"]),
];

/// Where an async runtime or gRPC may appear outside of dev-dependencies.
const MAY_HAVE_TOKIO: &[&str] =
    &["d-engine-server", "d-engine-client", "d-engine-cli", "d-engine-testing", "d-engine-campaign"];

fn manifests() -> BTreeMap<String, Table> {
    let mut manifests = BTreeMap::new();
    for folder in ["crates", "d-engine", "examples"] {
        for path in files(folder, "Cargo.toml") {
            let manifest: Table = read(&path).parse().unwrap();
            let name = manifest["package"]["name"].as_str().unwrap().to_owned();
            manifests.insert(name, manifest);
        }
    }
    manifests
}

fn dependencies(manifest: &Table) -> BTreeMap<String, toml::Value> {
    let table = manifest.get("dependencies").and_then(toml::Value::as_table).cloned().unwrap_or_default();
    table.into_iter().collect()
}

#[test]
fn every_crate_imports_only_what_the_map_allows() {
    let manifests = manifests();
    let allowed: BTreeMap<&str, BTreeSet<String>> = ALLOWED
        .iter()
        .map(|(name, imports)| (*name, imports.iter().map(|one| format!("d-engine-{one}")).collect()))
        .collect();
    for (name, manifest) in &manifests {
        let ours = dependencies(manifest).into_keys().filter(|import| import.starts_with("d-engine"));
        for import in ours {
            let is_allowed = match allowed.get(name.as_str()) {
                Some(allowed) => allowed.contains(&import),
                // Examples stand for users: they see the façade alone.
                None => import == "d-engine",
            };
            assert!(is_allowed, "{name} imports {import}, which the map does not allow");
        }
    }
    for (name, _) in ALLOWED {
        assert!(manifests.contains_key(*name), "{name} is in the map but not in the workspace");
    }
}

#[test]
fn async_runtimes_stay_outside_the_pure_crates() {
    for (name, manifest) in manifests() {
        let is_pure = name.starts_with("d-engine") && !MAY_HAVE_TOKIO.contains(&name.as_str());
        for (import, value) in dependencies(&manifest) {
            let is_async = import == "tokio" || import == "tonic" || import == "tonic-prost";
            let is_optional = value.get("optional").and_then(toml::Value::as_bool) == Some(true);
            let is_stub = name == "d-engine-proto" && is_optional;
            assert!(!(is_pure && is_async) || is_stub, "{name} depends on {import}");
        }
    }
}

#[test]
fn the_engine_stays_out_of_plain_messages_and_grpc_out_of_the_simulator() {
    let manifests = manifests();
    for (import, value) in dependencies(&manifests["d-engine-proto"]) {
        let optional = value.get("optional").and_then(toml::Value::as_bool) == Some(true);
        assert!(!import.starts_with("d-engine") || optional, "proto always pulls in {import}");
    }
    for name in ["d-engine-kv", "d-engine-kv-disk", "d-engine-sim", "d-engine-client"] {
        let proto = &dependencies(&manifests[name])["d-engine-proto"];
        let features = proto.get("features").map(ToString::to_string).unwrap_or_default();
        let forbidden = if name == "d-engine-client" { "engine\"" } else { "grpc" };
        assert!(!features.contains(forbidden), "{name} uses d-engine-proto with {features}");
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
        let publish = manifest["package"].get("publish").map(ToString::to_string).unwrap_or_default();
        assert!(publish.contains("workspace = true") || publish == "false", "{name} could be published");
    }
    assert!(read("Cargo.toml").contains("publish = false"));
}

/// `benches/compare` is a workspace of its own, so that no build of ours notices when its lock file falls behind: it
/// is built with `--locked`.
#[test]
fn the_lock_file_of_the_comparison_knows_the_dependencies_of_what_it_measures() {
    let lock: Table = read("benches/compare/Cargo.lock").parse().unwrap();
    let locked = |name: &str| -> BTreeSet<String> {
        let packages = lock["package"].as_array().unwrap();
        let package = packages.iter().find(|one| one["name"].as_str() == Some(name)).unwrap();
        let names = package.get("dependencies").and_then(toml::Value::as_array).into_iter().flatten();
        // With a version behind the name where there are several.
        names.map(|one| one.as_str().unwrap().split(' ').next().unwrap().to_owned()).collect()
    };
    let manifests = manifests();
    for name in ["d-engine-core", "d-engine-storage"] {
        let wanted: BTreeSet<String> = dependencies(&manifests[name]).into_keys().collect();
        let advice = "run `cargo update --workspace` in benches/compare";
        assert_eq!(locked(name), wanted, "{name}: {advice}");
    }
}
