//! The runs that fail at a step are found by the index, and it is right.

use std::time::{Duration, Instant};

use backstay_engine::machine::Action;
use backstay_engine::{PlanBuilder, Retry, RunFilter, RunId, Status, SubmitOptions};
use backstay_tests::{Lab, plans};
use serde_json::json;

use crate::spoken::{broken, held, mend};
use crate::until;

async fn at(lab: &Lab, step: &str) -> anyhow::Result<Vec<RunId>> {
    let filter = RunFilter { failing: Some(step.into()), ..RunFilter::default() };
    Ok(lab.engine.list(&filter).await?.into_iter().map(|info| info.run).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_index_knows_at_which_steps_runs_fail_from_the_first_failure_until_success() -> anyhow::Result<()>
{
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let submit = async |plan| anyhow::Ok(engine.submit(&plan, SubmitOptions::default()).await?.run);

    // It waits for its next attempt, in memory: the index is told all the same.
    let mut soon = PlanBuilder::new("soon");
    soon.retry(Retry::fixed(3, Duration::from_millis(1_900)));
    soon.step("trying", "make").input(json!({ "fails": "1" })).undone_by("unmake", json!({}));
    let trying = submit(soon.check(engine.registry())?).await?;
    until("the first failure is known", async || Ok(at(&lab, "trying").await? == [trying])).await?;

    let undone = submit(plans::single(&engine, json!({ "fails": "permanent" }))?).await?;
    let stuck = submit(held(&engine, broken())?).await?;
    assert_eq!(lab.settled_for_good(undone).await?, Status::RolledBack);
    until("it is held", async || Ok(engine.get(stuck).await?.status == Status::Held)).await?;
    // What is undone has failed all the same.
    assert_eq!(at(&lab, "only").await?, [undone]);
    assert_eq!(at(&lab, "b").await?, [stuck]);
    assert_eq!(lab.settled_for_good(trying).await?, Status::Succeeded);
    assert!(at(&lab, "trying").await?.is_empty(), "it has succeeded since");
    for nobody in ["a", "c", ""] {
        assert!(at(&lab, nobody).await?.is_empty(), "{nobody:?}");
    }

    // What the journals say is what stands there: the migration reads them, for runs of earlier releases.
    let mut sql = lab.sql().await?;
    let indexed = "select run_id::text, failing from runs where failing <> '{}' order by run_id";
    let before: Vec<(String, Vec<String>)> = sqlx::query_as(indexed).fetch_all(&mut sql).await?;
    assert_eq!(before.len(), 2);
    sqlx::query("update runs set failing = null").execute(&mut sql).await?;
    assert!(at(&lab, "b").await?.is_empty());
    let backfill = include_str!("../../../migrations/0013_failing_of_old.sql").split("create index").next();
    sqlx::raw_sql(backfill.unwrap()).execute(&mut sql).await?;
    let after: Vec<(String, Vec<String>)> = sqlx::query_as(indexed).fetch_all(&mut sql).await?;
    assert_eq!(before, after);

    // A node of an earlier release has had it meanwhile, and said nothing about it.
    sqlx::query("update runs set failing = array['c']").execute(&mut sql).await?;
    engine.act(stuck, &Action::new("ann", "", mend("b"))).await?;
    assert_eq!(lab.settled(stuck).await?, Status::Succeeded);
    assert!(at(&lab, "b").await?.is_empty());
    until("what was wrong is gone", async || Ok(!at(&lab, "c").await?.contains(&stuck))).await?;
    node.drain(Duration::from_secs(5)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_the_runs_that_fail_at_a_step_reads_no_journal_however_many_are_over() -> anyhow::Result<()>
{
    let lab = Lab::new().await?;
    let mut sql = lab.sql().await?;
    let many = "insert into runs (run_id, workflow, status, plan_hash, activities, request_hash, submitted_at, finished_at,
                                  failing)
                select gen_random_uuid(), 'w', 'rolled_back', '', '{}', '', now(), now(),
                       case when n % 10 = 0 then array['common'] when n % 5000 = 1 then array['rare', 'common'] end
                from generate_series(1, 20000) as n";
    sqlx::query(many).execute(&mut sql).await?;
    sqlx::raw_sql("vacuum analyze runs").execute(&mut sql).await?;

    // Whoever reads a journal now waits for ever.
    sqlx::raw_sql("begin; lock table journal in access exclusive mode").execute(&mut sql).await?;
    let begun = Instant::now();
    for (step, found) in [("common", 100), ("rare", 4), ("nowhere", 0)] {
        let page = tokio::time::timeout(Duration::from_secs(10), at(&lab, step)).await??;
        assert_eq!(page.len(), found, "{step}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    sqlx::raw_sql("rollback").execute(&mut sql).await?;

    // And the few among the many are found by their index.
    until("the index was used", async || {
        at(&lab, "rare").await?;
        let used = "select idx_scan > 0 from pg_stat_user_indexes where indexrelname = 'runs_by_failing'";
        Ok(sqlx::query_scalar(used).fetch_one(&mut sql).await?)
    })
    .await
}

/// Nodes that run side by side with a release that they cannot read would take each other's runs for unreadable.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_wants_all_nodes_stopped_names_those_that_are_up() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let mut sql = lab.sql().await?;
    let guard = include_str!("../../../migrations/0019_entries.sql").split("alter table").next().unwrap();
    let (_engine, node) = lab.node(Lab::config("late")).await?;
    let refused = sqlx::raw_sql(guard).execute(&mut sql).await.unwrap_err().to_string();
    assert!(refused.contains("stop late, and start this again"), "{refused}");
    node.kill().await;
    // One that died is not waited for.
    until("its connection is gone", async || Ok(sqlx::raw_sql(guard).execute(&mut sql).await.is_ok()))
        .await?;
    let ended: Vec<String> = sqlx::query_scalar("select ended_why from nodes").fetch_all(&mut sql).await?;
    assert_eq!(ended, ["superseded"]);
    // One that was cut off meanwhile begins no life, and writes to no journal.
    let as_before = "insert into nodes (token, name, activities, lease_until) values (gen_random_uuid(), 'old', '{}', now())";
    let refused = sqlx::query(as_before).execute(&mut sql).await.unwrap_err().to_string();
    assert!(refused.contains("\"release\""), "{refused}");
    let of_before = "select to_regtype(name)::text from unnest(array['new_event', 'journal_row', 'journal_entry']) as name";
    let types: Vec<Option<String>> = sqlx::query_scalar(of_before).fetch_all(&mut sql).await?;
    assert_eq!(types, [None, None, Some("journal_entry".to_owned())]);
    Ok(())
}
