//! The document in a browser: a real one, if there is one on this machine.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;

use crate::served::{Served, said};

const BROWSERS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome-stable", "google-chrome"];

fn browser() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let all = BROWSERS.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    all.into_iter().find(|file| file.is_file())
}

/// What a browser makes of a page, what it complains of, and whom it asks.
struct Seen {
    page: String,
    said: String,
    asked: BTreeSet<String>,
}

async fn look(browser: &PathBuf, url: &str) -> Seen {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("net.json");
    let mut command = tokio::process::Command::new(browser);
    // Root has no sandbox to give; on any other account it stays.
    if rustix::process::geteuid().is_root() {
        command.arg("--no-sandbox");
    }
    command
        .args([
            "--headless=new",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--no-proxy-server",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-extensions", "--disable-default-apps", "--enable-logging=stderr", "--v=0"])
        .args(["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--virtual-time-budget=30000"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .arg(format!("--log-net-log={}", log.display()))
        .arg("--dump-dom")
        .arg(url)
        .kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(100), command.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let log = std::fs::read_to_string(log).unwrap();
    let log: Value = serde_json::from_str(&log).unwrap_or_else(|error| panic!("{error}"));
    // The browser itself asks its makers for this and that, and gets nowhere; what a page asks names the page.
    let of_page =
        |event: &&Value| event["params"]["initiator"].as_str().is_some_and(|from| from.starts_with("http"));
    let events = log["events"].as_array().unwrap().iter();
    let asked =
        events.filter(of_page).filter_map(|event| event["params"]["url"].as_str().map(ToOwned::to_owned));
    Seen { page: String::from_utf8_lossy(&output.stdout).into_owned(), said, asked: asked.collect() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_shows_every_operation_and_asks_nobody_else() {
    let Some(browser) = browser() else {
        println!("skipped: none of {BROWSERS:?} is on this machine, and nothing else can show a page");
        return;
    };
    let api = Served::start().await;
    let seen = look(&browser, &format!("{}/docs/", api.base)).await;
    let document = api.get_as("/openapi.json", "").await.is(200).json();
    let operations: Vec<_> = document["paths"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|path| path.as_object().unwrap().values())
        .collect();
    assert!(operations.len() > 50);
    for operation in operations {
        let (tag, id) = (operation["tags"][0].as_str().unwrap(), operation["operationId"].as_str().unwrap());
        assert!(
            seen.page.contains(&format!("operations-{}-{id}\"", tag.replace(' ', "_"))),
            "{id} is not shown: {}",
            seen.said
        );
    }
    // Nothing was kept from it by its policy, as nothing of it needs what the policy denies.
    for complaint in ["Content Security Policy", "Uncaught", "Refused to"] {
        assert!(!seen.said.contains(complaint), "{}", seen.said);
    }
    let asked = |file: &str| seen.asked.contains(&format!("{}{file}", api.base));
    assert!(
        asked("/openapi.json") && asked("/docs/swagger-ui.js") && asked("/docs/swagger-ui.css"),
        "{:?}",
        seen.asked
    );
    let others: Vec<_> =
        seen.asked.iter().filter(|url| !url.starts_with(&api.base) && !url.starts_with("data:")).collect();
    assert!(others.is_empty(), "it asks others: {others:?}");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_come_packed_or_not_with_their_licences_and_a_policy() {
    let api = Served::start().await;
    let page = api.get_as("/docs/", "").await.is(200);
    let policy = page.header("content-security-policy");
    assert!(
        policy.starts_with("default-src 'none'") && !policy.contains("unsafe") && !policy.contains("http"),
        "{policy}"
    );
    assert!(!page.text.contains("http://") && !page.text.contains("https://"));
    assert!(!page.text.contains("onload") && !page.text.contains("<style"));
    for (file, begin) in [
        ("swagger-ui.js", "/*! For license"),
        ("swagger-ui.css", ".swagger-ui"),
        ("start.js", "SwaggerUIBundle("),
    ] {
        let plain = api.get_as(&format!("/docs/{file}"), "").await.is(200);
        assert!(plain.text.starts_with(begin), "{file}: {}", plain.text.chars().take(80).collect::<String>());
        let packed = api.request(Method::GET, &format!("/docs/{file}"), "").header("accept-encoding", "gzip");
        let packed = packed.send().await.unwrap();
        assert_eq!(packed.headers()["content-encoding"], "gzip", "{file}");
        assert!(packed.bytes().await.unwrap().starts_with(&[0x1f, 0x8b]), "{file}");
    }
    let licences = api.get_as("/docs/licences.txt", "").await.is(200).text;
    assert!(
        licences.contains("SmartBear") && licences.contains("Apache License") && licences.contains("MIT")
    );
    let moved = said(api.request(Method::GET, "/docs", "")).await;
    assert_eq!(moved.status, 200, "it leads to the page");
    api.end().await;
}
