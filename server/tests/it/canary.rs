//! A secret that would be noticed anywhere goes everywhere that secrets go, and is then looked for in everything that comes
//! out of the program: logs, answers, figures, files, the whole database.

use std::collections::BTreeMap;

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::secrets::Target;
use crate::served::{Served, said};
use crate::support::Place;

/// With characters that are escaped in URLs, JSON, HTML and shells.
const CANARY: &str = "c4nary-8d1f0b52/&\"+%<x>~end";
/// One that stands in a line of its own, and one that is a number.
const DIGITS: &str = "739184650273918465";
/// These reach no target: they stand where no secret belongs.
const STRAY: &str = "5tr4y-c4nary-61b7";

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in bytes.chunks(3) {
        let n = (0..3).fold(0, |n, at| n << 8 | u32::from(*three.get(at).unwrap_or(&0)));
        for at in 0..4 {
            let digit = char::from(DIGITS[(n >> (18 - 6 * at) & 63) as usize]);
            out.push(if at <= three.len() { digit } else { '=' });
        }
    }
    out
}

/// What to look for: any long part of a canary, in any of the ways in which it might be written.
fn traces(canary: &str) -> Vec<String> {
    let mut parts = vec![canary.to_owned()];
    // What is left of it when everything special is escaped in a way that nobody has thought of.
    parts.extend(
        canary.split(|c: char| !c.is_ascii_alphanumeric()).filter(|part| part.len() >= 7).map(str::to_owned),
    );
    let mut all = Vec::new();
    for part in &parts {
        let percent: String = part
            .bytes()
            .map(|b| match b.is_ascii_alphanumeric() {
                true => char::from(b).to_string(),
                false => format!("%{b:02X}"),
            })
            .collect();
        all.extend([
            part.clone(),
            percent.to_lowercase(),
            percent,
            hex(part.as_bytes()),
            hex(part.as_bytes()).to_uppercase(),
        ]);
        all.extend(part.bytes().map(|byte| format!("%{byte:02X}")).reduce(|all, one| all + &one));
        for before in 0..3 {
            let text = base64(&[vec![b'x'; before], part.as_bytes().to_vec()].concat());
            // Without the digits in which its neighbours have a part.
            let core = text.trim_end_matches('=');
            let core = &core[before + usize::from(before > 0)..core.len() - 1];
            all.extend([core.to_owned(), core.replace('+', "-").replace('/', "_")]);
        }
    }
    all.retain(|form| form.len() >= 7);
    all
}

/// Everything that was seen, by where.
#[derive(Default)]
pub struct Seen(pub BTreeMap<String, String>);

impl Seen {
    pub fn add(&mut self, place: impl Into<String>, text: &str) {
        let all = self.0.entry(place.into()).or_default();
        all.push_str(text);
        all.push('\n');
    }

    pub fn found(&self, canary: &str) -> Vec<String> {
        let mut found = Vec::new();
        for form in traces(canary) {
            for (place, text) in &self.0 {
                if let Some(at) = text.find(&form) {
                    let from =
                        (0..=at.saturating_sub(150)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
                    let around: String = text[from..].chars().take(300).collect();
                    found.push(format!("{place} has {form:?}: …{around}…"));
                }
            }
        }
        found
    }
}

#[test]
fn the_search_finds_what_is_there() {
    for canary in [CANARY, DIGITS, STRAY] {
        for text in [
            canary.to_owned(),
            serde_json::to_string(canary).unwrap(),
            hex(canary.as_bytes()),
            base64(canary.as_bytes()),
            base64(format!("x{canary}y").as_bytes()),
            base64(format!("xy{canary}").as_bytes()),
            base64(format!("user:{canary}").as_bytes()),
            url::form_urlencoded::byte_serialize(canary.as_bytes()).collect(),
            canary.bytes().map(|byte| format!("%{byte:02X}")).collect(),
        ] {
            let mut seen = Seen::default();
            seen.add("here", &format!("something {text} or other"));
            assert!(!seen.found(canary).is_empty(), "{text}");
        }
        let mut seen = Seen::default();
        seen.add("here", "c4n4ry, 73918, and others");
        assert_eq!(seen.found(canary), Vec::<String>::new());
    }
}

/// The database as text: as a dump has it, or where there is no program for that, each row of each table.
pub async fn dump(place: &Place) -> String {
    let dumped =
        tokio::process::Command::new("pg_dump").arg(format!("--dbname={}", place.url())).output().await;
    if let Ok(dumped) = dumped
        && dumped.status.success()
    {
        return String::from_utf8_lossy(&dumped.stdout).into_owned();
    }
    let mut sql = place.sql().await;
    let tables: Vec<String> =
        sqlx::query_scalar("select tablename::text from pg_tables where schemaname = 'public'")
            .fetch_all(&mut sql)
            .await
            .unwrap();
    let mut all = String::new();
    for table in tables {
        let rows = sqlx::AssertSqlSafe(format!("select t::text from public.\"{table}\" t"));
        let rows: Vec<String> = sqlx::query_scalar(rows).fetch_all(&mut sql).await.unwrap();
        all += &format!("{table}\n{}\n", rows.join("\n"));
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_found_where_it_was_sent_and_nowhere_else() {
    let target = Target::new().await;
    let place = Place::with_url().await;
    let program = "[command.programs.peek]\npath = \"/bin/sh\"\nargs = [\"-c\", \"cat; echo; echo $TOKEN >&2; exit 3\"]\nallow = [\"*\"]\nallow_env = [\"TOKEN\"]\n";
    let api = Served::calling(place, "n1", &target, program, &[("BACKSTAY_LOG__FILTER", "trace")]).await;
    let mut seen = Seen::default();

    // Set, in every way; and set wrongly.
    let places = ["--origin", &target.origin, "--program", "peek"];
    for (name, text) in [("canary", CANARY), ("digits", DIGITS)] {
        let ran = api.fed(&[&["secret", "set", name][..], &places].concat(), text).await.exits(0);
        seen.add("command", &format!("{ran:?}"));
        let body = json!({ "text": text, "origins": [target.origin], "programs": ["peek"] });
        for more in [&[][..], &[("if-match", "\"1\""), ("idempotency-key", "k")], &[("if-match", "\"9\"")]] {
            seen.add(
                "answer",
                &format!("{:?}", api.put(&format!("/api/v1/secrets/{name}"), &body, more).await),
            );
        }
    }
    for body in [
        json!(STRAY),
        json!({ "text": [STRAY], "origins": [target.origin] }),
        json!({ "text": { STRAY: 1 }, "origins": [target.origin] }),
        json!({ "text": STRAY, "origins": STRAY }),
        json!({ "text": STRAY, STRAY: STRAY }),
        json!({ "text": STRAY }),
        json!({ "text": 739_184_650_273_918_465_i64 }),
        json!({ "text": STRAY.repeat(5000), "origins": [target.origin] }),
    ] {
        seen.add("answer", &format!("{:?}", api.put("/api/v1/secrets/stray", &body, &[]).await.is(400)));
    }
    for text in [
        format!("{{\"text\": \"{STRAY}"),
        format!("{{\"text\":\"{STRAY}\",\"text\":\"{STRAY}\"}}"),
        STRAY.to_owned(),
    ] {
        let request = api.request(Method::PUT, "/api/v1/secrets/stray", &api.admin);
        let request = request.header("content-type", "application/json").body(text.clone());
        seen.add("answer", &format!("{:?}", said(request).await.is(400)));
        let request = api.request(Method::PUT, "/api/v1/secrets/stray", &api.admin).body(text);
        seen.add("answer", &format!("{:?}", said(request).await.is(415)));
    }
    let ran = api.fed(&["secret", "set", "stray"], STRAY).await.exits(2);
    seen.add("command", &format!("{ran:?}"));
    for keys in [STRAY, &format!("k1:{STRAY}")] {
        for command in [&["config", "check"][..], &["config", "show"], &["doctor"]] {
            let ran = crate::support::ran(api.place.command(command).env("BACKSTAY_SECRET_KEYS", keys)).await;
            seen.add("command", &format!("{ran:?}"));
        }
    }

    // Sent, to a target that repeats everything in all ways, and says yes, no, and not now.
    let call = |status: u16| {
        json!({ "url": format!("{}/{status}", target.origin), "method": "POST",
            "query": { "token": { "secret": "canary" }, "n": { "secret": "digits" } },
            "headers": { "Authorization": { "secret": "canary", "prefix": "Bearer " }, "X-Token": { "secret": "canary" }, "X-Digits": { "secret": "digits" } },
            "body": { "deep": [{ "password": { "secret": "canary" } }], "digits": { "secret": "digits" } } })
    };
    let peek = json!({ "program": "peek", "stdin": { "secret": "canary" }, "env": { "TOKEN": { "secret": "canary" } } });
    let step = |name: &str, activity: &str, input: Value| json!({ "name": name, "activity": activity, "input": input, "on_failure": "continue", "undo": { "activity": activity, "input": input } });
    let elsewhere =
        json!({ "url": "http://elsewhere.example/", "headers": { "X-Token": { "secret": "canary" } } });
    let closed = json!({ "url": "http://127.0.0.1:9/", "headers": { "X-Token": { "secret": "canary" } } });
    let plan = json!({ "workflow": "canaries", "retry": { "attempts": 2, "first": "10ms" }, "undo_retry": { "attempts": 2, "first": "10ms" }, "steps": [
        step("good", "http", call(200)), step("bad", "http", call(422)), step("down", "http", call(503)), step("away", "http", call(302)),
        step("program", "command", peek), step("elsewhere", "http", elsewhere), step("closed", "http", closed),
        { "name": "turn", "activity": "fail", "after": ["good", "bad", "down", "away", "program", "elsewhere", "closed"], "nothing_to_undo": "a test" } ] });
    let anna = api.person("anna", &["author", "operator"]).await;
    let run = api.post_as("/api/v1/runs", json!({ "plan": plan }), &anna, None).await.is(202).json();
    let run = run["run"].as_str().unwrap().to_owned();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !["stuck", "rolled_back"].contains(&api.status(&run).await.as_str()) {
        assert!(
            std::time::Instant::now() < deadline,
            "{:?}",
            api.get(&format!("/api/v1/runs/{run}/explanation")).await
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }

    // It arrived, so this test is about something.
    let heard = target.heard();
    assert!(heard.len() >= 5, "{}", heard.len());
    let first = &heard[0];
    assert_eq!(first.headers["authorization"], format!("Bearer {CANARY}"));
    let body: Value = serde_json::from_str(&first.body).unwrap();
    assert_eq!(body, json!({ "deep": [{ "password": CANARY }], "digits": DIGITS }));

    // Everything that can be asked, of a run and of all.
    let document = api.get_as("/openapi.json", "").await.is(200).json();
    let mut asked = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_none() || path.ends_with("/events") {
            continue;
        }
        let path = path.replace("{run}", &run).replace("{step}", "good").replace("{name}", "canary");
        let query = if path.ends_with("/picture") { "?as=svg" } else { "" };
        if !path.contains('{') {
            let answer = api.get(&format!("{path}{query}")).await;
            asked += usize::from(answer.status == 200);
            seen.add(format!("GET {path}"), &format!("{answer:?}"));
        }
    }
    assert!(asked >= 15, "{asked}");
    let mut events =
        api.request(Method::GET, &format!("/api/v1/runs/{run}/events"), &api.admin).send().await.unwrap();
    while let Ok(Ok(Some(piece))) =
        tokio::time::timeout(std::time::Duration::from_secs(1), events.chunk()).await
    {
        seen.add("events", &String::from_utf8_lossy(&piece));
    }
    drop(events);
    for command in [
        &["run", "get", &run][..],
        &["run", "steps", &run],
        &["run", "resources", &run],
        &["run", "explain", &run],
        &["run", "export", &run],
        &["run", "list"],
        &["secret", "list"],
        &["secret", "keys"],
        &["secret", "rewrap"],
        &["audit", "list"],
        &["config", "show"],
        &["doctor"],
        &["check", &run],
        &["explain", &run],
        &["export", &run],
    ] {
        let ran = api.cli(command).await;
        seen.add(format!("backstay {}", command.join(" ")), &format!("{}{}", ran.out, ran.err));
    }
    let figures = crate::served::client().get(format!("{}/metrics", api.health));
    seen.add("/metrics", &said(figures).await.is(200).text);
    seen.add("database", &dump(&api.place).await);
    api.signal(Signal::TERM);
    let (place, out) = api.ended_with().await;
    seen.add("stdout", &out);
    seen.add("log", &std::fs::read_to_string(place.log()).unwrap());

    let found: Vec<_> = [CANARY, DIGITS, STRAY].iter().flat_map(|canary| seen.found(canary)).collect();
    assert!(found.is_empty(), "{found:#?}");
    // What was searched is what is meant.
    for (at, has) in [
        ("log", "http_422"),
        ("database", "http_422"),
        ("database", "[secret canary]"),
        ("stdout", "Listening on"),
        ("/metrics", "backstay_"),
        ("events", "http_503"),
        ("answer", "nothing of it is repeated"),
        (&format!("GET /api/v1/runs/{run}/journal"), "[secret canary]"),
        (&format!("backstay run export {run}"), "[secret canary]"),
    ] {
        assert!(
            seen.0.get(at).is_some_and(|text| text.contains(has)),
            "{at} has no {has}: {:?}",
            seen.0.get(at).map(|text| text.chars().take(2000).collect::<String>())
        );
    }
    let debug = seen.0["log"].matches("\"level\":\"DEBUG\"").count();
    assert!(debug > 100, "{debug}");
    drop(place);
}
