//! Who may do what: every operation of the document, for everybody.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::served::{Said, Served, said};

/// What each role may do, written down a second time: the matrix is a decision, and a change of it has to be one.
fn may(role: &str) -> Vec<&'static str> {
    match role {
        "viewer" => vec!["view"],
        "operator" => {
            vec!["view", "submit", "signal", "steer", "edit", "roll_back", "commit", "close", "pools"]
        }
        "author" => vec!["view", "submit", "define"],
        "approver" => vec!["view", "approve"],
        "overrider" => vec!["view", "override"],
        "admin" => vec!["view", "pools", "admin"],
        _ => vec![],
    }
}

struct Op {
    id: String,
    method: Method,
    path: String,
    right: String,
}

fn operations(document: &Value) -> Vec<Op> {
    let mut all = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let path = path
                .replace("{run}", "00000000-0000-7000-8000-000000000000")
                .replace("{id}", "00000000-0000-7000-8000-000000000000")
                .replace("{step}", "a")
                .replace("{name}", "nobody");
            assert!(!path.contains('{'), "{path} has a parameter that this test does not know");
            all.push(Op {
                id: operation["operationId"].as_str().unwrap().to_owned(),
                method: method.to_uppercase().parse().unwrap(),
                path,
                right: operation["x-right"].as_str().unwrap().to_owned(),
            });
        }
    }
    all
}

async fn ask(api: &Served, op: &Op, token: &str) -> Said {
    let request = api.request(op.method.clone(), &op.path, token);
    let request = match op.method {
        Method::GET | Method::DELETE => request,
        _ => request.header("content-type", "application/json").body("{}"),
    };
    said(request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_is_closed_to_strangers_and_open_to_those_who_have_its_right() {
    let api = Served::start().await;
    let document = api.get_as("/openapi.json", "").await.is(200).json();
    let operations = operations(&document);
    assert!(operations.len() > 35, "{}", operations.len());
    let mut tokens = BTreeMap::new();
    for role in ["viewer", "operator", "author", "approver", "overrider", "admin"] {
        tokens.insert(role, api.person(&format!("a-{role}"), &[role]).await);
    }
    tokens.insert("nothing", api.person("a-nobody", &[]).await);
    // Fewer rights than their owner.
    let narrow =
        api.token(json!({ "principal": "a-operator", "label": "l", "rights": ["signal", "admin"] })).await;
    let revoked = api.person("revoked", &["operator", "admin"]).await;
    let id = api.get("/api/v1/tokens?principal=revoked").await.json()["items"][0]["id"].clone();
    let path = format!("/api/v1/tokens/{}", id.as_str().unwrap());
    said(api.request(Method::DELETE, &path, &api.admin)).await.is(204);
    said(api.request(Method::DELETE, &path, &api.admin)).await.is(204);
    let expired = api.person("expired", &["operator", "admin"]).await;
    let mut sql = api.place.sql().await;
    sqlx::query("update tokens set expires_at = now() - interval '1 second' where principal = 'expired'")
        .execute(&mut sql)
        .await
        .unwrap();
    let disabled = api.person("disabled", &["operator", "admin"]).await;
    let patch = api.request(Method::PATCH, "/api/v1/principals/disabled", &api.admin);
    said(patch.header("content-type", "application/json").body(r#"{"disabled":true}"#)).await.is(200);

    for op in &operations {
        for (who, token) in [
            ("nobody", ""),
            ("garbage", "bst_0000000000000000000000000000000000000000000000000000000000000000"),
            ("another kind", "Zm9v"),
            ("revoked", &revoked),
            ("expired", &expired),
            ("disabled", &disabled),
        ] {
            let answer = ask(&api, op, token).await;
            assert_eq!(
                (answer.status, answer.problem().as_str()),
                (401, "unauthenticated"),
                "{who}: {}",
                op.id
            );
            assert_eq!(answer.json()["detail"], "a valid token is needed", "no hint for {who}");
        }
        for (role, token) in &tokens {
            let answer = ask(&api, op, token).await;
            let allowed = may(role).contains(&op.right.as_str());
            assert_eq!(answer.status != 403, allowed, "{role}, {}: {answer:?}", op.id);
            assert!(answer.status != 401 && answer.status < 500, "{role}, {}: {answer:?}", op.id);
        }
        // A right that the owner has not is not got by writing it on a token.
        let answer = ask(&api, op, &narrow).await;
        assert_eq!(answer.status != 403, op.right == "signal", "{}: {answer:?}", op.id);
    }
    let refused = api.get("/api/v1/audit?refused=true&limit=500&who=a-viewer").await.is(200).json();
    let count = operations.iter().filter(|op| op.right != "view").count();
    assert_eq!(refused["items"].as_array().unwrap().len(), count, "each refused attempt stands in the trail");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_away_is_gone_within_five_seconds_on_every_node() {
    let one = Served::start().await;
    let two = Served::on(one.place.another(), "n2").await;
    let ben = one.person("ben", &["operator"]).await;
    for api in [&one, &two] {
        api.get_as("/api/v1/me", &ben).await.is(200);
        // It is remembered by now.
        api.get_as("/api/v1/me", &ben).await.is(200);
    }
    // A watcher is sent away as well.
    let run = one.waiting_run().await;
    let path = format!("/api/v1/runs/{run}/events");
    let mut watching = two.request(Method::GET, &path, &ben).send().await.unwrap();
    let patch = one.request(Method::PATCH, "/api/v1/principals/ben", &one.admin);
    said(patch.header("content-type", "application/json").body(r#"{"roles":["viewer"]}"#)).await.is(200);
    let since = Instant::now();
    while two.post_as(&format!("/api/v1/runs/{run}/pause"), json!({}), &ben, None).await.status != 403 {
        assert!(since.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let patch = one.request(Method::PATCH, "/api/v1/principals/ben", &one.admin);
    said(patch.header("content-type", "application/json").body(r#"{"disabled":true}"#)).await.is(200);
    let since = Instant::now();
    while two.get_as("/api/v1/me", &ben).await.status != 401 {
        assert!(since.elapsed() < Duration::from_secs(5));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let cut = async { while let Ok(Some(_)) = watching.chunk().await {} };
    tokio::time::timeout(Duration::from_secs(8), cut).await.expect("the watcher is sent away");
    two.end().await;
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_about_one_workflow_sees_and_does_nothing_else() {
    let api = Served::start().await;
    let run = api.waiting_run().await;
    api.person("ben", &["operator", "author", "approver"]).await;
    let ben = api.token(json!({ "principal": "ben", "label": "l", "workflows": ["mine"] })).await;
    let document = api.get_as("/openapi.json", "").await.is(200).json();
    for op in operations(&document)
        .iter()
        .filter(|op| op.path.contains("/runs/") && !["admin", "override"].contains(&&*op.right))
    {
        let path = op.path.replacen("00000000-0000-7000-8000-000000000000", &run, 1);
        let op = Op { path, id: op.id.clone(), method: op.method.clone(), right: op.right.clone() };
        let body = json!({ "why": "w", "output": 1, "name": "go", "kind": "k", "became": "gone", "right": "r",
            "plan_hash": "h", "manifest": 1 });
        let drawn = if op.id == "drawRun" { "?as=dot" } else { "" };
        let request = api.request(op.method.clone(), &format!("{}{drawn}", op.path), &ben);
        let request = match op.method {
            Method::GET => request,
            _ => {
                let body = Value::Object(body_of(&document, &op.id, &body));
                request.header("content-type", "application/json").body(body.to_string())
            }
        };
        let answer = said(request).await;
        assert_eq!((answer.status, answer.problem().as_str()), (404, "not-found"), "{}: {answer:?}", op.id);
    }
    assert_eq!(api.status(&run).await, "waiting");
    assert_eq!(api.get_as("/api/v1/runs", &ben).await.is(200).json()["items"], json!([]));
    let many = api
        .post_as("/api/v1/bulk", json!({ "filter": {}, "verb": "pause", "for_real": true }), &ben, None)
        .await;
    assert_eq!(many.is(200).json()["found"], json!([]));
    let other = json!({ "plan": crate::served::waiting_plan("other") });
    api.post_as("/api/v1/runs", other, &ben, None).await.is(403);
    let own = json!({ "plan": crate::served::waiting_plan("mine") });
    let own = api.post_as("/api/v1/runs", own, &ben, None).await.is(202).json();
    assert_eq!(api.get_as("/api/v1/runs", &ben).await.is(200).json()["items"][0]["run"], own["run"]);
    api.end().await;
}

fn body_of(document: &Value, id: &str, all: &Value) -> serde_json::Map<String, Value> {
    let all_paths =
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values());
    let operation = all_paths.into_iter().find(|operation| operation["operationId"] == id).unwrap();
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let name = schema["$ref"].as_str().unwrap_or_default().rsplit('/').next().unwrap().to_owned();
    let properties =
        document["components"]["schemas"][&name]["properties"].as_object().cloned().unwrap_or_default();
    all.as_object()
        .unwrap()
        .iter()
        .filter(|(key, _)| properties.contains_key(*key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_text_of_a_token_is_shown_once_and_kept_nowhere() {
    let api = Served::start().await;
    api.post("/api/v1/principals", json!({ "name": "ci", "roles": ["operator"] })).await.is(201);
    let asked = json!({ "principal": "ci", "label": "l" });
    let made = api.post_as("/api/v1/tokens", asked.clone(), &api.admin, Some("t")).await.is(201).json();
    let text = made["token"].as_str().unwrap();
    assert!(text.starts_with("bst_") && text.len() == 68);
    // The first answer was lost: the same one again, and no second token.
    assert_eq!(api.post_as("/api/v1/tokens", asked, &api.admin, Some("t")).await.is(201).json(), made);
    let other = json!({ "principal": "ci", "label": "another" });
    assert_eq!(
        api.post_as("/api/v1/tokens", other, &api.admin, Some("t")).await.is(422).problem(),
        "idempotency-key-reused"
    );
    assert_eq!(api.get("/api/v1/tokens?principal=ci").await.json()["items"].as_array().unwrap().len(), 1);
    api.get_as("/api/v1/me", text).await.is(200);
    let mut sql = api.place.sql().await;
    for table in ["tokens", "audit", "answers", "journal", "runs"] {
        let statement =
            sqlx::AssertSqlSafe(format!("select coalesce(string_agg(t::text, ' '), '') from {table} t"));
        let dump: String = sqlx::query_scalar(statement).fetch_one(&mut sql).await.unwrap();
        assert!(!dump.contains(text) && !dump.contains(&text[4..]), "{table}");
        let as_bytes = hex(text.as_bytes());
        assert!(!dump.contains(&as_bytes), "{table}");
    }
    assert_eq!(
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(api.place.path("admin-token")).unwrap())
            & 0o777,
        0o600
    );
    api.end().await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
