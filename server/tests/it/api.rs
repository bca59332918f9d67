//! The API as its callers meet it: a real server, real HTTP, a real database.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::secrets::Target;
use crate::served::{Said, Served, said, waiting_plan};
use crate::support::Place;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_looked_at_and_steered() {
    let api = Served::start().await;
    let body = json!({ "plan": waiting_plan("waits"), "labels": { "site": "west" }, "exclusive": "vm-1", "why": "a drill" });
    let made = api.post("/api/v1/runs", body.clone()).await.is(202);
    let run = made.json()["run"].as_str().unwrap().to_owned();
    assert_eq!(made.header("location"), format!("/api/v1/runs/{run}"));
    api.until(&run, "waiting").await;
    // The answer is made without looking; what stands in it and never changes is what is there.
    let there = api.get(&format!("/api/v1/runs/{run}")).await.is(200).json();
    let lasting = |mut run: Value| {
        run.as_object_mut().unwrap().retain(|field, _| !["status", "note"].contains(&field.as_str()));
        run
    };
    assert_eq!(made.json()["status"], "running");
    assert_eq!(lasting(made.json()), lasting(there));

    let again = api.post("/api/v1/runs", body).await.is(409);
    assert_eq!((again.problem().as_str(), &again.json()["holder"]), ("exclusive-key-taken", &json!(run)));

    let found =
        api.get("/api/v1/runs?labels=site:west&status=waiting&exclusive=vm-1&live=true").await.is(200).json();
    assert_eq!(found["items"][0]["run"], json!(run));
    for none in
        ["labels=site:east", "workflow=other", "until=2020-01-01T00:00:00Z", "failing=w", "status=held"]
    {
        let found = api.get(&format!("/api/v1/runs?{none}")).await.is(200).json();
        assert_eq!(found["items"], json!([]), "{none}");
    }

    let steps = api.get(&format!("/api/v1/runs/{run}/steps")).await.is(200).json();
    assert_eq!((&steps[0]["step"], &steps[0]["forward"]["state"]), (&json!("w"), &json!("waiting")));
    let why = api.get(&format!("/api/v1/runs/{run}/explanation")).await.is(200).json();
    assert_eq!(why["why"], "w waits for the signal \"go\"");
    api.get(&format!("/api/v1/runs/{run}/runbook")).await.is(200);
    let svg = api.get(&format!("/api/v1/runs/{run}/picture?as=svg")).await.is(200);
    assert!(svg.text.starts_with("<svg") && svg.header("content-type") == "image/svg+xml");
    assert_eq!(api.get(&format!("/api/v1/runs/{run}/resources")).await.is(200).json(), json!([]));

    // Who submitted it, and why, stands in its first event; so does by which request.
    let journal = api.get(&format!("/api/v1/runs/{run}/journal")).await.is(200).json();
    let by = &journal["items"][0]["body"]["by"];
    assert_eq!((&by["who"], &by["why"]), (&json!("admin"), &json!("a drill")));
    assert!(by["via"].is_string());

    let pause = format!("/api/v1/runs/{run}/pause");
    let done = api.post_as(&pause, json!({}), &api.admin, Some("p")).await.is(200).json();
    assert_eq!(api.status(&run).await, "paused");
    // Asked again under the same key: the same answer, and nothing is done twice.
    assert_eq!(api.post_as(&pause, json!({}), &api.admin, Some("p")).await.is(200).json(), done);
    let other = api.post_as(&pause, json!({ "why": "another" }), &api.admin, Some("p")).await.is(422);
    assert_eq!(other.problem(), "idempotency-key-reused");
    let place = format!("/api/v1/runs/{run}/actions/{}", done["id"].as_str().unwrap());
    assert_eq!(api.get(&place).await.is(200).json(), done);

    // Whoever saw the run before that is told that it has changed, and by whom.
    let resume = format!("/api/v1/runs/{run}/resume");
    let old = api.request(Method::POST, &resume, &api.admin).header("if-match", "\"1\"");
    let old = said(old.header("content-type", "application/json").body("{}")).await.is(412);
    assert_eq!(old.problem(), "moved");
    assert!(old.json()["detail"].as_str().unwrap().starts_with("admin has asked for \"pause\""), "{old:?}");
    let now = api.get(&format!("/api/v1/runs/{run}")).await;
    let now = api.request(Method::POST, &resume, &api.admin).header("if-match", now.header("etag"));
    said(now.header("content-type", "application/json").body("{}")).await.is(200);
    let wrong = api.post(&format!("/api/v1/runs/{run}/steps/nothing/retry"), json!({})).await.is(409);
    assert_eq!(wrong.problem(), "refused");
    api.post(&format!("/api/v1/runs/{run}/signals"), json!({ "name": "go", "payload": { "by": "hand" } }))
        .await
        .is(200);
    api.until(&run, "succeeded").await;
    api.post(&format!("/api/v1/runs/{run}/commit"), json!({})).await.is(200);
    api.until(&run, "committed").await;
    let late = api.post(&format!("/api/v1/runs/{run}/rollback"), json!({})).await.is(409);
    assert_eq!(late.problem(), "refused");
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_run_within_a_run_is_shown_by_its_parent() {
    let api = Served::start().await;
    let wait = |name: &str, input: Value, after: &[&str]| json!({ "name": name, "activity": "wait", "input": input, "after": after, "nothing_to_undo": "it waits" });
    let inner = json!({ "workflow": "inner", "steps": [wait("a", json!({ "for": "1ms" }), &[]), wait("b", json!({ "signal": "go" }), &["a"])] });
    let plan =
        json!({ "workflow": "outer", "steps": [{ "name": "within", "activity": "run", "plan": inner }] });
    let run = api.post("/api/v1/runs", json!({ "plan": plan })).await.is(202).json()["run"]
        .as_str()
        .unwrap()
        .to_owned();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    let child = loop {
        let steps = api.get(&format!("/api/v1/runs/{run}/steps")).await.is(200).json();
        let child = steps[0]["child"].clone();
        if child["status"] == "waiting" && child["done"] == 1 {
            break child;
        }
        assert!(std::time::Instant::now() < deadline, "{steps}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(child["steps"], 2);
    let go = format!("/api/v1/runs/{}/signals", child["run"].as_str().unwrap());
    api.post(&go, json!({ "name": "go" })).await.is(200);
    api.until(&run, "succeeded").await;
    let steps = api.get(&format!("/api/v1/runs/{run}/steps")).await.is(200).json();
    assert_eq!((&steps[0]["child"]["status"], &steps[0]["child"]["done"]), (&json!("succeeded"), &json!(2)));
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_is_the_same_run_however_often_and_wherever_it_is_submitted() {
    let target = Target::new().await;
    let one = Served::calling(Place::with_url().await, "n1", &target, "", &[]).await;
    let two = Served::calling(one.place.another(), "n2", &target, "", &[]).await;
    let three = Served::calling(one.place.another(), "n3", &target, "", &[]).await;
    let call = json!({ "name": "call", "activity": "http", "input": { "url": format!("{}/200", target.origin) },
        "nothing_to_undo": "a test" });
    let mut plan = waiting_plan("once");
    plan["steps"][0]["after"] = json!(["call"]);
    plan["steps"].as_array_mut().unwrap().push(call);
    let body = json!({ "plan": plan });
    let mut asked = tokio::task::JoinSet::new();
    for api in [&one, &two, &three].into_iter().cycle().take(64) {
        let request = api.request(Method::POST, "/api/v1/runs", &one.admin).header("idempotency-key", "once");
        asked.spawn(said(request.header("content-type", "application/json").body(body.to_string())));
    }
    let answers = asked.join_all().await;
    // How far it is may differ; what was submitted may not.
    let same = ["run", "workflow", "plan_hash", "submitted_at"];
    let told = |answer: Said| {
        let (location, run) = (answer.header("location").to_owned(), answer.is(202).json());
        (location, same.map(|field| run[field].as_str().unwrap().to_owned()))
    };
    let runs: std::collections::BTreeSet<_> = answers.into_iter().map(told).collect();
    assert_eq!(runs.len(), 1, "{runs:?}");
    let (location, [run, ..]) = runs.into_iter().next().unwrap();
    assert_eq!(location, format!("/api/v1/runs/{run}"));
    one.until(&run, "waiting").await;
    one.post(&format!("/api/v1/runs/{run}/signals"), json!({ "name": "go" })).await.is(200);
    one.until(&run, "succeeded").await;
    assert_eq!(target.heard().len(), 1, "it ran once: {:?}", target.heard());
    let stored = "select (select count(*) from runs), (select count(*) from events where kind = 'started')";
    let stored: (i64, i64) = sqlx::query_as(stored).fetch_one(&mut one.place.sql().await).await.unwrap();
    assert_eq!(stored, (1, 2), "a run of two steps");
    let other = json!({ "plan": waiting_plan("another") });
    let other = one.post_as("/api/v1/runs", other, &one.admin, Some("once")).await.is(422);
    assert_eq!(other.problem(), "idempotency-key-reused");
    // Another caller who thinks of the same key means another run.
    let ben = one.person("ben", &["operator", "author"]).await;
    let his = one.post_as("/api/v1/runs", body, &ben, Some("once")).await.is(202).json();
    assert_ne!(his["run"], json!(run));
    three.end().await;
    two.end().await;
    one.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_follow_on_each_other_and_events_are_streamed_from_where_one_was_cut_off() {
    let api = Served::start().await;
    let mut runs = Vec::new();
    for _ in 0..5 {
        runs.push(api.waiting_run().await);
    }
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/api/v1/runs?limit=2{cursor}")).await.is(200).json();
        for run in page["items"].as_array().unwrap() {
            seen.push(run["run"].as_str().unwrap().to_owned());
        }
        let Some(next) = page["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    runs.reverse();
    assert_eq!(seen, runs);

    let run = &runs[0];
    api.until(run, "waiting").await;
    let watch = api.request(Method::GET, &format!("/api/v1/runs/{run}/events"), &api.admin);
    let mut watching = watch.header("last-event-id", "1").send().await.unwrap();
    assert_eq!(watching.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut told = false;
    while let Ok(Some(some)) = tokio::time::timeout(Duration::from_secs(10), watching.chunk()).await.unwrap()
    {
        text += std::str::from_utf8(&some).unwrap();
        if !told && text.contains("event: started") {
            told = true;
            api.post(&format!("/api/v1/runs/{run}/signals"), json!({ "name": "go" })).await.is(200);
        }
    }
    assert!(!text.contains("event: submitted") && text.contains("event: acted"), "{text}");
    assert!(text.ends_with("event: end\ndata: {}\n\n"), "{text}");
    let ids: Vec<i64> = text.lines().filter_map(|line| line.strip_prefix("id: ")?.parse().ok()).collect();
    assert_eq!(ids, (2..2 + ids.len() as i64).collect::<Vec<_>>());
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_named_and_changes_nothing() {
    let api = Served::start().await;
    let raw = async |body: Vec<u8>, kind: &str| {
        said(api.request(Method::POST, "/api/v1/runs", &api.admin).header("content-type", kind).body(body))
            .await
    };
    let deep = |n| format!("{}1{}", "[".repeat(n), "]".repeat(n));
    let plan = |input: &str| {
        format!(
            r#"{{"plan":{{"workflow":"w","steps":[{{"name":"a","activity":"wait","nothing_to_undo":"x","input":{input}}}]}}}}"#
        )
    };
    let json = "application/json";
    for (body, kind, status, problem, says) in [
        (b"{".to_vec(), json, 400, "bad-request", "EOF"),
        (b"\xff\xfe".to_vec(), json, 400, "bad-request", ""),
        (br#"{"plan":null,"plan":null}"#.to_vec(), json, 400, "bad-request", "plan"),
        (br#"{"plna":null}"#.to_vec(), json, 400, "bad-request", "plna"),
        (br#"{"priority":"high"}"#.to_vec(), json, 400, "bad-request", "body/priority"),
        (br#"{}"#.to_vec(), json, 400, "bad-request", "plan"),
        (plan(&deep(70)).into_bytes(), json, 400, "bad-request", "nested"),
        (plan(&deep(100_000)).into_bytes(), json, 400, "bad-request", "recursion"),
        (plan(r#"{"signal":"\u0000"}"#).into_bytes(), json, 400, "bad-request", "U+0000"),
        (plan(r#"{"until":1}"#).into_bytes(), json, 422, "bad-plan", "a"),
        (vec![b' '; (1 << 20) + 1], json, 413, "too-large", ""),
        (plan("{}").into_bytes(), "text/plain", 415, "unsupported-media-type", ""),
        (Vec::new(), json, 400, "bad-request", ""),
    ] {
        let answer = raw(body.clone(), kind).await;
        let shown = String::from_utf8_lossy(&body).chars().take(80).collect::<String>();
        assert_eq!((answer.status, answer.problem().as_str()), (status, problem), "{shown}: {answer:?}");
        assert!(answer.text.contains(says), "{shown}: {answer:?}");
        assert_eq!(answer.header("content-type"), "application/problem+json");
    }
    for (path, status) in [
        ("/api/v1/runs/no-uuid", 400),
        ("/api/v1/runs/00000000-0000-0000-0000-000000000000", 404),
        ("/api/v1/runs?limit=0", 400),
        ("/api/v1/runs?limit=501", 400),
        ("/api/v1/runs?limit=x", 400),
        ("/api/v1/runs?lmit=5", 400),
        ("/api/v1/runs?cursor=x", 400),
        ("/api/v1/runs?workflow=%00", 400),
        ("/api/v1/runs?status=x", 400),
        ("/api/v1/me?x=1", 400),
        ("/api/v1/nothing", 404),
        ("/nothing", 404),
        ("/problems/nothing", 404),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, status, "{path}: {answer:?}");
        answer.problem();
    }
    let answer = said(api.request(Method::DELETE, "/api/v1/runs", &api.admin)).await.is(405);
    assert_eq!(answer.problem(), "method-not-allowed");
    assert_eq!(api.get("/api/v1/runs").await.is(200).json()["items"], json!([]));
    api.end().await;
}

/// Whoever hangs up in the middle leaves nothing half done, and no session of the database in a transaction.
#[tokio::test(flavor = "multi_thread")]
async fn callers_who_hang_up_at_any_moment_leave_nothing_behind() {
    let api = Served::start().await;
    let body = json!({ "plan": waiting_plan("waits") }).to_string();
    for n in 0..60_u64 {
        let request =
            api.request(Method::POST, "/api/v1/runs", &api.admin).header("idempotency-key", format!("k-{n}"));
        let request = request.header("content-type", "application/json").body(body.clone()).send();
        let _ = tokio::time::timeout(Duration::from_micros(150 * n), request).await;
    }
    for n in 0..60 {
        api.post_as(
            "/api/v1/runs",
            json!({ "plan": waiting_plan("waits") }),
            &api.admin,
            Some(&format!("k-{n}")),
        )
        .await
        .is(202);
    }
    let all = api.get("/api/v1/runs?limit=500").await.is(200).json();
    assert_eq!(all["items"].as_array().unwrap().len(), 60);
    let mut sql = api.place.sql().await;
    let open: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'",
    )
    .fetch_one(&mut sql)
    .await
    .unwrap();
    assert_eq!(open, 0);
    api.end().await;
}

/// `docs/openapi.json` and `docs/problems.md` are what the program prints. After a change: BACKSTAY_UPDATE=1.
#[tokio::test(flavor = "multi_thread")]
async fn the_documents_of_the_api_are_those_of_the_program() {
    let place = Place::embedded();
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    for (file, arguments) in [("openapi.json", &["openapi"][..]), ("problems.md", &["openapi", "--problems"])]
    {
        let printed = place.run(arguments).await.exits(0).out;
        if std::env::var_os("BACKSTAY_UPDATE").is_some() {
            std::fs::write(docs.join(file), &printed).unwrap();
        }
        let kept = std::fs::read_to_string(docs.join(file)).unwrap_or_default();
        assert!(kept == printed, "docs/{file} is not what \"backstay {}\" prints", arguments.join(" "));
    }
    let api = Served::start().await;
    let served = api.get_as("/openapi.json", "").await.is(200).json();
    let kept: Value =
        serde_json::from_str(&std::fs::read_to_string(docs.join("openapi.json")).unwrap()).unwrap();
    assert_eq!(served, kept);
    let page = api.get_as("/problems/refused", "").await.is(200);
    assert!(page.text.contains("The run refused"));
    api.end().await;
}

/// What a key was used for is known for longer than the run that it made.
#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_a_run_that_was_removed_says_so_and_submits_nothing() {
    let api = Served::start().await;
    let step = json!({ "name": "say", "activity": "log", "input": { "text": "hello" }, "nothing_to_undo": "it talks" });
    let body = |workflow: &str| json!({ "plan": { "workflow": workflow, "steps": [step] } });
    let submit =
        async |workflow: &str| api.post_as("/api/v1/runs", body(workflow), &api.admin, Some("once")).await;
    let run = submit("says").await.is(202).json()["run"].as_str().unwrap().to_owned();
    api.until(&run, "succeeded").await;
    assert_eq!(submit("says").await.is(202).json()["run"], json!(run));
    let mut sql = api.place.sql().await;
    sqlx::raw_sql("select purge(0, 100, 100000, 3600)").execute(&mut sql).await.unwrap();
    api.get(&format!("/api/v1/runs/{run}")).await.is(404);

    let gone = submit("says").await.is(410);
    assert_eq!((gone.problem(), &gone.json()["run"]), ("run-removed".to_owned(), &json!(run)));
    assert_eq!(submit("else").await.is(422).problem(), "idempotency-key-reused");
    assert_eq!(api.get("/api/v1/runs").await.is(200).json()["items"], json!([]));
    let plan = api.place.file("again.json", &body("says")["plan"].to_string()).display().to_string();
    // The command line asks with more in its body, which is something else under that key.
    api.cli(&["run", "start", "--plan", &plan, "--key", "once"]).await.exits(2).complains("under this key");
    api.post_as("/api/v1/runs", body("says"), &api.admin, Some("anew")).await.is(202);
    api.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_packed_for_those_who_wish_it_and_open_to_no_page_of_others() {
    let api = Served::start().await;
    let asks =
        |path: &str| api.request(Method::GET, path, &api.admin).header("origin", "https://evil.example");
    let plain = said(asks("/openapi.json")).await.is(200);
    let packed = said(asks("/openapi.json").header("accept-encoding", "gzip")).await.is(200);
    assert_eq!((plain.header("content-encoding"), packed.header("content-encoding")), ("", "gzip"));
    let ask = api.request(Method::OPTIONS, "/api/v1/runs", "").header("origin", "https://evil.example");
    let asked_before = said(ask.header("access-control-request-method", "POST")).await.is(405);
    for answer in [plain, packed, asked_before, said(asks("/api/v1/runs")).await.is(200)] {
        let open = answer.headers.keys().find(|name| name.as_str().starts_with("access-control-"));
        assert_eq!(open, None, "{answer:?}");
        assert!(!answer.header("x-request-id").is_empty(), "{answer:?}");
    }
    api.end().await;
}
