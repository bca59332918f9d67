//! Faults of the database and of the way to it. Each is seen to happen, and each costs time only.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use backstay_engine::{Engine, NodeConfig, RunId, Status, SubmitOptions};
use backstay_tests::{Cut, Lab, Wire, plans};
use serde_json::json;
use sqlx::PgConnection;

use crate::until;

/// A lease that no outage of these tests outlives: whoever loses it has made a mistake.
fn config() -> NodeConfig {
    NodeConfig { lease: Duration::from_secs(10), rejoin: false, ..Lab::config("a") }
}

/// Runs with a key each; every fourth one has to be rolled back.
async fn submit_some(engine: &Engine, name: &str, count: usize) -> anyhow::Result<BTreeMap<RunId, Status>> {
    let mut expected = BTreeMap::new();
    for at in 0..count {
        let breaks = at % 4 == 3;
        let last = if breaks { json!({ "fails": "permanent" }) } else { json!({}) };
        let plan = plans::chain(engine, &format!("{name}{at}"), 4, last)?;
        let options = SubmitOptions { key: Some(format!("{name}{at}")), ..SubmitOptions::default() };
        // An answer that is lost is asked for again, as any client would.
        let run = loop {
            match engine.submit(&plan, options.clone()).await {
                Ok(submitted) => break submitted.run,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        expected.insert(run, if breaks { Status::RolledBack } else { Status::Succeeded });
    }
    Ok(expected)
}

/// All came to their right ends, by histories without a flaw, and nothing else is there.
async fn all_end_right(lab: &Lab, expected: &BTreeMap<RunId, Status>) -> anyhow::Result<()> {
    let mut sql = lab.sql().await?;
    until("all runs have ended", async || {
        let live = "select count(*) from runs where finished_at is null and status <> 'quarantined'";
        Ok(sqlx::query_scalar::<_, i64>(live).fetch_one(&mut sql).await? == 0)
    })
    .await?;
    for (run, status) in expected {
        assert_eq!(lab.engine.get(*run).await?.status, *status, "{}", lab.story(*run).await?);
        lab.assert_history(*run).await?;
    }
    let all: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(&mut sql).await?;
    assert_eq!(all as usize, expected.len());
    Ok(())
}

/// Sessions of the engine that wait for a lock.
pub(crate) async fn waiting(sql: &mut PgConnection, name: &str) -> anyhow::Result<i64> {
    let waiting = "select count(*) from pg_stat_activity
                   where datname = current_database() and application_name = $1 and wait_event_type = 'Lock'";
    Ok(sqlx::query_scalar(waiting).bind(name).fetch_one(sql).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_killed_again_and_again_lose_and_double_nothing() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(NodeConfig { lease: Duration::from_secs(4), ..config() }).await?;
    let epoch = node.epoch();
    let mut sql = lab.sql().await?;
    let killing = tokio::spawn(async move {
        let mut killed = BTreeMap::new();
        loop {
            let kill = "select application_name, pg_terminate_backend(pid) from pg_stat_activity
                        where datname = current_database() and application_name like 'backstay%'";
            let Ok(dead) = sqlx::query_as::<_, (String, bool)>(kill).fetch_all(&mut sql).await else {
                return killed;
            };
            for (name, _) in dead {
                *killed.entry(name).or_insert(0) += 1;
            }
            let enough = ["backstay writer", "backstay scout", "backstay lease"];
            if enough.iter().all(|name| killed.get(*name).is_some_and(|times| *times >= 4)) {
                return killed;
            }
            tokio::time::sleep(Duration::from_millis(70)).await;
        }
    });
    // Some by the node, some for whoever claims them, while the sessions die.
    let (mut expected, mut rounds) = (BTreeMap::new(), 0);
    let mut looks = lab.sql().await?;
    while !killing.is_finished() {
        rounds += 1;
        until("there are few", async || {
            let live = "select count(*) from runs where finished_at is null";
            Ok(sqlx::query_scalar::<_, i64>(live).fetch_one(&mut looks).await? <= 8)
        })
        .await?;
        expected.extend(submit_some(&engine, &format!("own{rounds}-"), 4).await?);
        expected.extend(submit_some(&lab.engine, &format!("free{rounds}-"), 4).await?);
    }
    println!("killed: {:?}, runs: {}", killing.await?, expected.len());
    all_end_right(&lab, &expected).await?;
    assert_eq!(node.epoch(), epoch, "no lease was lost");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_neither_lost_nor_doubled() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let (engine, node) = lab.node_by(wire.url(), config()).await?;
    let epoch = node.epoch();
    wire.cut(3, &[Cut::Answered, Cut::Before, Cut::Underway]);
    let (mut expected, mut rounds) = (BTreeMap::new(), 0);
    while wire.cuts().len() < 60 {
        rounds += 1;
        expected.extend(submit_some(&engine, &format!("own{rounds}-"), 4).await?);
    }
    all_end_right(&lab, &expected).await?;
    wire.cut(0, &[]);
    let cuts = wire.cuts();
    for cut in [Cut::Before, Cut::Underway, Cut::Answered] {
        assert!(cuts.iter().filter(|made| **made == cut).count() >= 15, "{cut:?}");
    }
    println!("{} cuts, {} runs", cuts.len(), expected.len());
    assert_eq!(node.epoch(), epoch, "the node goes on");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_is_lost_is_taken_up_again() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    wire.mark("due as materialized");
    let (_engine, node) = lab.node_by(wire.url(), config()).await?;
    let epoch = node.epoch();
    let mut expected = BTreeMap::new();
    for round in 1..=6 {
        let before = wire.cuts().len();
        // The first claim after this finds the runs; nobody hears that it did.
        expected.extend(submit_some(&lab.engine, &format!("r{round}-"), 4).await?);
        wire.cut(1, &[Cut::Answered]);
        until("a claim was lost", async || Ok(wire.cuts().len() > before)).await?;
        wire.cut(0, &[]);
    }
    all_end_right(&lab, &expected).await?;
    let mut sql = lab.sql().await?;
    let twice = "select count(*) from runs where claim > 1";
    let twice: i64 = sqlx::query_scalar(twice).fetch_one(&mut sql).await?;
    assert!(twice >= 1, "a claim that was lost had claimed something");
    assert_eq!(node.epoch(), epoch);
    Ok(())
}

/// The connection is cut while the statement still waits in the server: it is committed later, beside its repeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_statement_that_is_committed_beside_its_repeat_counts_once() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let wire = Wire::to(&lab.url).await?;
    let (engine, node) = lab.node_by(wire.url(), config()).await?;
    let mut holder = lab.sql().await?;
    let mut looks = lab.sql().await?;
    let mut expected = BTreeMap::new();
    for round in 1..=3 {
        let before = wire.cuts().len();
        // The node's own row: its append waits at the fence.
        sqlx::raw_sql("begin; select from nodes where ended_at is null for update")
            .execute(&mut holder)
            .await?;
        wire.cut(1, &[Cut::Underway]);
        let client = engine.clone();
        let submitting = tokio::spawn(async move { submit_some(&client, &format!("r{round}-"), 1).await });
        until("the connection was cut", async || Ok(wire.cuts().len() > before)).await?;
        wire.cut(0, &[]);
        until("the statement and its repeat wait", async || {
            Ok(waiting(&mut looks, "backstay writer").await? >= 2)
        })
        .await?;
        sqlx::raw_sql("rollback").execute(&mut holder).await?;
        // Nothing is under way when the next round begins: what is cut then is the submission.
        let submitted = submitting.await??;
        for run in submitted.keys() {
            lab.settled(*run).await?;
        }
        expected.extend(submitted);
    }
    all_end_right(&lab, &expected).await?;
    drop(node);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_and_slow_database_costs_time_only() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(config()).await?;
    let epoch = node.epoch();
    let mut nemesis = lab.sql().await?;
    let mut looks = lab.sql().await?;
    let slow = "create function slow() returns trigger language plpgsql as
                    'begin perform pg_sleep(0.01); return null; end';
                create trigger slow after insert on journal for each statement execute function slow()";
    sqlx::raw_sql(slow).execute(&mut nemesis).await?;
    let client = engine.clone();
    let submitting = tokio::spawn(async move { submit_some(&client, "run", 40).await });
    for table in ["journal", "runs", "nodes"] {
        let lock = format!("begin; lock table {table} in access exclusive mode");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut nemesis).await?;
        until("the engine waits for it", async || {
            let mut all = 0;
            for name in ["backstay writer", "backstay scout", "backstay lease"] {
                all += waiting(&mut looks, name).await?;
            }
            Ok(all >= 1)
        })
        .await?;
        sqlx::raw_sql("rollback").execute(&mut nemesis).await?;
    }
    let expected = submitting.await??;
    all_end_right(&lab, &expected).await?;
    assert_eq!(node.epoch(), epoch, "the lease was kept");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_every_notification_costs_a_poll_interval() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let poll = Duration::from_millis(300);
    let (_engine, _node) = lab.node(NodeConfig { poll, ..config() }).await?;
    let mut sql = lab.sql().await?;
    let mut killed = 0;
    let mut expected = BTreeMap::new();
    for round in 0..8 {
        let kill = "select count(pg_terminate_backend(pid)) from pg_stat_activity
                    where datname = current_database() and query ilike 'listen %'";
        killed += sqlx::query_scalar::<_, i64>(kill).fetch_one(&mut sql).await?;
        let begun = Instant::now();
        let runs = submit_some(&lab.engine, &format!("r{round}-"), 1).await?;
        for run in runs.keys() {
            lab.settled(*run).await?;
        }
        assert!(begun.elapsed() < poll * 2 + Duration::from_secs(2), "{:?}", begun.elapsed());
        expected.extend(runs);
    }
    assert!(killed >= 6, "{killed} listeners were killed");
    all_end_right(&lab, &expected).await
}

/// As an HTTP server drops the handler of a client that hung up.
#[tokio::test(flavor = "multi_thread")]
async fn a_submission_dropped_at_any_await_leaves_nothing_half_done() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(config()).await?;
    let (mut dropped, mut acknowledged) = (0, BTreeMap::new());
    let plan = plans::chain(&lab.engine, "same", 1, json!({}))?;
    let options = |at: usize| SubmitOptions { key: Some(format!("key {at}")), ..SubmitOptions::default() };
    for at in 0..300 {
        let engine = if at % 2 == 0 { &engine } else { &lab.engine };
        let mut polls = (at / 2) % 6;
        let mut submission = pin!(engine.submit(&plan, options(at)));
        let done = std::future::poll_fn(|context| match submission.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if polls == 0 => Poll::Ready(None),
            Poll::Pending => {
                polls -= 1;
                Poll::Pending
            }
        });
        match done.await {
            Some(submitted) => {
                acknowledged.insert(at, submitted?.run);
            }
            None => dropped += 1,
        }
    }
    assert!(dropped >= 50 && acknowledged.len() >= 50, "{dropped} dropped, {} not", acknowledged.len());
    let mut sql = lab.sql().await?;
    until("no session is in a transaction", async || {
        let open = "select count(*) from pg_stat_activity where datname = current_database()
                    and application_name like 'backstay%' and state like 'idle in transaction%'";
        Ok(sqlx::query_scalar::<_, i64>(open).fetch_one(&mut sql).await? == 0)
    })
    .await?;
    for (at, run) in &acknowledged {
        assert_eq!(lab.engine.get(*run).await?.client_key, options(*at).key);
    }
    for at in 0..300 {
        let again = lab.engine.submit(&plan, options(at)).await?;
        if let Some(run) = acknowledged.get(&at) {
            assert_eq!((again.run, again.created), (*run, false));
        }
        assert_eq!(lab.settled(again.run).await?, Status::Succeeded);
    }
    let runs: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(&mut sql).await?;
    assert_eq!(runs, 300, "one for each key");
    Ok(())
}

/// While the write that is refused is under way, the run comes to more: none of it may follow the quarantine.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_run_came_to_meanwhile_goes_with_it() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(config()).await?;
    let mut sql = lab.sql().await?;
    let branches = [("b", json!({ "millis": 200 })), ("c", json!({ "millis": 500 }))];
    let run = engine.submit(&plans::diamond(&engine, &branches)?, SubmitOptions::default()).await?.run;
    until("its branches are under way", async || Ok(lab.story(run).await?.contains("started c"))).await?;
    let mut holder = lab.sql().await?;
    let refuse = "create function refuse() returns trigger language plpgsql as
                      'begin raise check_violation using message = ''not this one''; end';
                  create trigger refuse before insert on journal for each row
                      when (new.kind = 'succeeded' and new.step = 'b') execute function refuse();
                  begin; lock table journal in share mode";
    sqlx::raw_sql(refuse).execute(&mut holder).await?;
    until("the outcome of b waits", async || Ok(waiting(&mut sql, "backstay writer").await? == 1)).await?;
    until("c is done as well", async || Ok(lab.world.touched("make", "c").await? == 1)).await?;
    // Its outcome is on its way to the driver, within this process.
    tokio::time::sleep(Duration::from_millis(100)).await;
    sqlx::raw_sql("commit").execute(&mut holder).await?;
    assert_eq!(lab.settled(run).await?, Status::Quarantined);
    let story = lab.story(run).await?;
    assert!(story.ends_with("quarantined") && !story.contains("succeeded c"), "{story}");
    lab.assert_history(run).await
}

/// Postgres refuses what one run of a batch writes. `kinds`: which of its events.
async fn one_run_is_refused(kinds: &str) -> anyhow::Result<(Lab, RunId)> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(config()).await?;
    let mut sql = lab.sql().await?;
    let slow = json!({ "millis": 300 });
    let plan = plans::diamond(&engine, &[("b", slow.clone()), ("c", slow.clone())])?;
    let poison = engine.submit(&plan, SubmitOptions::default()).await?.run;
    until("its branches are under way", async || Ok(lab.story(poison).await?.contains("started c"))).await?;
    let mut others = BTreeMap::new();
    for at in 0..10 {
        let plan = plans::chain(&engine, &format!("other{at}"), 2, slow.clone())?;
        others.insert(engine.submit(&plan, SubmitOptions::default()).await?.run, Status::Succeeded);
    }
    let trigger = format!(
        "create sequence most;
         create function refuse() returns trigger language plpgsql as $$
         begin
             if exists (select from fresh where run_id = '{poison}' and kind = any ('{{{kinds}}}')) then
                 perform setval('most', greatest((select count(distinct run_id) from fresh), nextval('most')));
                 raise check_violation using message = 'not this one';
             end if;
             return null;
         end $$;
         create trigger refuse after insert on journal referencing new table as fresh
             for each statement execute function refuse();
         begin; lock table journal in share mode"
    );
    let mut holder = lab.sql().await?;
    sqlx::raw_sql(sqlx::AssertSqlSafe(trigger)).execute(&mut holder).await?;
    // Their outcomes pile up behind the lock, and go in one batch.
    until("all outcomes are there", async || Ok(lab.world.things().await?.len() >= 11 + 3)).await?;
    until("the writer waits", async || Ok(waiting(&mut sql, "backstay writer").await? == 1)).await?;
    sqlx::raw_sql("commit").execute(&mut holder).await?;
    let begun = Instant::now();
    for run in others.keys() {
        assert_eq!(lab.settled(*run).await?, Status::Succeeded);
        lab.assert_history(*run).await?;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "nobody is delayed");
    assert_eq!(lab.settled(poison).await?, Status::Quarantined);
    let most: i64 = sqlx::query_scalar("select last_value from most").fetch_one(&mut sql).await?;
    assert!(most >= 2, "it was in a batch with others");
    let note = lab.engine.get(poison).await?.note.unwrap_or_default();
    assert!(note.contains("not this one"), "{note}");
    // It is left alone for good: the node neither repeats it nor stops.
    let after = submit_some(&engine, "after", 4).await?;
    for run in after.keys() {
        lab.settled(*run).await?;
    }
    let tries = "select last_value from most";
    let before: i64 = sqlx::query_scalar(tries).fetch_one(&mut sql).await?;
    let more = submit_some(&engine, "more", 4).await?;
    for run in more.keys() {
        lab.settled(*run).await?;
    }
    assert_eq!(
        sqlx::query_scalar::<_, i64>(tries).fetch_one(&mut sql).await?,
        before,
        "it is not tried again"
    );
    drop(node);
    Ok((lab, poison))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_whose_events_are_refused_is_quarantined_alone() -> anyhow::Result<()> {
    let (lab, poison) = one_run_is_refused("succeeded").await?;
    assert!(lab.story(poison).await?.ends_with("quarantined"), "{}", lab.story(poison).await?);
    lab.assert_history(poison).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_which_nothing_can_be_written_is_left_alone_by_the_index() -> anyhow::Result<()> {
    let (lab, poison) = one_run_is_refused("succeeded,quarantined").await?;
    assert!(!lab.story(poison).await?.contains("quarantined"));
    Ok(())
}
