//! Runs that are over are removed, wholly or not at all, and never a live one.

use std::sync::Arc;
use std::time::Duration;

use backstay_engine::store::{Purged, probe};
use backstay_engine::{
    Action, Engine, EngineError, NodeConfig, Plan, PlanBuilder, RunId, Status, SubmitOptions, Verb,
};
use backstay_tests::{Deaths, Lab};
use serde_json::json;
use sqlx::PgConnection;

use crate::until;

const NOW: Duration = Duration::ZERO;
const MONTH: Duration = Duration::from_secs(30 * 86_400);

async fn done(lab: &Lab, plan: &Arc<Plan>, key: Option<&str>) -> anyhow::Result<RunId> {
    let options = SubmitOptions { key: key.map(str::to_owned), ..SubmitOptions::default() };
    let run = lab.engine.submit(plan, options).await?.run;
    lab.settled(run).await?;
    Ok(run)
}

/// How many rows there are of a run, anywhere but among the retired keys.
async fn rows(lab: &Lab, run: RunId) -> anyhow::Result<i64> {
    let count = "select (select count(*) from runs where run_id = $1) + (select count(*) from journal where run_id = $1)
                      + (select count(*) from inbox where run_id = $1)";
    Ok(sqlx::query_scalar(count).bind(run.0).fetch_one(&mut lab.sql().await?).await?)
}

async fn waiting_for_locks(sql: &mut PgConnection) -> anyhow::Result<i64> {
    let waiting = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    Ok(sqlx::query_scalar(waiting).fetch_one(sql).await?)
}

/// So many steps, one after the other.
fn chain(engine: &Engine, steps: usize) -> anyhow::Result<Arc<Plan>> {
    let mut plan = PlanBuilder::new("chain");
    let mut before = Vec::new();
    for n in 0..steps {
        let step = plan.step(format!("s{n}"), "make").after(&before).undone_by("unmake", json!({}));
        before = vec![step.done()];
    }
    Ok(plan.check(engine.registry())?)
}

fn simple(engine: &Engine) -> anyhow::Result<Arc<Plan>> {
    chain(engine, 2)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_is_removed_wholly_and_what_lives_is_not() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let node = lab.engine.start_node(Lab::config("a")).await?;
    let plan = simple(&lab.engine)?;
    let mut over = Vec::new();
    for _ in 0..5 {
        over.push(done(&lab, &plan, None).await?);
    }
    let mut held = PlanBuilder::new("held");
    held.step("a", "make")
        .input(json!({ "fails": "permanent" }))
        .on_failure(backstay_engine::OnFailure::Hold)
        .undone_by("unmake", json!({}));
    let held = lab.engine.submit(&held.check(lab.engine.registry())?, SubmitOptions::default()).await?.run;
    assert_eq!(lab.settled(held).await?, Status::Held);
    let purge = async |older, batch| lab.engine.purge(older, MONTH, batch).await;
    assert_eq!(purge(Duration::from_secs(60), 10).await?.runs, 0, "they are not old enough");
    assert_eq!(
        (lab.engine.count_over(Duration::from_secs(60)).await?, lab.engine.count_over(NOW).await?),
        (0, 5)
    );
    assert_eq!(purge(NOW, 2).await?.runs, 2);
    assert_eq!((rows(&lab, over[0]).await?, rows(&lab, over[1]).await?), (0, 0), "the oldest first");
    assert!(rows(&lab, over[2]).await? > 1);
    assert_eq!(purge(NOW, 10).await?.runs, 3);
    assert_eq!(purge(NOW, 10).await?.runs, 0);
    assert!(rows(&lab, held).await? > 1, "it is not over");
    lab.assert_history(held).await?;
    node.drain(Duration::from_secs(1)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_means_its_run_for_a_while_after_it_is_removed() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let _node = lab.engine.start_node(Lab::config("a")).await?;
    let plan = simple(&lab.engine)?;
    let run = done(&lab, &plan, Some("k")).await?;
    assert_eq!(lab.engine.purge(NOW, MONTH, 10).await?.runs, 1);
    let with_key = || SubmitOptions { key: Some("k".into()), ..SubmitOptions::default() };
    // By way of the node, and without one.
    let elsewhere = Engine::open(lab.engine.store().clone(), lab.engine.registry().clone()).await?;
    for engine in [&lab.engine, &elsewhere] {
        let again = engine.submit(&plan, with_key()).await?;
        assert_eq!((again.run, again.created), (run, false));
        let other = engine.submit(&chain(engine, 3)?, with_key()).await;
        assert!(matches!(other, Err(EngineError::KeyReused { run: of, .. }) if of == run), "{other:?}");
    }
    let mut sql = lab.sql().await?;
    sqlx::query("update retired_keys set until = clock_timestamp()").execute(&mut sql).await?;
    let fresh = lab.engine.submit(&plan, with_key()).await?;
    assert!(fresh.created && fresh.run != run, "its time is over");
    lab.settled(fresh.run).await?;
    // The old meaning of the key makes room for the new one, and neither is kept for ever.
    assert_eq!(lab.engine.purge(NOW, NOW, 10).await?, Purged { runs: 1, keys: 0 });
    assert_eq!(lab.engine.purge(NOW, NOW, 10).await?, Purged { runs: 0, keys: 1 });
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_submits_a_key_while_its_run_is_removed_is_told_of_that_run() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let node = lab.engine.start_node(Lab::config("a")).await?;
    let plan = simple(&lab.engine)?;
    let run = done(&lab, &plan, Some("k")).await?;
    let elsewhere = Engine::open(lab.engine.store().clone(), lab.engine.registry().clone()).await?;
    let mut purging = probe::session(lab.engine.store(), "test").await?;
    let mut sql = lab.sql().await?;
    sqlx::raw_sql("begin").execute(&mut purging).await?;
    assert_eq!(probe::purge(&mut purging, NOW, MONTH, 10).await?.runs, 1);
    let submits = [lab.engine.clone(), elsewhere].map(|engine| {
        let plan = Arc::clone(&plan);
        let options = SubmitOptions { key: Some("k".into()), ..SubmitOptions::default() };
        tokio::spawn(async move { engine.submit(&plan, options).await.map(|done| (done.run, done.created)) })
    });
    until("both wait for the removal", async || Ok(waiting_for_locks(&mut sql).await? == 2)).await?;
    sqlx::raw_sql("commit").execute(&mut purging).await?;
    for submit in submits {
        assert_eq!(submit.await??, (run, false));
    }
    let left: i64 = sqlx::query_scalar("select count(*) from runs").fetch_one(&mut sql).await?;
    assert_eq!(left, 0);
    assert!(node.is_live());
    // Nobody else was harmed by it.
    done(&lab, &plan, Some("other")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_brought_back_meanwhile_is_not_removed() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let _node = lab.engine.start_node(Lab::config("a")).await?;
    let run = done(&lab, &simple(&lab.engine)?, None).await?;
    let back = || Action::new("somebody", "", Verb::RollBack(backstay_engine::machine::RollBack::default()));
    // Who brings it back has locked it: it is left out.
    let mut other = lab.sql().await?;
    sqlx::raw_sql("begin").execute(&mut other).await?;
    sqlx::query("select from runs where run_id = $1 for update").bind(run.0).execute(&mut other).await?;
    assert_eq!(lab.engine.purge(NOW, MONTH, 10).await?.runs, 0);
    sqlx::raw_sql("rollback").execute(&mut other).await?;
    // Who removes it has locked it: there is nothing to bring back any more.
    let mut purging = probe::session(lab.engine.store(), "test").await?;
    sqlx::raw_sql("begin").execute(&mut purging).await?;
    assert_eq!(probe::purge(&mut purging, NOW, MONTH, 10).await?.runs, 1);
    let (engine, action) = (lab.engine.clone(), back());
    let telling = tokio::spawn(async move { engine.tell(run, &action).await });
    until("who brings it back waits for the removal", async || Ok(waiting_for_locks(&mut other).await? == 1))
        .await?;
    sqlx::raw_sql("rollback").execute(&mut purging).await?;
    telling.await??;
    assert_eq!(lab.settled_for_good(run).await?, Status::RolledBack, "the removal was taken back");
    lab.assert_history(run).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_over_a_removal_leaves_runs_whole() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let node = lab.engine.start_node(Lab::config("a")).await?;
    let plan = simple(&lab.engine)?;
    let mut runs = Vec::new();
    for n in 0..4 {
        runs.push(done(&lab, &plan, Some(&n.to_string())).await?);
    }
    node.drain(Duration::from_secs(1)).await;
    let deaths = Deaths::at("purge.mid", 1);
    let dying = NodeConfig {
        keep_finished: Some(NOW),
        crash_hook: Some(deaths.hook()),
        rejoin: false,
        ..Lab::config("b")
    };
    let (_engine, dying) = lab.node(dying).await?;
    dying.ended().await;
    assert!(deaths.fired());
    drop(dying);
    for run in &runs {
        lab.assert_journal(*run).await?;
    }
    let keeping = NodeConfig { keep_finished: Some(NOW), ..Lab::config("c") };
    let (engine, _node) = lab.node(keeping).await?;
    until("they are gone", async || {
        let mut left = 0;
        for run in &runs {
            left += rows(&lab, *run).await?;
        }
        Ok(left == 0)
    })
    .await?;
    let options = SubmitOptions { key: Some("2".into()), ..SubmitOptions::default() };
    assert_eq!(engine.submit(&plan, options).await?.run, runs[2]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_a_step_stays_as_long_as_the_run_it_is_a_step_of() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let _node = lab.engine.start_node(Lab::config("a")).await?;
    let mut child = PlanBuilder::new("child");
    child.step("c", "make").undone_by("unmake", json!({}));
    let mut plan = PlanBuilder::new("parent");
    let of = plan.run("of", child).done();
    plan.wait("wait", json!({ "signal": "go" })).after([&of]).done();
    let parent = lab.engine.submit(&plan.check(lab.engine.registry())?, SubmitOptions::default()).await?.run;
    let mut sql = lab.sql().await?;
    let find = "select count(*) from runs where labels ->> 'parent' = $1 and finished_at is not null";
    until("its run is over", async || {
        Ok(sqlx::query_scalar::<_, i64>(find).bind(parent.to_string()).fetch_one(&mut sql).await? == 1)
    })
    .await?;
    assert_eq!(lab.engine.purge(NOW, MONTH, 10).await?.runs, 0, "it may have to be rolled back yet");
    let go = Verb::Signal { name: "go".into(), payload: json!({}) };
    lab.engine.tell(parent, &Action::new("somebody", "", go)).await?;
    assert_eq!(lab.settled_for_good(parent).await?, Status::Succeeded);
    assert_eq!(lab.engine.purge(NOW, MONTH, 10).await?.runs, 1, "that one first");
    assert_eq!(lab.engine.purge(NOW, MONTH, 10).await?.runs, 1);
    Ok(())
}
