//! Bodies and plans that were written to hurt, against every operation that takes one: each is refused in words, soon, and
//! the server goes on in bounded memory.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::served::{Said, Served, said, waiting_plan};

/// Longer than any of this takes on a busy machine with an unoptimized program; what is quadratic takes minutes.
const SOON: Duration = Duration::from_secs(10);

struct Op {
    id: String,
    method: Method,
    path: String,
    body: Value,
}

/// Every operation that takes a body, about a run that waits in a step "w".
fn operations(document: &Value, run: &str) -> Vec<Op> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let mut schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            if let Some(name) = schema["$ref"].as_str() {
                schema = document.pointer(name.strip_prefix('#').unwrap()).unwrap();
            }
            let path = path.replace("{run}", run).replace("{step}", "w").replace("{name}", "nothing");
            all.push(Op {
                id: operation["operationId"].as_str().unwrap().to_owned(),
                method: method.to_uppercase().parse().unwrap(),
                path: path.replace("{id}", "00000000-0000-7000-8000-000000000000"),
                body: schema.clone(),
            });
        }
    }
    all
}

async fn send(api: &Served, op: &Op, body: impl Into<reqwest::Body>) -> Said {
    let request = api.request(op.method.clone(), &op.path, &api.admin);
    let begun = Instant::now();
    let answer = said(request.header("content-type", "application/json").body(body)).await;
    assert!(begun.elapsed() < SOON, "{} took {:?}", op.id, begun.elapsed());
    answer
}

/// The most memory that the server ever had, in MiB.
fn peak(api: &Served) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{}/status", api.pid())).unwrap();
    let line = text.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn no_operation_takes_json_that_hurts_and_none_breaks() {
    let mut api = Served::start().await;
    let run = api.waiting_run().await;
    api.until(&run, "waiting").await;
    let all = ["admin", "approver", "author", "operator", "overrider"];
    api.admin = api.person("everybody", &all).await;
    let document = api.get_as("/openapi.json", "").await.is(200).json();
    let operations = operations(&document, &run);
    assert!(operations.len() > 20, "{}", operations.len());
    let deep = |n| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let long = "x".repeat(1_000_000);
    // Wherever it stands, nobody can mean it.
    let never = [
        ("U+0000", r#""a\u0000b""#.to_owned()),
        ("U+0000 in a key", r#"{"a\u0000": 1}"#.to_owned()),
        ("half a character", r#""\ud800""#.to_owned()),
        ("the other half", r#""\udc00x""#.to_owned()),
        ("1e400", "1e400".to_owned()),
        ("2^64", "18446744073709551616".to_owned()),
        ("a key twice", r#"{"a": 1, "a": 2}"#.to_owned()),
        ("10,000 deep", deep(10_000)),
        ("65 deep", deep(65)),
        ("no JSON", "NaN".to_owned()),
    ];
    // What is of the wrong kind here is right there; none may break anything.
    let perhaps = [
        "null",
        "true",
        "-1",
        "9223372036854775808",
        "1e308",
        "[]",
        "{}",
        "\"\"",
        "[{}]",
        "\"\\u202e\\u0007\"",
    ];
    for op in &operations {
        for (what, json) in &never {
            let answer = send(&api, op, json.clone()).await;
            assert_eq!(answer.status, 400, "{what} as a body of {}: {answer:?}", op.id);
        }
        for json in perhaps {
            let answer = send(&api, op, json).await;
            assert!(answer.status < 500, "{json} as a body of {}: {answer:?}", op.id);
        }
        for name in op.body["properties"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            for (what, json) in &never {
                let answer = send(&api, op, format!("{{\"{name}\": {json}}}")).await;
                assert_eq!(answer.status, 400, "{what} as {name} of {}: {answer:?}", op.id);
                assert!(answer.text.len() < 20_000, "{what} as {name} of {}: {}", op.id, answer.text.len());
            }
            let large = [format!("\"{long}\""), format!("{{\"{long}\": 1}}")];
            for json in perhaps.iter().map(|json| (*json).to_owned()).chain(large) {
                let shown = json.chars().take(20).collect::<String>();
                let answer = send(&api, op, format!("{{\"{name}\": {json}}}")).await;
                assert!(answer.status < 500, "{shown} as {name} of {}: {answer:?}", op.id);
                assert!(answer.status < 300 || answer.text.len() < 20_000, "{shown} as {name} of {}", op.id);
            }
        }
    }
    assert!(peak(&api) < 1_024, "{} MiB", peak(&api));
    assert_eq!(
        api.get("/api/v1/runs?limit=500").await.is(200).json()["items"].as_array().unwrap().len(),
        1,
        "nothing is stored"
    );
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_have_a_mebibyte_and_not_a_byte_more() {
    let api = Served::start().await;
    let op =
        Op { id: "submitRun".into(), method: Method::POST, path: "/api/v1/runs".into(), body: Value::Null };
    let body = |size: usize| {
        let mut body = json!({ "plan": waiting_plan("large") }).to_string();
        body.push_str(&" ".repeat(size - body.len()));
        body
    };
    for (size, status) in [((1 << 20) - 1, 202), (1 << 20, 202), ((1 << 20) + 1, 413)] {
        send(&api, &op, body(size)).await.is(status);
    }
    // The same where nobody said beforehand how long it is.
    for (size, status) in [(1 << 20, 202), ((1 << 20) + 1, 413)] {
        assert_eq!(in_chunks(&api, body(size).as_bytes()).await, status, "{size}");
    }
    api.end().await;
}

/// Submits in pieces of which nobody has said how many there will be; gives the status.
async fn in_chunks(api: &Served, body: &[u8]) -> u16 {
    let mut stream = tokio::net::TcpStream::connect(api.base.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /api/v1/runs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         transfer-encoding: chunked\r\nconnection: close\r\n\r\n",
        api.admin
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    for piece in body.chunks(64 << 10) {
        stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await.unwrap();
        stream.write_all(piece).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap().parse().unwrap()
}

fn plan(steps: impl Iterator<Item = (String, Vec<String>)>) -> String {
    let undo = json!({ "activity": "log", "input": { "text": "x" } });
    let steps = steps.map(|(name, after)| json!({ "name": name, "activity": "log", "input": { "text": "x" }, "after": after, "undo": undo }));
    json!({ "plan": { "workflow": "hostile", "steps": steps.collect::<Vec<_>>() } }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn plans_that_hurt_are_refused_or_looked_at_within_bounds() {
    let api = Served::start().await;
    let s = |n: usize| format!("s{n}");
    let refused = [
        ("a step that waits for itself", plan([(s(0), vec![s(0)])].into_iter())),
        ("a circle of 5,000", plan((0..5_000).map(|n| (s(n), vec![s((n + 1) % 5_000)])))),
        ("a dependency on nothing", plan([(s(0), vec!["nobody".into()])].into_iter())),
        ("5,000 steps of one name", plan((0..5_000).map(|_| (s(0), vec![])))),
        ("a name that reads backwards", plan([("a\u{202e}b".into(), vec![])].into_iter())),
        ("a name that rings", plan([("a\u{7}".into(), vec![])].into_iter())),
        ("60,000 edges", plan((0..600).map(|n| (s(n), (n.saturating_sub(105)..n).map(s).collect())))),
    ];
    let to = |path: &str| Op { id: path.into(), method: Method::POST, path: path.into(), body: Value::Null };
    let places = [to("/api/v1/runs"), to("/api/v1/plans/check"), to("/api/v1/plans/picture?as=svg")];
    for (what, body) in &refused {
        for op in &places {
            let answer = send(&api, op, body.clone()).await;
            assert_eq!((answer.status, answer.problem().as_str()), (422, "bad-plan"), "{what}, {}", op.id);
            assert!(answer.text.len() < 100_000, "{what}: {} bytes of complaint", answer.text.len());
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(!detail.contains(['\u{202e}', '\u{7}']), "{what}: {detail}");
        }
    }
    // Each of these may be run. What each step's failure would undo has sixteen million lines, and nobody reads them.
    let large = [
        ("a chain of 4,000", plan((0..4_000).map(|n| (s(n), n.checked_sub(1).map(s).into_iter().collect())))),
        ("4,000 side by side", plan((0..4_000).map(|n| (s(n), vec![])))),
    ];
    for (what, body) in &large {
        for op in &places[1..] {
            let answer = send(&api, op, body.clone()).await.is(200);
            assert!(answer.text.len() < 16 << 20, "{what}, {}: {} bytes", op.id, answer.text.len());
        }
        let checked = send(&api, &places[1], body.clone()).await.json();
        assert_eq!(checked["if_fails_cut"], true, "{what}");
        // Whoever names the step gets the whole of it.
        let one = send(&api, &to("/api/v1/plans/check?failing=s3999"), body.clone()).await.is(200).json();
        assert_eq!((&one["if_fails_cut"], one["if_fails"].as_array().unwrap().len()), (&json!(false), 1));
        assert_eq!(one["if_fails"][0]["undone"].as_array().unwrap().len(), 4_000, "{what}");
        send(&api, &to("/api/v1/plans/check?failing=nobody"), body.clone()).await.is(400);
    }
    assert!(peak(&api) < 1_024, "{} MiB", peak(&api));
    api.end().await;
}
