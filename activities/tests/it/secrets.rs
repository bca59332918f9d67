//! Secrets reach their target, and nothing else: not the journal, not the log, not an error, not another target, and not a
//! target that asks for one.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use backstay_activities::CommandSettings;
use backstay_activities::secrets::SecretUse;
use serde_json::{Value, json};

use crate::support::{House, Reply, Settings, Target, program, quick, secrets};

/// It would be found in any text, also where it is escaped.
const CANARY: &str = "c4nary/&\"+%é-8d1f0b52";
const PLAIN: &str = "8d1f0b52";

fn may_go_to(target: &Target) -> SecretUse {
    SecretUse { origins: vec![target.origin()], programs: vec!["peek".into()] }
}

/// Everything that is logged, whatever the level.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The log of this process is one for all tests, and that is fine: no test logs a secret.
fn log() -> Log {
    static LOG: std::sync::OnceLock<Log> = std::sync::OnceLock::new();
    LOG.get_or_init(|| {
        let log = Log::default();
        let writer = log.clone();
        tracing_subscriber::fmt()
            .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
            .with_writer(move || writer.clone())
            .try_init()
            .unwrap();
        log
    })
    .clone()
}

/// A target that repeats everything that it hears, in every way.
fn echo(status: u16) -> impl Fn(&crate::support::Heard, usize) -> Reply + Send + Sync {
    move |heard, _| {
        let body = json!({ "path": heard.path, "headers": heard.headers, "body": heard.body,
            "parsed": serde_json::from_str::<Value>(&heard.body).unwrap_or_default() });
        let header = heard.headers.get("x-plain").cloned().unwrap_or_default();
        Reply::json(status, body)
            .with(&format!("location: /somewhere?{header}"))
            .with(&format!("x-request-id: {header}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_in_the_call_and_nowhere_else() {
    let log = log();
    let (good, bad) = (Target::new(echo(200)).await, Target::new(echo(422)).await);
    let uses = SecretUse { origins: vec![good.origin(), bad.origin()], ..may_go_to(&good) };
    // Headers cannot hold everything.
    let (dir, kept) = secrets(&[("canary", CANARY), ("plain", PLAIN)], uses);
    let scripts = tempfile::tempdir().unwrap();
    let mut peek =
        program(scripts.path(), "peek", "cat; echo; echo \"$TOKEN\" >&2; echo $1; exit ${CODE:-0}");
    peek.allow_env = vec!["TOKEN".into(), "CODE".into()];
    let command = CommandSettings { programs: [("peek".to_owned(), peek)].into(), locks: None };
    let house =
        House::new(Settings { secrets: kept, command, ..Settings::default() }.calling(&[&good, &bad])).await;

    let call = |target: &Target| {
        json!({ "url": target.url("/x"), "method": "POST",
            "query": { "token": { "secret": "canary" } },
            "headers": { "Authorization": { "secret": "plain", "prefix": "Bearer " }, "X-Plain": { "secret": "plain" } },
            "body": { "deep": [{ "password": { "secret": "canary" } }], "n": 1 } })
    };
    let run = |code: u8| {
        json!({ "program": "peek", "stdin": { "secret": "canary" },
            "env": { "TOKEN": { "secret": "plain" }, "CODE": code } })
    };
    let step = |name: &str, activity: &str, input: Value| {
        json!({ "name": name, "activity": activity, "input": input, "on_failure": "continue",
            "undo": { "activity": activity, "input": input } })
    };
    let plan = json!({ "workflow": "canaries", "retry": quick(2), "undo_retry": quick(2), "steps": [
        step("good", "http", call(&good)),
        step("bad", "http", call(&bad)),
        step("run", "command", run(0)),
        step("fails", "command", run(3)),
        { "name": "turn", "activity": "fail", "after": ["good", "bad", "run", "fails"], "nothing_to_undo": "a test" },
    ] });
    let (id, _) = house.play(plan).await;

    // It was sent, so this test is about something.
    let heard = good.heard().remove(0);
    assert_eq!(heard.headers["authorization"], format!("Bearer {PLAIN}"));
    let sent: Value = serde_json::from_str(&heard.body).unwrap();
    assert_eq!(sent, json!({ "deep": [{ "password": CANARY }], "n": 1 }));
    assert!(heard.path.contains(PLAIN));
    let output = house.outcome(id, "good", false).await.unwrap();
    assert!(output.to_string().contains("[secret canary]") && output.to_string().contains("[secret plain]"));
    let ran = house.outcome(id, "run", false).await.unwrap();
    assert_eq!(ran["stdout"].as_str().unwrap().trim(), "[secret canary]");
    assert_eq!(ran["stderr"].as_str().unwrap().trim(), "[secret plain]");

    let journal = house.everything(id).await;
    assert!(journal.contains("\"secret\":\"canary\""), "the journal names it");
    let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(logged.contains("[secret canary]") && logged.contains("http_422"));
    let mut sql = house.lab.sql().await.unwrap();
    let mut dump = String::new();
    for table in ["journal", "runs", "inbox"] {
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("select t::text from {table} t")))
                .fetch_all(&mut sql)
                .await
                .unwrap();
        dump += &rows.join("\n");
    }
    assert!(dump.contains("http_422"));
    for (place, text) in [("journal", journal), ("log", logged), ("database", dump)] {
        for form in [PLAIN, "c4nary"] {
            let at = text
                .find(form)
                .map(|at| text[at.saturating_sub(200)..].chars().take(400).collect::<String>());
            assert!(at.is_none(), "the {place} has the secret: …{}…", at.unwrap());
        }
    }
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_goes_only_where_it_may() {
    let (its, other) = (Target::new(echo(200)).await, Target::new(echo(200)).await);
    let (dir, kept) =
        secrets(&[("token", "12345678"), ("short", "123"), ("open", "12345678")], may_go_to(&its));
    std::fs::set_permissions(dir.path().join("open"), std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(dir.path().join("unlisted"), "12345678").unwrap();
    let house = House::new(Settings { secrets: kept, ..Settings::default() }.calling(&[&its, &other])).await;
    let ask = async |target: &Target, name: &str| {
        let input = json!({ "url": target.url("/"), "headers": { "X-Token": { "secret": name } } });
        house.once("http", input).await
    };
    assert!(ask(&its, "token").await.is_ok());
    for (target, name, says) in [
        (&other, "token", "add it to secrets.uses.token.origins"),
        (&its, "unlisted", "may go nowhere"),
        (&its, "missing", "may go nowhere"),
        (&its, "short", "shorter than"),
        (&its, "open", "open to every user"),
        (&its, "../token", "is no name of a secret"),
        (&its, ".hidden", "is no name of a secret"),
    ] {
        let refused = ask(target, name).await.unwrap_err();
        assert!(refused.message.contains(says), "{name}: {}", refused.message);
        assert_eq!((refused.code.as_str(), refused.retryable), ("secret_refused", false));
    }
    assert_eq!((its.heard().len(), other.heard().len()), (1, 0));
    let in_path = json!({ "url": its.url("/"), "path": [{ "secret": "token" }] });
    assert!(house.once("http", in_path).await.unwrap_err().message.contains("stands a secret"));
}

/// A target answers with what looks like the name of a secret of ours, and the plan passes it on.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_target_says_is_never_taken_for_the_name_of_a_secret() {
    let evil = Target::new(|_, _| {
        Reply::json(
            200,
            json!({ "note": { "secret": "token" }, "name": "token", "key": { "key_of": "this" } }),
        )
    });
    let (evil, its) = (evil.await, Target::new(echo(200)).await);
    let (_dir, kept) = secrets(&[("token", "s3cret-text")], may_go_to(&its));
    let house = House::new(Settings { secrets: kept, ..Settings::default() }.calling(&[&evil, &its])).await;
    let body = json!({ "note": { "$output": "ask/body/note" }, "named": { "secret": { "$output": "ask/body/name" } },
        "key": { "$output": "ask/body/key" }, "all": { "$output": "ask/body" } });
    let plan = json!({ "workflow": "passes-on", "retry": quick(1), "steps": [
        { "name": "ask", "activity": "http", "input": { "url": evil.url("/") }, "nothing_to_undo": "it looks" },
        { "name": "tell", "activity": "http", "after": ["ask"], "nothing_to_undo": "a test", "input": { "url": its.url("/"), "method": "POST",
            "headers": { "X-Own": { "secret": "token" } }, "body": body } } ] });
    let (run, _) = house.play(plan).await;
    let heard = its.heard().pop().unwrap_or_else(|| panic!("nothing was told"));
    assert_eq!(heard.headers["x-own"], "s3cret-text", "the plan's own word counts");
    assert!(!heard.body.contains("s3cret-text"), "{}", heard.body);
    let body: Value = serde_json::from_str(&heard.body).unwrap();
    assert_eq!(body["note"], json!({ "secret": "token" }), "what was said is passed on as it was said");
    assert_eq!(body["named"], json!({ "secret": "token" }), "{}", house.story(run).await);
    assert_eq!(body["key"], json!({ "key_of": "this" }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_text_is_used_from_the_next_call_on() {
    let target = Target::new(echo(200)).await;
    let (dir, kept) = secrets(&[("token", "first-text")], may_go_to(&target));
    let house = House::new(Settings { secrets: kept, ..Settings::default() }.calling(&[&target])).await;
    let input = json!({ "url": target.url("/"), "headers": { "X-Token": { "secret": "token" } } });
    house.once("http", input.clone()).await.unwrap();
    std::fs::write(dir.path().join("token"), "second-text\r\n").unwrap();
    house.once("http", input).await.unwrap();
    let texts: Vec<_> = target.heard().iter().map(|heard| heard.headers["x-token"].clone()).collect();
    assert_eq!(texts, ["first-text", "second-text"]);
}
