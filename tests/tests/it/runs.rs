//! What a run does while nothing dies.

use std::time::Duration;

use backstay_engine::{EngineError, PlanBuilder, Retry, RunFilter, Status, SubmitOptions, output};
use backstay_tests::{Lab, plans};
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_to_its_end() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::diamond(&engine, &[])?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::Succeeded);
    assert_eq!(lab.world.things().await?, ["a", "b", "c", "d", "e"]);
    let story = lab.story(run).await?;
    assert!(story.starts_with("submitted\nstarted a #1\nsucceeded a #1\n"), "{story}");
    assert!(story.ends_with("started e #1\nsucceeded e #1\nfinished succeeded"), "{story}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_for_good_undoes_everything_in_reverse() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::diamond(&engine, &[("e", json!({ "fails": "permanent" }))])?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::RolledBack);
    assert!(lab.world.things().await?.is_empty());
    let story = lab.story(run).await?;
    let undone: Vec<_> = story.lines().filter_map(|line| line.strip_prefix("started undo ")).collect();
    assert_eq!((undone[0], undone[1], undone[4]), ("e #1", "d #1", "a #1"), "{story}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_attempt_is_retried_at_the_journaled_time() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::single(&engine, json!({ "fails": "2" }))?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::Succeeded);
    let rows = engine.journal(run).await?;
    let mut due = None;
    let mut retried = 0;
    for row in rows {
        if row.kind == "failed" {
            due = row.body.unwrap().value()["retry_at"]
                .as_str()
                .map(|at| at.parse::<chrono::DateTime<chrono::Utc>>().unwrap());
        } else if let (true, Some(due)) = (row.kind == "started", due) {
            assert!(row.at >= due, "attempt {} started at {}, before {due}", row.attempt, row.at);
            retried += 1;
        }
    }
    assert_eq!(retried, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_failure_of_its_attempt_alone() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, node) = lab.node(Lab::config("a")).await?;
    let plan = plans::single(&engine, json!({ "fails": "panic" }))?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::RolledBack);
    assert!(lab.story(run).await?.contains("failed only #4 panic"));
    assert!(node.is_live());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_is_too_large_fails_its_step_for_good() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::single(&engine, json!({ "fails": "huge" }))?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::RolledBack);
    insta::assert_snapshot!(lab.story(run).await?, @r"
    submitted
    started only #1
    failed only #1 output_too_large
    rolling_back
    started undo only #1
    succeeded undo only #1
    finished rolled_back
    ");
    assert!(lab.world.things().await?.is_empty(), "what may have been made was unmade");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_takes_too_long_is_given_up_and_undone() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let mut plan = PlanBuilder::new("slow");
    plan.retry(Retry::never());
    plan.step("slow", "make")
        .input(json!({ "millis": 60_000 }))
        .timeout(Duration::from_millis(50))
        .undone_by("unmake", json!({}));
    let plan = plan.check(engine.registry())?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::RolledBack);
    assert!(lab.story(run).await?.contains("failed slow #1 timeout"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_tells_attempts_in_flight_to_stop_and_waits_for_them() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let like = [("b", json!({ "fails": "hang" })), ("c", json!({ "fails": "not-applied", "millis": 0 }))];
    let plan = plans::diamond(&engine, &like)?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    assert_eq!(submitted.ended().await?, Status::RolledBack);
    assert_eq!(lab.world.touched("stop", "b").await?, 1);
    assert_eq!(lab.world.touched("unmake", "b").await?, 1, "it may have had its effect");
    assert_eq!(lab.world.touched("unmake", "c").await?, 0, "it said that nothing happened");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_undo_that_fails_for_good_leaves_the_run_stuck_and_blocks_only_what_is_behind_it()
-> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let like = [("e", json!({ "fails": "permanent" })), ("undo b", json!({ "fails": "permanent" }))];
    let plan = plans::diamond(&engine, &like)?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    assert_eq!(submitted.ended().await?, Status::Stuck);
    assert_eq!(lab.world.things().await?, ["a", "b"], "c does not wait for b, a does");
    let info = engine.get(run).await?;
    assert_eq!(info.note.as_deref(), Some("these undos failed for good: b"));
    assert!(info.owner.is_none() && info.due_at.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_key_gives_the_same_run_from_any_node() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (one, _node_one) = lab.node(Lab::config("one")).await?;
    let (two, _node_two) = lab.node(Lab::config("two")).await?;
    let plan = plans::single(&one, json!({}))?;
    let options = SubmitOptions { key: Some("order-1".into()), ..SubmitOptions::default() };
    let mut all = tokio::task::JoinSet::new();
    for n in 0..64 {
        let engine = [&one, &two, &lab.engine][n % 3].clone();
        let (plan, options) = (plan.clone(), options.clone());
        all.spawn(async move {
            engine.submit(&plan, options).await.map(|submitted| (submitted.run, submitted.created))
        });
    }
    let mut runs = std::collections::BTreeSet::new();
    let mut created = 0;
    while let Some(submitted) = all.join_next().await {
        let (run, new) = submitted??;
        runs.insert(run);
        created += u32::from(new);
    }
    assert_eq!((runs.len(), created), (1, 1));
    let other = plans::single(&one, json!({ "millis": 1 }))?;
    let refused = two.submit(&other, options).await.unwrap_err();
    assert!(matches!(refused, EngineError::KeyReused { .. }), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_live_run_holds_an_exclusive_key() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let options = SubmitOptions { exclusive: Some("vm-7".into()), ..SubmitOptions::default() };
    let slow = plans::single(&engine, json!({ "millis": 300 }))?;
    let first = engine.submit(&slow, options.clone()).await?;
    let holder = first.run;
    let refused = engine.submit(&slow, options.clone()).await.unwrap_err();
    assert!(matches!(refused, EngineError::Exclusive { holder: h, .. } if h == holder), "{refused}");
    assert_eq!(first.ended().await?, Status::Succeeded);
    engine.submit(&slow, options).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_claims_only_runs_whose_activities_it_has() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let poor = backstay_engine::Engine::connect(&lab.url, backstay_engine::Registry::new()).await?;
    let _poor = poor.start_node(Lab::config("poor")).await?;
    let plan = plans::single(&lab.engine, json!({}))?;
    let submitted = lab.engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(lab.engine.get(run).await?.status, Status::Pending, "nobody can run it yet");
    let (_engine, _rich) = lab.node(Lab::config("rich")).await?;
    assert_eq!(lab.settled(run).await?, Status::Succeeded);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_waits_long_is_put_down_and_taken_up_again() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let config = backstay_engine::NodeConfig { park_after: Duration::from_millis(50), ..Lab::config("a") };
    let (engine, _node) = lab.node(config).await?;
    let mut plan = PlanBuilder::new("later");
    plan.retry(Retry::fixed(3, Duration::from_millis(400)));
    plan.step("only", "make")
        .input(json!({ "fails": "1" }))
        .undone_by("unmake", json!({ "id": output("/id") }));
    let plan = plan.check(engine.registry())?;
    let submitted = engine.submit(&plan, SubmitOptions::default()).await?;
    let run = submitted.run;
    let put_down = async {
        while engine.get(run).await?.status != Status::Waiting {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), put_down).await??;
    assert!(engine.get(run).await?.owner.is_none());
    assert_eq!(submitted.ended().await?, Status::Succeeded);
    assert!(lab.story(run).await?.contains("claimed free"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_gives_every_event_once_and_ends_with_the_run() -> anyhow::Result<()> {
    let lab = Lab::new().await?;
    let (engine, _node) = lab.node(Lab::config("a")).await?;
    let plan = plans::diamond(&engine, &[("c", json!({ "millis": 30 }))])?;
    let run = engine.submit(&plan, SubmitOptions::default()).await?.run;
    let mut watch = lab.engine.watch(run);
    let mut seqs = Vec::new();
    while let Some(row) = tokio::time::timeout(Duration::from_secs(20), watch.next()).await?? {
        seqs.push(row.seq);
    }
    assert_eq!(seqs, (1..=12).collect::<Vec<_>>());
    let listed =
        lab.engine.list(&RunFilter { status: Some(Status::Succeeded), ..RunFilter::default() }).await?;
    assert_eq!(listed.first().map(|info| info.run), Some(run));
    Ok(())
}
