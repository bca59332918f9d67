//! Secrets in the database: who sets them, where they go, what seals them. That they are found nowhere else is in canary.rs.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::served::{Said, Served, said};
use crate::support::{Place, Ran};

/// A target on this machine: it remembers what it hears, and repeats it.
pub struct Target {
    pub origin: String,
    heard: Arc<Mutex<Vec<Heard>>>,
}

#[derive(Clone, Debug)]
pub struct Heard {
    pub uri: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Target {
    /// Answers `/NNN` with the status NNN, and everything that it heard, as it is and in the ways of others.
    pub async fn new() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let router = axum::Router::new().fallback(repeat).with_state(Arc::clone(&heard));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { origin, heard }
    }

    pub fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// What came in this header, call by call.
    pub fn header(&self, name: &str) -> Vec<String> {
        let text = |heard: Heard| Some(heard.headers.get(name)?.to_str().unwrap().to_owned());
        self.heard().into_iter().filter_map(text).collect()
    }

    /// The configuration that lets a server call it.
    pub fn allowed(&self) -> String {
        format!("[[http.origins]]\norigin = \"{}\"\nnetworks = [\"127.0.0.0/8\"]\n", self.origin)
    }
}

async fn repeat(
    State(list): State<Arc<Mutex<Vec<Heard>>>>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    body: Bytes,
) -> (StatusCode, HeaderMap, String) {
    let body = String::from_utf8_lossy(&body).into_owned();
    let heard = Heard { uri: uri.to_string(), headers, body };
    list.lock().unwrap().push(heard.clone());
    let status = uri.path().trim_start_matches('/').parse().ok();
    let status = status.and_then(|status| StatusCode::from_u16(status).ok()).unwrap_or(StatusCode::OK);
    let mut answered = HeaderMap::new();
    answered.insert("content-type", "application/json".parse().unwrap());
    let texts: Vec<String> =
        heard.headers.values().map(|text| text.to_str().unwrap_or_default().to_owned()).collect();
    if let Some(text) = heard.headers.get("x-token") {
        answered.insert("location", text.clone());
        answered.insert("x-request-id", text.clone());
    }
    let encoded: Vec<_> = texts.iter().map(|text| crate::canary::base64(text.as_bytes())).collect();
    let hex: Vec<_> = texts.iter().map(|text| crate::canary::hex(text.as_bytes())).collect();
    let parsed: Value = serde_json::from_str(&heard.body).unwrap_or_default();
    let said = json!({ "uri": heard.uri, "headers": texts, "encoded": encoded, "hex": hex, "body": heard.body,
        "parsed": parsed, "error": format!("bad credentials: {}", texts.join(", ")) });
    (status, answered, said.to_string())
}

impl Served {
    pub async fn put(&self, path: &str, body: &Value, more: &[(&str, &str)]) -> Said {
        let mut request = self.request(Method::PUT, path, &self.admin);
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        said(request.header("content-type", "application/json").body(body.to_string())).await
    }

    /// A server that may call this target.
    pub async fn calling(
        place: Place,
        name: &str,
        target: &Target,
        more: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let file = place.file(&format!("{name}.toml"), &format!("{}{more}", target.allowed()));
        let mut all = vec![("BACKSTAY_CONFIG", file.to_str().unwrap())];
        all.extend(settings);
        Self::with(place, name, &all).await
    }

    /// One call, with a secret in a header. How it ended, and its error.
    pub async fn call(&self, target: &Target, secret: &str) -> (String, String) {
        let input = json!({ "url": format!("{}/200", target.origin), "headers": { "X-Token": { "secret": secret } } });
        self.play(json!({ "workflow": "call", "retry": { "attempts": 1 },
            "steps": [{ "name": "call", "activity": "http", "input": input, "nothing_to_undo": "a test" }] }))
            .await
    }

    /// A run to its end: its status, and the error of its step "call".
    pub async fn play(&self, plan: Value) -> (String, String) {
        let author = self.author().await;
        let run = self.post_as("/api/v1/runs", json!({ "plan": plan }), &author, None).await.is(202).json();
        let run = run["run"].as_str().unwrap().to_owned();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let status = self.status(&run).await;
            if ["succeeded", "rolled_back"].contains(&status.as_str()) {
                let journal = self.get(&format!("/api/v1/runs/{run}/journal")).await.is(200).json();
                let events = journal["items"].as_array().unwrap();
                let error = events.iter().find_map(|event| event["body"]["error"]["message"].as_str());
                return (status, error.unwrap_or_default().to_owned());
            }
            assert!(std::time::Instant::now() < deadline, "it is {status}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn author(&self) -> String {
        let asked = json!({ "name": "anna", "roles": ["author", "operator"] });
        self.post("/api/v1/principals", asked).await;
        self.token(json!({ "principal": "anna", "label": "a test" })).await
    }

    /// The command, with this on its stdin.
    pub async fn fed(&self, arguments: &[&str], text: &str) -> Ran {
        let mut command = self.place.command(arguments);
        let mut child = command.env("BACKSTAY_SERVER", &self.base).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        Ran {
            code: output.status.code(),
            signal: None,
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

const PATH: &str = "/api/v1/secrets/cloud-token";

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_set_replaced_and_removed_and_each_change_stands_in_the_trail() {
    let api = Served::start().await;
    let asked = |text: &str| json!({ "text": text, "origins": ["https://Cloud.example:443"], "programs": ["b", "a", "b"] });
    let made = api.put(PATH, &asked("first-text"), &[("idempotency-key", "k")]).await.is(200);
    let (view, etag) = (made.json(), made.header("etag").to_owned());
    assert_eq!(etag, format!("\"{}\"", view["version"]));
    assert_eq!((&view["changed_by"], &view["broken"]), (&json!("admin"), &Value::Null));
    assert_eq!(
        (&view["origins"], &view["programs"]),
        (&json!(["https://cloud.example:443"]), &json!(["a", "b"]))
    );
    assert!(view.get("text").is_none() && !made.text.contains("first-text"));

    // Asked again since the answer was lost: the same, once. Another text under that key is another asking.
    assert_eq!(api.put(PATH, &asked("first-text"), &[("idempotency-key", "k")]).await.is(200).json(), view);
    let other = api.put(PATH, &asked("other-text"), &[("idempotency-key", "k")]).await.is(422);
    assert_eq!(other.problem(), "idempotency-key-reused");
    let fewer = json!({ "text": "first-text", "programs": ["a"] });
    assert_eq!(
        api.put(PATH, &fewer, &[("idempotency-key", "k")]).await.is(422).problem(),
        "idempotency-key-reused"
    );

    // What is there is replaced by those who saw it.
    assert_eq!(api.put(PATH, &asked("second-text"), &[]).await.is(428).problem(), "precondition-required");
    assert_eq!(
        api.put(PATH, &asked("second-text"), &[("if-match", "\"7777\"")]).await.is(412).problem(),
        "moved"
    );
    let second = api.put(PATH, &asked("second-text"), &[("if-match", &etag)]).await.is(200);
    assert_eq!(api.put(PATH, &asked("other"), &[("if-match", &etag)]).await.is(412).problem(), "moved");
    let third = api.put(PATH, &asked("second-text"), &[("if-match", "*")]).await.is(200);
    let (second, third) = (second.header("etag").to_owned(), third.header("etag").to_owned());
    assert!(etag != second && second != third && third != etag, "{etag} {second} {third}");
    let new = "/api/v1/secrets/new";
    assert_eq!(api.put(new, &asked("second-text"), &[("if-match", &etag)]).await.is(412).problem(), "moved");
    api.get(new).await.is(404);

    for (body, says) in [
        (json!({ "text": "abc", "programs": ["a"] }), "4 to 65536 bytes"),
        (json!({ "text": "x".repeat(65_537), "programs": ["a"] }), "4 to 65536 bytes"),
        (json!({ "text": "abcdef" }), "may go nowhere"),
        (json!({ "text": "abcdef", "origins": ["cloud.example"] }), "origins"),
        (json!({ "text": "abcdef", "programs": ["a\n"] }), "control characters"),
        (json!({ "text": 12345678, "programs": ["a"] }), "nothing of it is repeated"),
        (json!({ "text": "abcdef", "program": ["a"] }), "nothing of it is repeated"),
    ] {
        let answer = api.put(new, &body, &[]).await.is(400);
        assert!(answer.text.contains(says), "{answer:?}");
        assert!(!answer.text.contains("abcdef") && !answer.text.contains("12345678"), "{answer:?}");
    }
    let good = json!({ "text": "abcdef", "programs": ["a"] });
    for name in ["-a", "a%2Fb", "a%20b", &"a".repeat(101)] {
        api.put(&format!("/api/v1/secrets/{name}"), &good, &[]).await.is(400);
    }

    for name in ["a", "b", "c"] {
        api.put(&format!("/api/v1/secrets/{name}"), &good, &[]).await.is(200);
    }
    let page = api.get("/api/v1/secrets?limit=2").await.is(200).json();
    let names = |page: &Value| {
        page["items"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect::<Vec<_>>()
    };
    assert_eq!((names(&page), &page["next"]), (vec![json!("a"), json!("b")], &json!("b")));
    let page = api.get("/api/v1/secrets?limit=2&cursor=b").await.is(200).json();
    assert_eq!((names(&page), &page["next"]), (vec![json!("c"), json!("cloud-token")], &Value::Null));

    let delete = |seen: &str| {
        let request = api.request(Method::DELETE, PATH, &api.admin).header("idempotency-key", "gone");
        said(if seen.is_empty() { request } else { request.header("if-match", seen) })
    };
    assert_eq!(delete(&second).await.is(412).problem(), "moved");
    delete(&third).await.is(204);
    delete(&third).await.is(204);
    api.get(PATH).await.is(404);
    said(api.request(Method::DELETE, PATH, &api.admin)).await.is(404);
    // Another one under that name is another one: whoever saw the old one has not seen it.
    let anew = api.put(PATH, &asked("fourth-text"), &[]).await.is(200).header("etag").to_owned();
    for old in [&etag, &second, &third] {
        assert_ne!(anew, *old);
        assert_eq!(api.put(PATH, &asked("x-text"), &[("if-match", old)]).await.is(412).problem(), "moved");
        let delete = api.request(Method::DELETE, PATH, &api.admin).header("if-match", old);
        assert_eq!(said(delete).await.is(412).problem(), "moved");
    }

    let trail = api.get("/api/v1/audit?about=cloud-token").await.is(200);
    let lines: Vec<_> =
        trail.json()["items"].as_array().unwrap().iter().map(|it| it["entry"]["did"].clone()).collect();
    assert_eq!(lines, ["setSecret", "removeSecret", "setSecret", "setSecret", "setSecret"]);
    assert!(!trail.text.contains("-text"), "{trail:?}");
    let viewer = api.person("vera", &["viewer", "operator", "author", "approver", "overrider"]).await;
    for (method, path) in
        [(Method::GET, "/api/v1/secrets"), (Method::PUT, PATH), (Method::POST, "/api/v1/keys/rewrap")]
    {
        said(api.request(method, path, &viewer)).await.is(403);
    }
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_opens_what_is_set_at_that_moment_and_only_for_where_it_may_go() {
    let (its, other) = (Target::new().await, Target::new().await);
    let place = Place::with_url().await;
    let both = format!(
        "{}[secrets]\ndir = \"{}\"\n[secrets.uses.both]\norigins = [\"{}\"]\n[secrets.uses.narrow]\norigins = [\"{}\"]\n",
        other.allowed(),
        place.path("secrets").display(),
        its.origin,
        other.origin
    );
    std::fs::create_dir_all(place.path("secrets")).unwrap();
    let api = Served::calling(place, "n1", &its, &both, &[]).await;
    let set = async |name: &str, text: &str, origins: &[&str], if_match: &[(&str, &str)]| {
        let body = json!({ "text": text, "origins": origins });
        api.put(&format!("/api/v1/secrets/{name}"), &body, if_match).await.is(200);
    };

    let (ended, why) = api.call(&its, "token").await;
    assert_eq!(ended, "rolled_back");
    assert!(
        why.contains(
            "there is no secret \"token\": neither in the database (backstay secret set) nor in a file"
        ),
        "{why}"
    );
    set("token", "first-text", &[&its.origin], &[]).await;
    assert_eq!(api.call(&its, "token").await.0, "succeeded");
    set("token", "second-text", &[&its.origin], &[("if-match", "\"1\"")]).await;
    assert_eq!(api.call(&its, "token").await.0, "succeeded");
    assert_eq!(its.header("x-token"), ["first-text", "second-text"]);

    let (_, why) = api.call(&other, "token").await;
    assert!(
        why.contains(&format!("may not be sent to {}: set it anew with --origin", other.origin)),
        "{why}"
    );
    // Where the configuration says something of it, it goes only where both allow it.
    set("narrow", "narrow-text", &[&its.origin], &[]).await;
    let (_, why) = api.call(&its, "narrow").await;
    assert!(why.contains("add it to secrets.uses.narrow.origins"), "{why}");
    // A file wins.
    set("both", "in-database", &[&its.origin], &[]).await;
    let file = api.place.path("secrets").join("both");
    std::fs::write(&file, "in-a-file\n").unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(api.call(&its, "both").await.0, "succeeded");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(api.call(&its, "both").await.0, "succeeded");
    assert_eq!(its.header("x-token")[2..], ["in-a-file", "in-database"]);
    assert_eq!(other.heard().len(), 0);

    // Who writes into the database can break a secret, and cannot send it elsewhere.
    let mut sql = api.place.sql().await;
    sqlx::query("update secrets set origins = array[$1] where name = 'token'")
        .bind(&other.origin)
        .execute(&mut sql)
        .await
        .unwrap();
    let (_, why) = api.call(&other, "token").await;
    assert!(why.contains("it was changed"), "{why}");
    sqlx::query("update secrets set (sealed_key, sealed, key_id) = (select sealed_key, sealed, key_id from secrets where name = 'both') where name = 'narrow'")
        .execute(&mut sql)
        .await
        .unwrap();
    assert!(api.call(&its, "narrow").await.1.contains("it was changed"));
    assert_eq!((its.heard().len(), other.heard().len()), (4, 0));
    api.end().await;
}

fn key(name: &str, digit: char) -> String {
    format!("{name}:{}\n", digit.to_string().repeat(64))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_takes_over_and_the_old_one_can_go() {
    let target = Target::new().await;
    let place = Place::with_url().await;
    let keys = place.file("keys", &key("k1", '1'));
    let write = |text: String| {
        // As those do who write files that others read: another one takes its place.
        let next = keys.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::set_permissions(&next, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(&next, &keys).unwrap();
    };
    write(key("k1", '1'));
    let file = ("BACKSTAY_SECRETS__KEY_FILE", keys.to_str().unwrap());
    let api = Served::calling(place, "n1", &target, "", &[file]).await;
    let set = async |name: &str| {
        let set = ["secret", "set", name, "--origin", &target.origin, "-o", "json"];
        api.fed(&set, "the-text\n").await.exits(0)
    };
    // More than a batch.
    for n in 0..130 {
        let body = json!({ "text": "the-text", "origins": [target.origin] });
        api.put(&format!("/api/v1/secrets/s{n:03}"), &body, &[]).await.is(200);
    }
    let mut sql = api.place.sql().await;
    let before: Vec<(String, Vec<u8>, i32)> =
        sqlx::query_as("select name, sealed, version from secrets order by name")
            .fetch_all(&mut sql)
            .await
            .unwrap();

    // Both keys: the new one seals, the old one opens. The server reads the file again by itself.
    write(key("k2", '2') + &key("k1", '1'));
    set("last").await.says("\"key\": \"k2\"");
    assert_eq!(api.call(&target, "s000").await.0, "succeeded");
    api.cli(&["secret", "keys"])
        .await
        .exits(0)
        .says("k1    false    true  130")
        .says("k2    true     true  1");

    // Broken off after the first batch, it goes on where it was. Asked again under its key it gives the same answer, and
    // does nothing: what is left is still left.
    let rewrap = async |query: &str| {
        let path = format!("/api/v1/keys/rewrap{query}");
        said(api.request(Method::POST, &path, &api.admin).header("idempotency-key", "first")).await
    };
    let first = rewrap("").await.is(200).json();
    assert_eq!(
        (&first["resealed"], &first["left"], &first["next"]),
        (&json!(100), &json!(30), &json!("s099"))
    );
    assert_eq!(rewrap("").await.is(200).json(), first);
    assert_eq!(rewrap("?after=s099").await.is(422).problem(), "idempotency-key-reused");
    api.cli(&["secret", "keys"]).await.exits(0).says("k1    false    true  30");
    sqlx::query("update secrets set sealed = 'x' where name = 's120'").execute(&mut sql).await.unwrap();
    let broken = api.cli(&["secret", "rewrap"]).await.exits(1);
    broken.says("29 sealed anew, 1 left").complains("s120: it cannot be opened");
    let doctor = async || {
        let mut command = api.place.command(&["doctor"]);
        crate::support::ran(
            command
                .env(file.0, file.1)
                .env("BACKSTAY_LISTEN__ADDRESS", api.base.rsplit("//").next().unwrap()),
        )
        .await
    };
    doctor().await.exits(1).says("the secret \"s120\" cannot be opened");
    api.cli(&["secret", "list"]).await.exits(0).says("it cannot be opened: it was changed");
    api.fed(&["secret", "set", "s120"], "the-text").await.exits(0).says(&target.origin);
    api.cli(&["secret", "rewrap"])
        .await
        .exits(0)
        .says("0 sealed anew, 0 left")
        .says("Every secret is sealed by the key \"k2\".");
    let after: Vec<(String, Vec<u8>, i32)> =
        sqlx::query_as("select name, sealed, version from secrets where name <> 'last' order by name")
            .fetch_all(&mut sql)
            .await
            .unwrap();
    let same = before.iter().zip(&after).filter(|(a, b)| a == b).count();
    assert_eq!(
        (same, after.len()),
        (129, 130),
        "no text and no version was touched but that which was set anew"
    );

    // Now the old key can go.
    write(key("k2", '2'));
    assert_eq!(api.call(&target, "s000").await.0, "succeeded");
    doctor().await.exits(0).says("every secret can be opened: 131");
    // Gone too early: the calls fail and say why, the server says so when it starts, and so does the doctor.
    write(key("k3", '3'));
    let (_, why) = api.call(&target, "s000").await;
    assert!(why.contains("it is sealed by the key \"k2\", which is not among the keys"), "{why}");
    doctor()
        .await
        .exits(1)
        .says("the key \"k2\" is not here, and seals 131 secrets")
        .says("\"k3\" is current");
    // A file that became nonsense changes nothing while the server runs.
    write(key("k2", '2'));
    assert_eq!(api.call(&target, "s000").await.0, "succeeded");
    write("nonsense".into());
    assert_eq!(api.call(&target, "s000").await.0, "succeeded");
    doctor().await.exits(1).says("is wrong in line 1");
    let place = api.end().await;

    // Neither does a server begin with a key of its own where others have sealed, nor with the keys in two places.
    let check = |arguments: &'static [&'static str], variables: Vec<(&'static str, String)>| {
        let mut command = place.command(arguments);
        command
            .envs(variables)
            .env("BACKSTAY_LISTEN__ADDRESS", "127.0.0.1:0")
            .env("BACKSTAY_LISTEN__HEALTH", "127.0.0.1:0");
        async move { crate::support::ran(&mut command).await }
    };
    let named = || (file.0, file.1.to_owned());
    check(&["serve"], vec![])
        .await
        .exits(1)
        .complains("131 secrets in the database are sealed by the key \"k2\"");
    check(&["config", "check"], vec![named()]).await.exits(1).complains("is wrong in line 1");
    check(&["config", "check"], vec![named(), ("BACKSTAY_SECRET_KEYS", key("k2", '2'))])
        .await
        .exits(2)
        .complains("which of them is meant");
    check(&["config", "check"], vec![("BACKSTAY_SECRET_KEYS", "k2:zz".into())])
        .await
        .exits(1)
        .complains("BACKSTAY_SECRET_KEYS is wrong in line 1");
    let gone = ("BACKSTAY_SECRETS__KEY_FILE", "/nowhere/keys".to_owned());
    check(&["config", "check"], vec![gone])
        .await
        .exits(1)
        .complains("the key file /nowhere/keys cannot be read");
    write(key("k2", '2'));
    std::fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    check(&["config", "check"], vec![named()])
        .await
        .exits(1)
        .complains("Everybody on this machine can read the keys");

    // Out of the environment, on the same database.
    let api = Served::calling(place, "n1", &target, "", &[("BACKSTAY_SECRET_KEYS", &key("k2", '2'))]).await;
    assert_eq!(api.call(&target, "s000").await.0, "succeeded");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_are_set_from_a_file_or_from_stdin_and_never_typed() {
    let api = Served::start().await;
    let file = api.place.file("text", "-----BEGIN-----\nabc\n-----END-----\n").display().to_string();
    api.cli(&["secret", "set", "pem", "--program", "backup", "--from-file", &file])
        .await
        .exits(0)
        .says("backup");
    api.cli(&["secret", "set", "pem", "--from-file", &file])
        .await
        .exits(0)
        .says("version     ")
        .says("backup");
    api.fed(&["secret", "set", "pem", "--origin", "https://a.example"], "text")
        .await
        .exits(0)
        .says("https://a.example");
    api.fed(&["secret", "set", "other"], "text").await.exits(2).complains("it may go nowhere");
    api.fed(&["secret", "set", "other", "--program", "p"], "abc\n")
        .await
        .exits(2)
        .complains("4 to 65536 bytes");
    api.cli(&["secret", "set", "a", "--program", "p", "--from-file", "/nowhere"])
        .await
        .exits(1)
        .complains("Opening /nowhere failed");
    api.cli(&["secret", "list"]).await.exits(0).says("pem").says("admin").says("https://a.example");
    assert_eq!(api.cli(&["secret", "list", "-o", "name"]).await.exits(0).out, "pem\n");
    api.cli(&["secret", "remove", "pem"]).await.exits(2).complains("add --yes");
    api.cli(&["secret", "remove", "pem", "--yes"]).await.exits(0).says("It is removed.");
    api.cli(&["secret", "remove", "pem", "--yes"]).await.exits(3).complains("there is no secret \"pem\"");
    api.end().await;
}

/// Who submits a workflow says what it is about, and not which of our secrets it is to send there.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_write_plans_names_no_secret_but_those_of_the_plan() {
    let target = Target::new().await;
    let place = Place::with_url().await;
    std::fs::create_dir_all(place.path("workflows")).unwrap();
    let call = format!(
        "{{ url: \"{}/200\", method: POST, headers: {{ X-Token: {{ secret: own }} }}, body: \"${{inputs.note}}\" }}",
        target.origin
    );
    let file = format!(
        "workflow: tell\ninput:\n  note: {{ description: any, examples: [hello] }}\nsteps:\n  - {{ name: call, activity: \
         http, input: {call}, nothing_to_undo: a test }}\n"
    );
    std::fs::write(place.path("workflows").join("tell.yaml"), file).unwrap();
    let more = format!("[workflows]\ndir = \"{}\"\n", place.path("workflows").display());
    let api = Served::calling(place, "n1", &target, &more, &[]).await;
    for name in ["own", "other"] {
        let body = json!({ "text": format!("text-of-{name}"), "origins": [target.origin] });
        api.put(&format!("/api/v1/secrets/{name}"), &body, &[]).await.is(200);
    }
    let ben = api.person("ben", &["operator"]).await;
    let submit = |note: Value| json!({ "workflow": "tell", "input": { "note": note } });
    for note in [json!({ "secret": "other" }), json!([{ "a": { "secret": "other", "prefix": "x" } }])] {
        let refused = api.post_as("/api/v1/runs", submit(note), &ben, None).await.is(403);
        let why = refused.json()["detail"].as_str().unwrap().to_owned();
        assert_eq!(
            why,
            "naming the secret \"other\" in an input needs the right \"define\", which ben has not"
        );
    }
    let trail = api.get("/api/v1/audit?who=ben&refused=true").await.json();
    assert_eq!(trail["items"].as_array().unwrap().len(), 2, "each attempt stands in the trail");
    let run = api.post_as("/api/v1/runs", submit(json!({ "secret": 1 })), &ben, None).await.is(202).json();
    api.until(run["run"].as_str().unwrap(), "succeeded").await;
    // Who may write plans may name it anywhere.
    let both = api.person("both", &["operator", "author"]).await;
    let run =
        api.post_as("/api/v1/runs", submit(json!({ "secret": "other" })), &both, None).await.is(202).json();
    api.until(run["run"].as_str().unwrap(), "succeeded").await;
    assert_eq!(target.heard()[1].body, "\"text-of-other\"");

    // The same when a step is tried again with another input: what the plan names there stays named.
    let plan = json!({ "workflow": "held", "retry": { "attempts": 1 }, "steps": [{ "name": "call", "activity": "http", "on_failure": "hold",
        "nothing_to_undo": "a test", "input": { "url": format!("{}/422", target.origin), "headers": { "X-Token": { "secret": "own" } } } }] });
    let run = api.post_as("/api/v1/runs", json!({ "plan": plan }), &both, None).await.is(202).json();
    let run = run["run"].as_str().unwrap().to_owned();
    api.until(&run, "held").await;
    let retry = |secret: &str| {
        let input = json!({ "url": format!("{}/200", target.origin), "headers": { "X-Token": { "secret": secret } } });
        json!({ "input": input, "why": "another place" })
    };
    let path = format!("/api/v1/runs/{run}/steps/call/retry");
    api.post_as(&path, retry("other"), &ben, None).await.is(403);
    assert_eq!(api.status(&run).await, "held");
    api.post_as(&path, retry("own"), &ben, None).await.is(200);
    api.until(&run, "succeeded").await;
    assert!(!target.header("x-token").contains(&"text-of-other".to_owned()));

    // What a step that is a run is given can become the name of a secret, two plans further in.
    let call = json!({ "name": "call", "activity": "http", "nothing_to_undo": "a test", "input": {
        "url": { "$given": "/url" }, "headers": { "X-Token": { "secret": { "$given": "/token" } } } } });
    let innermost = json!({ "workflow": "innermost", "retry": { "attempts": 1 }, "steps": [call] });
    let between = json!({ "workflow": "between", "retry": { "attempts": 1 }, "steps": [{ "name": "deeper", "activity": "run",
        "plan": innermost, "input": { "url": { "$given": "/url" }, "token": { "$given": "/name" } } }] });
    let given = |path: &str, name: &str| json!({ "url": format!("{}/{path}", target.origin), "name": name });
    let plan = json!({ "workflow": "deep", "retry": { "attempts": 1 }, "steps": [{ "name": "run", "activity": "run",
        "on_failure": "hold", "plan": between, "input": given("422", "own") }] });
    let run = api.post_as("/api/v1/runs", json!({ "plan": plan }), &both, None).await.is(202).json();
    let run = run["run"].as_str().unwrap().to_owned();
    api.until(&run, "held").await;
    let path = format!("/api/v1/runs/{run}/steps/run/retry");
    let retry = |name: &str| json!({ "input": given("200", name), "why": "another place" });
    let refused = api.post_as(&path, retry("other"), &ben, None).await.is(403).json();
    assert!(refused["detail"].as_str().unwrap().contains("naming the secret \"other\""), "{refused}");
    api.post_as(&path, retry("own"), &ben, None).await.is(200);
    api.until(&run, "succeeded").await;
    assert!(!target.header("x-token").contains(&"text-of-other".to_owned()));
    api.end().await;
}
