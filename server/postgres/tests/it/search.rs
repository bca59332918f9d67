//! Which binaries are chosen. The folders hold scripts that only say a version.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use backstay_postgres::{Error, Postgres, Search, Settings};

use crate::support::Scratch;

fn program(path: &Path, says: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("#!/bin/sh\necho '{says}'\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

fn server(folder: PathBuf, version: &str) -> PathBuf {
    program(&folder.join("postgres"), &format!("postgres (PostgreSQL) {version}"));
    program(&folder.join("initdb"), &format!("initdb (PostgreSQL) {version}"));
    folder
}

/// Everything is there; each step takes away what was found.
#[test]
fn the_search_goes_from_the_most_to_the_least_specific_place() {
    let scratch = Scratch::new();
    let root = scratch.path();
    let asked = server(root.join("asked"), "15.1");
    program(&root.join("pg_config"), asked.to_str().unwrap());
    let old = server(root.join("lib/15/bin"), "15.2");
    let new = server(root.join("lib/16/bin"), "16.2 (Debian 16.2-1)");
    let brewed = server(root.join("brew/postgresql@18/bin"), "18.3");
    let on_path = server(root.join("path"), "17beta1");
    let mut search = Search {
        pg_config: Some(root.join("pg_config")),
        distribution: vec![format!("{}/lib/{{major}}/bin", root.display())],
        homebrew: vec![format!("{}/brew/postgresql@{{major}}/bin", root.display())],
        path: vec![root.join("nothing"), on_path.clone()],
        ..Search::default()
    };

    let found = |search: &Search| search.find(None).unwrap().folder;
    assert_eq!(found(&search), asked);
    search.pg_config = None;
    assert_eq!(found(&search), new);
    fs::remove_dir_all(&new).unwrap();
    assert_eq!(found(&search), old);
    search.distribution.clear();
    assert_eq!(found(&search), brewed);
    search.homebrew.clear();
    assert_eq!(found(&search), on_path);
    assert_eq!(search.find(None).unwrap().major, 17);
    search.path.clear();
    assert!(search.find(None).is_err());
}

#[test]
fn a_folder_with_only_the_client_programs_is_passed_over() {
    let scratch = Scratch::new();
    let client = scratch.path().join("client");
    program(&client.join("postgres"), "postgres (PostgreSQL) 17.1");
    program(&scratch.path().join("pg_config"), client.to_str().unwrap());
    let complete = server(scratch.path().join("complete"), "15.4");
    let search = Search {
        pg_config: Some(scratch.path().join("pg_config")),
        path: vec![complete.clone()],
        ..Search::default()
    };
    assert_eq!(search.find(None).unwrap().folder, complete);
}

#[test]
fn a_server_that_is_too_old_is_passed_over_and_named() {
    let scratch = Scratch::new();
    let search = Search { path: vec![server(scratch.path().join("old"), "14.9")], ..Search::default() };
    let missing = search.find(None).unwrap_err();
    assert!(missing.tried.iter().any(|line| line.contains("it is Postgres 14")), "{missing:?}");
}

#[test]
fn existing_data_decides_which_version_is_taken() {
    let scratch = Scratch::new();
    server(scratch.path().join("lib/17/bin"), "17.2");
    let matching = server(scratch.path().join("lib/16/bin"), "16.8");
    let pattern = format!("{}/lib/{{major}}/bin", scratch.path().display());
    let search = Search { distribution: vec![pattern], ..Search::default() };
    assert_eq!(search.find(Some(16)).unwrap().folder, matching);
    assert_eq!(search.find(Some(15)).unwrap_err().other_version.unwrap().major, 17);
}

/// Somebody named them: to use others silently would be a lie.
#[tokio::test]
async fn named_binaries_that_do_not_work_are_refused_rather_than_replaced() {
    let scratch = Scratch::new();
    let mut settings = Settings::new(scratch.data());
    settings.search.named_in_environment = Some(scratch.path().join("nowhere"));
    let error = Postgres::start(settings).await.err().unwrap();
    assert!(matches!(error, Error::UnusableBinaries { .. }));
    assert!(error.to_string().contains("BACKSTAY_POSTGRES_BIN"), "{error}");
}

#[tokio::test]
async fn named_binaries_go_before_found_ones_and_the_setting_before_the_environment() {
    let scratch = Scratch::new();
    let mut settings = Settings::new(scratch.data());
    settings.search.named = Some(server(scratch.path().join("named"), "15.0"));
    settings.search.named_in_environment = Some(scratch.path().join("nowhere"));
    // The script pretends to be initdb and creates nothing.
    let error = Postgres::start(settings).await.err().unwrap();
    assert!(error.to_string().contains("data.new"), "{error}");
}
