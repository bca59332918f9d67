//! A node, and the commands about the database.

use rustix::process::Signal;
use serde_json::json;

use crate::served::Served;
use crate::support::{Place, Running, ran};

/// A run that succeeds, and one that is rolled back.
async fn two_runs(place: Place) -> Place {
    let api = Served::on(place, "n1").await;
    let say = |name: &str, after: &[&str]| {
        let undo = json!({ "activity": "log", "input": { "text": "not" } });
        json!({ "name": name, "activity": "log", "input": { "text": name }, "after": after, "undo": undo })
    };
    let good = json!({ "workflow": "good", "steps": [say("attach", &[])] });
    let fail = json!({ "name": "fail", "activity": "fail", "input": { "message": "no", "retryable": false }, "after": ["attach"],
        "nothing_to_undo": "it only fails" });
    let bad = json!({ "workflow": "bad", "steps": [say("attach", &[]), fail] });
    for (plan, status) in [(good, "succeeded"), (bad, "rolled_back")] {
        let run = api.post("/api/v1/runs", json!({ "plan": plan })).await.is(202).json();
        api.until(run["run"].as_str().unwrap(), status).await;
    }
    api.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_works_until_it_is_told_to_stop() {
    let place = Place::embedded();
    let mut node = Running::start_for_logs(&mut place.command(&["node", "--name", "n1"]));
    node.until_it_says("the node is ready").await;
    let twin = place.run(&["db", "status"]).await.exits(4);
    twin.complains("is in use by process");
    node.signal(Signal::TERM);
    let ended = node.end().await.exits(0).says("\"node\":\"n1\"").says("the node has ended");
    for line in ended.out.lines().filter(|line| line.starts_with('{')) {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    place.is_left_alone().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_shows_health_and_figures_where_it_is_told_to() {
    let place = Place::with_url().await;
    let mut command = place.command(&["node", "--name", "n1"]);
    let mut node = Running::start(command.env("BACKSTAY_NODE__HEALTH", "127.0.0.1:0"));
    let said = node.until_it_says("Health and figures on ").await;
    let base = said.rsplit("Health and figures on ").next().unwrap().trim().to_owned();
    let get = async |path: &str| {
        let answer = crate::served::client().get(format!("{base}{path}")).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(get("/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(get("/readyz").await, (200, "ready\n".to_owned()));
    // The first figures of the node come with its first round.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let (status, figures) = get("/metrics").await;
        assert_eq!(status, 200);
        if figures.contains("backstay_lease_age_seconds") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{figures}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(get("/api/v1/runs").await.0, 404, "and nothing else");

    // A schema that is not its own: nobody should count on it.
    let mut sql = place.sql().await;
    let becomes = async |status: u16, says: &str| {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let now = get("/readyz").await;
            if now.0 == status && now.1.contains(says) {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{now:?}, and not {says}");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let other = r"update _sqlx_migrations set checksum = checksum || '\x00' where version = 1";
    sqlx::raw_sql(other).execute(&mut sql).await.unwrap();
    becomes(503, "the database's schema is not that of this release").await;
    let back = "update _sqlx_migrations set checksum = substring(checksum for length(checksum) - 1) where version = 1";
    sqlx::raw_sql(back).execute(&mut sql).await.unwrap();
    becomes(200, "ready").await;
    node.signal(Signal::TERM);
    node.end().await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_finishes_what_a_killed_server_began() {
    let api = Served::with(Place::with_url().await, "n1", &[("BACKSTAY_NODE__LEASE", "1s")]).await;
    let wait = json!({ "name": "wait", "activity": "wait", "input": { "for": "2s" }, "nothing_to_undo": "it waits" });
    let say = json!({ "name": "say", "activity": "log", "input": { "text": "on" }, "after": ["wait"],
        "nothing_to_undo": "it talks" });
    let plan = json!({ "workflow": "drill", "steps": [wait, say] });
    let run = api.post("/api/v1/runs", json!({ "plan": plan })).await.is(202).json();
    let run = run["run"].as_str().unwrap().to_owned();
    api.signal(Signal::KILL);
    let place = api.killed().await;
    let mut node =
        Running::start_for_logs(&mut place.command(&["node", "--log", "info,backstay_engine=info"]));
    node.until_it_says("its runs are taken over").await;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !place.run(&["db", "status"]).await.exits(0).out.contains("1 succeeded") {
        assert!(std::time::Instant::now() < deadline, "the node does not finish the run {run}");
    }
    node.signal(Signal::TERM);
    node.end().await.exits(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_schema_is_behind_until_it_is_migrated() {
    let place = Place::with_url().await;
    place.run(&["db", "status"]).await.exits(1).says("behind").says("Runs:     none");
    place.run(&["db", "migrate"]).await.exits(0).says("The schema is up to date: ");
    place.run(&["db", "migrate"]).await.exits(0).says("The schema was up to date");
    let place = two_runs(place).await;
    let status = place.run(&["db", "status", "--json"]).await.exits(0);
    let status: serde_json::Value = serde_json::from_str(&status.out).unwrap();
    assert_eq!(status["runs"], serde_json::json!({ "rolled_back": 1, "succeeded": 1 }));
    assert_eq!(status["schema"], "up to date");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_binaries_are_found_or_it_is_said_why_not() {
    // Whatever the tests run on is here by now.
    let place = Place::with_url().await;
    let found = place.run(&["db", "install"]).await.exits(0).says(" is already here: /");
    found.says("It is not used now: database.url (or DATABASE_URL) names another server.");
    let mut elsewhere = place.command(&["db", "install"]);
    let elsewhere = ran(elsewhere.env("BACKSTAY_POSTGRES_BIN", "/nowhere")).await.exits(5);
    elsewhere.complains("Name the bin folder of a Postgres 15 or later");
    assert!(!place.path("postgres").exists(), "nothing is created");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_not_made_by_looking() {
    let place = Place::embedded();
    place.run(&["db", "status"]).await.exits(3).complains("There is no embedded database in ");
    assert!(!place.path("").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_does_not_answer_is_told_at_once_and_without_its_password() {
    let place = Place::embedded();
    for command in [["db", "migrate"].as_slice(), &["node"]] {
        let mut command = place.command(command);
        let refused = ran(command.env("DATABASE_URL", "postgres://me:hunter2@127.0.0.1:1/x")).await.exits(5);
        let refused = refused.complains("cannot be reached: Connection refused");
        assert!(!refused.err.contains("hunter2"), "{}", refused.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_that_was_tampered_with_is_found() {
    let place = Place::with_url().await;
    place.run(&["check"]).await.exits(1).complains("The schema is behind");
    let place = two_runs(place).await;
    place.run(&["check"]).await.exits(0).says("checked 2 runs, ");
    place.run(&["check", "nonsense"]).await.exits(2).complains("A run is named by its id");
    let nobody = uuid::Uuid::nil().to_string();
    place.run(&["check", &nobody]).await.exits(3).complains("there is no run");
    let mut sql = place.sql().await;
    let row: (uuid::Uuid,) = sqlx::query_as(
        // The row that has it, with what else was written with it.
        "with undone as (select run_id, seq from events where step = 'attach' and undo and kind = 'succeeded')
         delete from journal j using undone u
         where j.run_id = u.run_id
           and j.seq = (select max(seq) from journal where run_id = u.run_id and seq <= u.seq) returning j.run_id",
    )
    .fetch_one(&mut sql)
    .await
    .unwrap();
    let found = place.run(&["check", &row.0.to_string()]).await.exits(1).complains("violations were found");
    let found = found.says("checked 1 runs, ").says("[H1 sequence] run ");
    found.says("of H15 undone: When a run is rolled back, everything that may have had an effect is undone.");
    let found = place.run(&["check", "--json"]).await.exits(1);
    let found: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    assert_eq!(found["runs"], 2);
    assert_eq!(found["violations"][0]["run"], row.0.to_string());
}
