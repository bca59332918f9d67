//! What is shipped beside the program is about this program: its figures, its settings, its commands.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::served::{Served, client};
use crate::slow::Papers;
use crate::support::{Place, Running, ran};

fn packaging(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(packaging(name)).unwrap()
}

/// The figures that an expression names, with the values that it wants of their labels.
fn named(expression: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices("backstay_") {
        let rest = &expression[at..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(rest.len());
        let (name, rest) = rest.split_at(end);
        let mut labels = Vec::new();
        if let Some(inside) = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()) {
            for one in inside.split(',') {
                let (label, value) = one.split_once('=').unwrap();
                // A pattern is good for anything; and "instance" is added by whoever asks.
                let value = if value.starts_with('~') { "" } else { value.trim_matches('"') };
                if label != "instance" {
                    labels.push((label.to_owned(), value.to_owned()));
                }
            }
        }
        found.push((name.to_owned(), labels));
    }
    found
}

/// Every series that a server shows: its name, and its labels.
async fn shown(api: &Served) -> Vec<(String, BTreeMap<String, String>)> {
    let text = client().get(format!("{}/metrics", api.health)).send().await.unwrap().text().await.unwrap();
    let mut helped = BTreeSet::new();
    let mut series = Vec::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped.insert(help.split(' ').next().unwrap().to_owned());
        }
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (series_text, _) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series_text.split_once('{').unwrap_or((series_text, ""));
        let labels = labels.trim_end_matches('}').split("\",").filter(|label| !label.is_empty());
        let labels = labels.map(|label| label.split_once('=').unwrap());
        let labels =
            labels.map(|(key, value)| (key.to_owned(), value.trim_matches('"').to_owned())).collect();
        series.push((name.to_owned(), labels));
    }
    for (name, _) in &series {
        let plain = name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(name);
        assert!(helped.contains(plain), "{name} has no help");
    }
    series
}

#[tokio::test(flavor = "multi_thread")]
async fn what_alerts_and_the_dashboard_watch_is_what_a_server_shows() {
    let papers = Papers::new();
    papers.issue("server", "localhost", true);
    let (pem, key) = (papers.path("server.pem"), papers.path("server.key"));
    let settings = [
        ("BACKSTAY_LISTEN__CERTIFICATE", pem.to_str().unwrap()),
        ("BACKSTAY_LISTEN__KEY", key.to_str().unwrap()),
    ];
    let guarded = Served::with(Place::with_url().await, "n0", &settings).await;
    let of_tls = shown(&guarded).await;
    guarded.end().await;

    let api = Served::with(Place::with_url().await, "n1", &[("BACKSTAY_NODE__LEASE", "1s")]).await;
    let say = json!({ "name": "say", "activity": "log", "input": { "text": "a drill" }, "pool": "loud",
        "nothing_to_undo": "it talks" });
    let run = api.post("/api/v1/runs", json!({ "plan": { "workflow": "drill", "steps": [say] } })).await;
    api.until(run.is(202).json()["run"].as_str().unwrap(), "succeeded").await;

    let dashboard: Value = serde_json::from_str(&text("grafana/backstay.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut expressions: Vec<_> = targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect();
    expressions.push(dashboard["templating"]["list"][1]["query"].as_str().unwrap().to_owned());
    let rules = text("prometheus/alerts.yaml");
    expressions.push(
        rules.lines().filter(|line| !line.trim_start().starts_with('#')).collect::<Vec<_>>().join("\n"),
    );
    let wanted: BTreeSet<_> = expressions.iter().flat_map(|expression| named(expression)).collect();
    assert!(wanted.len() > 25, "{wanted:?}");
    let missing = |series: &[(String, BTreeMap<String, String>)]| {
        let fits = |wanted: &(String, Vec<(String, String)>), found: &BTreeMap<String, String>| {
            wanted.1.iter().all(|(label, value)| match (found.get(label), value.as_str()) {
                (None, _) => false,
                // What no server should ever show.
                (Some(_), "" | "500") => true,
                (Some(found), value) => found == value,
            })
        };
        let is_there = |wanted: &&(String, Vec<(String, String)>)| {
            of_tls.iter().chain(series).any(|(name, found)| *name == wanted.0 && fits(wanted, found))
        };
        wanted.iter().filter(|wanted| !is_there(wanted)).cloned().collect::<Vec<_>>()
    };
    // Some are there only after their first time: a lease that was renewed, a share that was settled.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        let missing = missing(&shown(&api).await);
        if missing.is_empty() {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "no server shows {missing:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    api.end().await;

    // And each alert is explained.
    let manual = std::fs::read_to_string(packaging("../docs/deployment.md")).unwrap();
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(manual.contains(&format!("`{alert}`")), "{alert} is not explained");
    }
}

/// The settings that a table has, optional ones included, as the parser lists them.
async fn settings_of(place: &Place, table: &str) -> Vec<String> {
    let variable = match table {
        "" => "BACKSTAY_NO_SUCH".to_owned(),
        table => format!("BACKSTAY_{}__NO_SUCH", table.to_uppercase()),
    };
    let refused = ran(place.command(&["config", "show"]).env(variable, "1")).await.exits(2);
    let list = refused.err.split("there are ").nth(1).unwrap().split(" (").next().unwrap();
    list.split(", ").map(|name| name.trim_matches('`').to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_example_has_every_setting_and_is_accepted_as_it_is_and_with_each_of_them() {
    let place = Place::embedded();
    let example = text("backstay.toml");
    let untouched = place.file("untouched.toml", &example);
    let check = place.run(&["config", "check", "--config", untouched.to_str().unwrap()]).await;
    check.exits(0).says("The configuration is right.");

    let papers = Papers::new();
    papers.issue("server", "localhost", true);
    for name in ["clients-ca.pem", "cloud-ca.pem"] {
        std::fs::copy(papers.path("ca.pem"), papers.path(name)).unwrap();
    }
    std::fs::create_dir(papers.path("secrets")).unwrap();
    std::fs::write(papers.path("secret.key"), format!("k1:{}\n", "0f".repeat(32))).unwrap();
    std::fs::set_permissions(papers.path("secret.key"), Permissions::from_mode(0o600)).unwrap();
    // Prose begins with a space.
    let lines = example.lines().map(|line| match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => rest,
        _ => line,
    });
    let all =
        lines.collect::<Vec<_>>().join("\n").replace("/etc/backstay", papers.path("").to_str().unwrap());
    let all = place.file("all.toml", &all);
    let check = place.run(&["config", "check", "--config", all.to_str().unwrap()]).await;
    check.exits(0).says("The configuration is right.");
    let show = place.run(&["config", "show", "--json", "--config", all.to_str().unwrap()]).await.exits(0);
    let show: Vec<Value> = serde_json::from_str(&show.out).unwrap();
    let stated: BTreeSet<_> = show
        .iter()
        .filter(|one| one["origin"].as_str().unwrap().starts_with("file: "))
        .map(|one| one["key"].as_str().unwrap().to_owned())
        .collect();
    let mut missing = Vec::new();
    for table in settings_of(&place, "").await {
        if table == "data_dir" {
            continue;
        }
        for name in settings_of(&place, &table).await {
            let key = format!("{table}.{name}");
            if !stated.iter().any(|stated| *stated == key || stated.starts_with(&format!("{key}."))) {
                missing.push(key);
            }
        }
    }
    assert!(missing.is_empty(), "the example does not have {missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_unit_starts_what_there_is_and_gives_it_time_to_end() {
    let unit = text("systemd/backstay.service");
    let setting = |name: &str| {
        let line = unit.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap_or_else(|| panic!("the unit does not say {name}")).to_owned()
    };
    let place = Place::embedded();
    let start = setting("ExecStart");
    let (program, arguments) = start.split_once(' ').unwrap();
    assert_eq!(program, "/usr/bin/backstay");
    let mut arguments: Vec<_> = arguments.split(' ').collect();
    arguments.push("--help");
    place.run(&arguments).await.exits(0).says("Usage: backstay serve");
    for variable in unit.lines().filter_map(|line| line.strip_prefix("Environment=BACKSTAY_")) {
        let (name, value) = variable.split_once('=').unwrap();
        let name = format!("BACKSTAY_{name}");
        let shown = ran(place.command(&["config", "show"]).env(&name, value)).await.exits(0);
        assert!(shown.out.contains(&format!("# environment: {name}")), "{}", shown.out);
    }
    assert_eq!((setting("Type").as_str(), setting("KillMode").as_str()), ("notify", "mixed"));
    let shown = place.run(&["config", "show", "--json"]).await.exits(0).out;
    let shown: Vec<Value> = serde_json::from_str(&shown).unwrap();
    let grace =
        shown.iter().find(|one| one["key"] == "node.grace").unwrap()["value"].as_str().unwrap().to_owned();
    let seconds = |text: &str| text.trim_end_matches('s').parse::<u32>().unwrap();
    // The embedded database has a minute for its last checkpoint.
    assert!(seconds(&setting("TimeoutStopSec")) >= seconds(&grace) + 60);

    // What systemd itself thinks of it, where it is.
    let here = unit.replace("/usr/bin/backstay", env!("CARGO_BIN_EXE_backstay"));
    let here = place.file("backstay.service", &here);
    let analyze = |arguments: &[&str]| {
        std::process::Command::new("systemd-analyze").args(arguments).arg(&here).output().ok()
    };
    let Some(said) = analyze(&["verify", "--man=no"]) else { return };
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.contains("backstay.service"), "{said}");
    let exposure = analyze(&["security", "--offline=true", "--threshold=20"]).unwrap();
    assert!(exposure.status.success(), "{}", String::from_utf8_lossy(&exposure.stdout));
}

/// Hears what a service is told to tell.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(socket)
    }

    fn hears(&self, what: &str) {
        let mut buffer = [0; 256];
        loop {
            let length =
                self.0.recv(&mut buffer).unwrap_or_else(|error| panic!("{what} was not told: {error}"));
            if String::from_utf8_lossy(&buffer[..length]).contains(what) {
                return;
            }
        }
    }

    fn forget(&self) {
        let mut buffer = [0; 256];
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut buffer).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_is_told_what_goes_on() {
    for command in ["serve", "node"] {
        let place = Place::with_url().await;
        let socket = place.file("notify", "");
        std::fs::remove_file(&socket).unwrap();
        let manager = Manager::at(&socket);
        let mut service = place.command(&[command, "--name", "n1"]);
        service.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "100000");
        service.env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0").env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0");
        let service = Running::start_for_logs(&mut service);
        manager.hears("READY=1");
        manager.hears("WATCHDOG=1");
        if command == "serve" {
            // Without a certificate there is nothing to read again; it is no reason to end.
            service.signal(Signal::HUP);
            manager.hears("RELOADING=1");
            manager.hears("READY=1");
        }
        service.signal(Signal::TERM);
        manager.hears("STOPPING=1");
        service.end().await.exits(0);
    }
}

/// A new process would not find the database either, and what the old one had in flight would be in doubt.
#[tokio::test(flavor = "multi_thread")]
async fn that_the_database_is_away_is_no_reason_to_be_killed() {
    let place = Place::with_url().await;
    let elsewhere = place.on_database("postgres");
    let socket = place.file("notify", "");
    std::fs::remove_file(&socket).unwrap();
    let manager = Manager::at(&socket);
    let settings = [("NOTIFY_SOCKET", socket.to_str().unwrap()), ("WATCHDOG_USEC", "100000")];
    let name: String =
        sqlx::query_scalar("select current_database()").fetch_one(&mut place.sql().await).await.unwrap();
    let api = Served::with(place, "n1", &settings).await;
    let mut sql = elsewhere.sql().await;
    let mut away = async |away: bool| {
        let statement = format!("alter database {name} allow_connections {}", !away);
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut sql).await.unwrap();
        let end = format!("select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(end)).execute(&mut sql).await.unwrap();
    };
    let ready = format!("{}/readyz", api.health);
    let becomes = async |status: u16| {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while client().get(&ready).send().await.unwrap().status() != status {
            assert!(std::time::Instant::now() < deadline, "{ready} never says {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    becomes(200).await;
    away(true).await;
    becomes(503).await;
    manager.forget();
    for _ in 0..5 {
        manager.hears("WATCHDOG=1");
    }
    away(false).await;
    becomes(200).await;
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_people_are_told_to_press_is_there() {
    const GROUPS: [&str; 8] = ["audit", "config", "db", "pool", "principal", "run", "token", "workflow"];
    let place = Place::embedded();
    let manual = std::fs::read_to_string(packaging("../docs/deployment.md")).unwrap();
    let mut told = BTreeSet::new();
    for text in [manual, text("prometheus/alerts.yaml")] {
        for (at, _) in text.match_indices("backstay ") {
            let line = text[at..].lines().next().unwrap();
            let mut words = Vec::new();
            for word in line.split(' ').skip(1) {
                let bare = word.trim_end_matches(['`', ',', '.', ':', ';', ')', '"', '|']);
                if bare.is_empty() || !bare.chars().all(|c| c.is_ascii_lowercase()) {
                    break;
                }
                words.push(bare.to_owned());
                if bare != word || !GROUPS.contains(&words[0].as_str()) || words.len() == 2 {
                    break;
                }
            }
            if !words.is_empty() {
                told.insert(words);
            }
        }
    }
    assert!(told.len() > 15, "{told:?}");
    for mut words in told {
        words.push("--help".into());
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        place.run(&words).await.exits(0);
    }
}

#[test]
fn what_is_packaged_is_there() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let sources = manifest.lines().filter_map(|line| line.trim().strip_prefix("[\"../")?.split('"').next());
    let sources: Vec<_> =
        sources.filter(|source| !source.starts_with("target/") && !source.contains('*')).collect();
    assert!(sources.len() > 5, "{sources:?}");
    for source in sources {
        assert!(packaging("..").join(source).exists(), "{source} is packaged and not there");
    }
}
