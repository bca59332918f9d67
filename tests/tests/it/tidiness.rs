//! The shape of the house, kept by a test: who may name what, what we depend on, how long a file may be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The files that are part of the project.
fn files(ending: &str) -> Vec<(String, String)> {
    let listed = Command::new("git")
        .args(["ls-files", "-co", "--exclude-standard"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(listed.status.success(), "the tests run in a clone");
    let names = String::from_utf8(listed.stdout).unwrap();
    let of_kind = names.lines().filter(|name| name.ends_with(ending));
    of_kind
        .filter_map(|name| Some((name.to_owned(), std::fs::read_to_string(root().join(name)).ok()?)))
        .collect()
}

fn metadata() -> Value {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    // Of this platform only: what another one needs was never fetched.
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let asked = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", host])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    serde_json::from_slice(&asked.stdout).unwrap()
}

#[test]
fn only_the_right_places_name_sqlx_and_reqwest() {
    let allowed = [
        ("sqlx::", vec!["engine/src/store/", "tests/", "bench/", "/tests/"]),
        // Connections are passed through the node to the store.
        ("sqlx::query", vec!["engine/src/store/", "tests/", "bench/", "/tests/"]),
        (
            "reqwest::",
            vec![
                "activities/",
                "server/src/remote/",
                "server/src/traces.rs",
                "server/postgres/src/install.rs",
                // It measures the server as its callers meet it.
                "bench/",
                "/tests/",
            ],
        ),
        ("axum::", vec!["server/src/", "simulator/", "/tests/"]),
        // What runs for real never knows that there is a pretend data centre.
        ("backstay_simulator::", vec!["server/src/demo/", "simulator/", "tests/", "bench/", "/tests/"]),
    ];
    let mut wrong = Vec::new();
    for (name, text) in files(".rs") {
        for (crate_name, places) in &allowed {
            let passes = *crate_name == "sqlx::"
                && name.starts_with("engine/src/node/")
                && !text.contains("sqlx::query");
            if text.contains(crate_name)
                && !passes
                && !places.iter().any(|place| name.starts_with(place) || name.contains(place))
            {
                wrong.push(format!("{name} names {crate_name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_machine_has_nothing_to_do_io_with() {
    let tree = Command::new("cargo")
        .args(["tree", "-p", "backstay-machine", "-e", "normal", "--prefix", "none", "--locked", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8(tree.stdout).unwrap();
    assert!(tree.contains("petgraph"), "{tree}");
    for io in ["tokio", "sqlx", "reqwest", "axum", "hyper", "mio", "socket2", "rustix"] {
        assert!(!tree.lines().any(|line| line.split(' ').next() == Some(io)), "the machine depends on {io}");
    }
}

/// server -> workflows -> activities -> engine -> machine, never back; and the simulator knows none of them, so that no
/// belief about the real systems is in both.
#[test]
fn nobody_depends_on_what_is_above() {
    let allowed = [
        ("backstay", ["activities", "engine", "postgres", "simulator", "workflows"].as_slice()),
        ("backstay-workflows", &["activities", "engine", "machine"]),
        ("backstay-activities", &["engine"]),
        ("backstay-engine", &["machine"]),
        ("backstay-machine", &[]),
        ("backstay-postgres", &[]),
        ("backstay-simulator", &[]),
    ];
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap();
    for (name, may) in allowed {
        let package = packages.iter().find(|package| package["name"] == name);
        let package = package.unwrap_or_else(|| panic!("there is no package {name}"));
        let ours = package["dependencies"].as_array().unwrap().iter().filter(|one| one["kind"].is_null());
        for one in ours.filter_map(|one| one["name"].as_str()?.strip_prefix("backstay-")) {
            assert!(may.contains(&one), "{name} depends on backstay-{one}");
        }
    }
}

#[test]
fn dependencies_are_licensed_and_kept() {
    const LICENCES: [&str; 15] = [
        "MIT",
        "Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
        "Unicode-3.0",
        "Zlib",
        "ISC",
        "BSD-2-Clause",
        "BSD-3-Clause",
        "0BSD",
        "MIT-0",
        "BSL-1.0",
        "CDLA-Permissive-2.0",
        "CC0-1.0",
        "Unlicense",
        "BSD-1-Clause",
    ];
    // Unmaintained or unsound, or a second provider of TLS: see deny.toml.
    const BANNED: [&str; 15] = [
        "backoff",
        "instant",
        "serde_yaml",
        "serde_yml",
        "yaml-rust",
        "dotenv",
        "atty",
        "ansi_term",
        "structopt",
        "failure",
        "bincode",
        "async-std",
        "rustls-pemfile",
        "native-tls",
        "aws-lc-rs",
    ];
    let mut wrong: BTreeMap<String, String> = BTreeMap::new();
    for package in metadata()["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        if BANNED.contains(&name) {
            wrong.insert(name.into(), "banned".into());
        }
        // "A OR B": one of them is enough. "A AND B": both.
        let licence =
            package["license"].as_str().unwrap_or_default().replace('/', " OR ").replace(['(', ')'], "");
        let fits =
            licence.split(" AND ").all(|all| all.split(" OR ").any(|one| LICENCES.contains(&one.trim())));
        if !fits {
            wrong.insert(name.into(), licence);
        }
        if package["source"].as_str().is_some_and(|source| !source.starts_with("registry+")) {
            wrong.insert(name.into(), "from elsewhere than the registry".into());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_can_be_read_from_top_to_bottom() {
    const MOST: usize = 800;
    let long: Vec<_> = files(".rs")
        .into_iter()
        .filter(|(name, _)| !name.contains("/tests/"))
        .map(|(name, text)| (name, text.lines().count()))
        .filter(|(_, lines)| *lines > MOST)
        .collect();
    assert!(long.is_empty(), "{long:?}");
    for (name, text) in files(".rs") {
        assert!(text.starts_with("//!") || text.starts_with("#!["), "{name} does not say what it is");
    }
}

#[test]
fn every_decision_is_numbered_once_and_every_migration_explained() {
    let mut numbers = BTreeSet::new();
    for (name, text) in files(".md").into_iter().filter(|(name, _)| name.starts_with("docs/decisions/")) {
        let number = name.trim_start_matches("docs/decisions/").split('-').next().unwrap().to_owned();
        assert!(numbers.insert(number), "{name}");
        for part in ["## Context", "## Choice", "## Cost"] {
            assert!(text.contains(part), "{name} has no {part}");
        }
    }
    for (name, text) in files(".sql").into_iter().filter(|(name, _)| name.starts_with("migrations/")) {
        assert!(text.starts_with("--"), "{name} does not say why");
        let tables = text.matches("\ncreate table ").count() + text.matches("\ncreate view ").count();
        assert_eq!(
            text.matches("\ncomment on ").count(),
            tables,
            "{name}: each table and view has a comment"
        );
    }
}

#[test]
fn the_readme_shows_the_two_commands() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for command in ["cargo run -- demo", "cargo test --workspace"] {
        assert!(readme.contains(command), "{command}");
    }
}
