//! Facts over the API and the command line.

use serde_json::{Value, json};

use crate::served::Served;

fn names(page: &Value) -> Vec<&str> {
    page["items"].as_array().unwrap().iter().map(|fact| fact["name"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_have_said_can_be_read() {
    let api = Served::start().await;
    let run = api.waiting_run().await;
    let mut sql = api.place.sql().await;
    let set = "insert into facts (name, value, version, changed_by) values ($1, $2, $3, $4::uuid)";
    let nobody = "00000000-0000-7000-8000-000000000000";
    for (name, value, version, by) in [
        ("context/a", "failing_over", 3, run.as_str()),
        ("context/b", "ready_for_failover", 2, nobody),
        ("other", "x", 1, run.as_str()),
    ] {
        sqlx::query(set).bind(name).bind(value).bind(version).bind(by).execute(&mut sql).await.unwrap();
    }

    let one = api.get("/api/v1/facts/context%2Fa").await.is(200);
    assert_eq!(one.header("etag"), "\"3\"");
    let fact = one.json();
    assert_eq!((&fact["name"], &fact["value"]), (&json!("context/a"), &json!("failing_over")));
    assert_eq!((&fact["version"], &fact["by"]), (&json!(3), &json!(run)));
    assert_eq!(api.get("/api/v1/facts/context%2Fc").await.is(404).problem(), "not-found");
    api.get("/api/v1/facts/a%00b").await.is(400);

    let page = api.get("/api/v1/facts?prefix=context/&limit=1").await.is(200).json();
    assert_eq!((names(&page), &page["next"]), (vec!["context/a"], &json!("context/a")));
    let page = api.get("/api/v1/facts?prefix=context/&limit=1&cursor=context/a").await.is(200).json();
    assert_eq!((names(&page), &page["next"]), (vec!["context/b"], &Value::Null));
    let page = api.get("/api/v1/facts").await.is(200).json();
    assert_eq!(names(&page), ["context/a", "context/b", "other"]);
    api.get("/api/v1/facts?limit=0").await.is(400);
    api.get("/api/v1/facts?what=x").await.is(400);

    // Tokens that are about some workflows see what their runs have said, and nothing else.
    for (workflow, seen) in [("waits", vec!["context/a", "other"]), ("another", vec![])] {
        let label = json!({ "principal": "admin", "label": workflow, "workflows": [workflow] });
        let token = api.token(label).await;
        assert_eq!(names(&api.get_as("/api/v1/facts", &token).await.is(200).json()), seen, "{workflow}");
        let status = if seen.is_empty() { 404 } else { 200 };
        api.get_as("/api/v1/facts/context%2Fa", &token).await.is(status);
        api.get_as("/api/v1/facts/context%2Fb", &token).await.is(404);
    }

    api.cli(&["facts", "context/"]).await.exits(0).says("VALUE").says("failing_over").says(&run);
    assert_eq!(api.cli(&["facts", "-o", "name"]).await.exits(0).out, "context/a\ncontext/b\nother\n");

    // Nobody but a step says anything: what was written by hand is found.
    api.place.run(&["check"]).await.exits(1).says("facts").says("it was changed by hand");
    api.end().await;
}
